"""Activation stores: written from a model (cache), read (store), streamed in random order (stream)."""
