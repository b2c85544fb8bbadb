"""Checkpoints of the public SkinTokens release: reading, parsing and writing them."""
