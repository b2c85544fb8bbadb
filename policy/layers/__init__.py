"""Layers shared by TokenRig's mesh encoder and the skin VAE."""

from policy.layers import vector_math as vector_math  # before any layer computes
