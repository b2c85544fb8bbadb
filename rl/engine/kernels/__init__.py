"""Triton kernels of the fast rollout engine; imported only when a CUDA device runs them."""
