"""glTF 2.0: reads scenes and skins (geometry), edits and writes files (editing), adds skins (add_skin)."""
