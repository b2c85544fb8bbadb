"""SkinTokens: the FSQ-CVAE that turns a bone's skinning weights into a few codes and back."""
