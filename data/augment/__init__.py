"""Training augmentations of rigged meshes: the paper's pipeline and the operations it is made of."""
