"""Data sets: mesh samples and the train/eval split, folders of prepared rigs, weighted mixtures."""
