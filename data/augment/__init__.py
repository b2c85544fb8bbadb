"""Training augmentations of rigged meshes: the paper's pipeline and its operations."""
