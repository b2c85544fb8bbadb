"""glTF 2.0: the document and its accessors, geometry and skins, rigged GLB files in and out."""
