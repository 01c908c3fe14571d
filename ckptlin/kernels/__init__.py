"""Numba kernels and their float64 oracle."""
