"""Layers that TokenRig's mesh encoder and the SkinTokens VAE share."""
