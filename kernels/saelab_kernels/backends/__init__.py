"""Implementations of the operators, one object `BACKEND` a module; chosen in `saelab_kernels.dispatch`."""
