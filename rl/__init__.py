"""GRPO post-training of TokenRig: sampling, training with TRL, evaluation and rigging of mesh files."""
