"""Data sets: samples with their train/eval split, prepared rigs, mixtures by weight."""
