"""What both pre-training stages share: the training loop, rig examples, the Muon optimizer."""
