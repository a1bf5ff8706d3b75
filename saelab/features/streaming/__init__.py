"""Build a feature index with a state that is bounded by features and configuration, in two passes over the text."""
