"""Rig tokens: vocabulary, grammar, skeleton tokenizer and text tokenizer."""
