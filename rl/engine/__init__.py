"""Rollout engines: samplers of rig tokens behind one interface, all of the same distribution."""
