"""Benchmark of a GRPO step's parts against plain implementations, and the limits of the machine."""
