"""Compiled kernels, run from their PTX without a GPU."""
