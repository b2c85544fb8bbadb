"""Shared by both pre-training stages: rig examples, optimizer, training loop, checkpoints."""
