"""SAE kernels: encode and select, decode, gradients. See README.md; import from the modules."""
