"""Metrics with one definition each: reconstruction, sparsity, loss recovered, examples, ground truth."""
