"""Find: which features separate two sets of texts."""
