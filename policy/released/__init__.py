"""Files of the public SkinTokens release: checkpoints and their settings."""
