"""Numba kernels behind the rewards: unchecked loops, each next to the idea that makes it fast."""
