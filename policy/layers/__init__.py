"""Layers shared by TokenRig's mesh encoder and the skin VAE."""
