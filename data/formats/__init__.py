"""Files people have: meshes and rigs of every readable format in, the project's own rig NPZ out."""
