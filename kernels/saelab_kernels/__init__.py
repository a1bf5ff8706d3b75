"""Sparse autoencoder kernels: encode and select, decode, gradients. Import from the modules; see README.md."""
