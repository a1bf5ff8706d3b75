"""Questions to a feature index, one kind in a file."""
