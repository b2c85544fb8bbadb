"""glTF 2.0: parses the container, extracts geometry and skins, reads and writes skinned GLB files."""
