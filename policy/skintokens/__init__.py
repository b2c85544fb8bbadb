"""SkinTokens: the skin VAE (an FSQ-CVAE) turns a bone's skinning weights into a few codes and back."""
