"""File formats: reads meshes and rigs of every supported format, writes the project's own rig NPZ."""
