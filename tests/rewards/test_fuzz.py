"""Fuzz test of scoring: only RewardErrors, rewards in [0, 1], no warnings (pytest turns them into errors)."""

from collections import Counter

from tests.rewards.fuzz import outcome


def test_random_meshes_and_rigs():
    count = 10_000
    outcomes = Counter(outcome(seed) for seed in range(count))
    # Each outcome occurs often enough.
    assert min(outcomes[kind] for kind in ("mesh refused", "rig refused", "scored")) > count / 20, outcomes
