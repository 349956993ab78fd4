"""Numba kernels and what they are made with; nothing here is imported unless numba is."""
