"""SkinTokens: the FSQ-CVAE that encodes a bone's skinning weights as a few codes and decodes them."""
