"""Creatures built as game artists build and rig them: characters, blobs, animals, machines."""
