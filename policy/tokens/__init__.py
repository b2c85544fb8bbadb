"""Rig tokens: ids, grammar, skeletons to ids and back, readable words."""
