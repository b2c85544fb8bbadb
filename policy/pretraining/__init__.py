"""What both pre-training stages share: rig examples, optimizer, training loop, checkpoints."""
