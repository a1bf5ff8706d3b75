"""Labels: what people and programs call the features of an SAE, kept with its run."""
