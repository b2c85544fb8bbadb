"""A software renderer for pictures of textured, rigged and posed glTF files: no GPU, no display."""
