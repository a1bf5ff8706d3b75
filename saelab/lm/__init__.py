"""Language models: load one, run it to a hookpoint, read and edit activations, compute losses."""
