"""Activation stores: write them from a model (cache), read them (store), stream them in random order (stream)."""
