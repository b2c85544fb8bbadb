"""GRPO learns: the reward rises, on held-out meshes too, and again after a resume."""

import json
from pathlib import Path

import pytest

from rl import train_grpo
from tests.rl import tiny

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("_signals")]


def test_the_reward_rises_and_rises_again_after_a_resume(policy_path, tmp_path):
    """A random policy, three meshes, 30 steps of two groups of 16.

    It starts at about 4.3 of 8 (a fifth of the rigs is cut off) and ends near 5.9 with seeds 1, 2 and 3, at
    twice and at half the rollouts; the margins are half of what was seen.
    """
    changes = {
        "train.num_generations": 16,
        "train.per_device_train_batch_size": 32,
        "train.learning_rate": 0.02,
        "train.beta": 0.001,
        "train.save_steps": 15,
        "data.eval_count": 8,
        "eval.samples": 8,
    }
    output = tmp_path / "run"
    recipe = str(tiny.write_recipe_file(tmp_path / "recipe.yaml", policy_path, output, changes))
    assert train_grpo.main([recipe, "train.max_steps=15"]) == 0
    half_way = evaluation(output / "after.json")
    assert train_grpo.main([recipe, "train.max_steps=30"]) == 0

    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    rewards = [line["reward"] for line in lines]
    first, middle, last = mean(rewards[:5]), mean(rewards[10:15]), mean(rewards[25:])
    assert middle > first + 0.4
    assert last > middle + 0.1
    assert last > first + 0.8
    # What did it: whole rigs, then better ones. The policy has moved away from its reference.
    assert mean([line["rig/valid"] for line in lines[25:]]) > 0.95
    assert lines[-1]["rewards/coverage/mean"] > lines[0]["rewards/coverage/mean"]
    assert lines[-1]["kl"] > 0.1 > lines[0]["kl"]

    before, after = evaluation(output / "before.json"), evaluation(output / "after.json")
    assert before["mean"]["total"] < half_way["mean"]["total"] < after["mean"]["total"]
    gains = [
        after["per_mesh"][name]["total"] - before["per_mesh"][name]["total"] for name in before["per_mesh"]
    ]
    assert len(gains) == 8
    variance = sum((gain - mean(gains)) ** 2 for gain in gains) / 7
    assert mean(gains) > 3 * (variance / 8) ** 0.5


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def evaluation(path: Path) -> dict:
    return json.loads(path.read_text())
