"""The feature index: what every feature does, built once from an SAE and a corpus, queried in milliseconds."""
