"""A fault on one of two processes: both skip the step, and both go on alike."""

import itertools
import json
import math

import pytest

from policy.bundle import load
from tests.rl import tiny
from tests.rl.commands import metrics
from tests.rl.launches import DDP, DEEPSPEED_ON_CPU, ON_CPU, configuration, finish, needs_compiler, start

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

FAULTY = {
    "train.per_device_train_batch_size": 4,
    "train.max_steps": 7,
    "train.save_steps": 7,
    "train.max_completion_length": 40,
    "train.lr_scheduler_type": "linear",
    "eval.before_and_after": False,
}


@pytest.mark.parametrize("kind", ["ddp", pytest.param("zero2", marks=[needs_compiler, pytest.mark.slow])])
def test_a_fault_on_one_rank_skips_the_step_on_both(policy_path, tmp_path, kind):
    """A NaN loss, an infinite gradient, and a step without scores: see two_ranks_with_faults."""
    changes = {**FAULTY, "train.ddp_backend": "gloo"} if kind == "zero2" else FAULTY
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", changes)
    options, environment = DDP, ON_CPU
    if kind == "zero2":
        options, environment = configuration("zero2", tmp_path), DEEPSPEED_ON_CPU
    finish(start(recipe, options, environment, "tests/rl/two_ranks_with_faults.py", tmp_path))
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    digests = ranks[0]["digests"]
    updates = [now != before for before, now in itertools.pairwise(digests)]
    assert updates == [False, True, False, True, False, True]
    assert ranks[0]["rates"] == pytest.approx([1e-3 * (7 - step) / 7 for step in range(1, 8)])
    lines = metrics(tmp_path / "run")
    assert [line["train_guard/bad_steps"] for line in lines] == [0, 1, 0, 1, 0, 0, 0]
    assert [line["train_guard/unscored_steps"] for line in lines] == [0, 0, 0, 0, 0, 1, 0]
    assert [math.isfinite(line["loss"]) for line in lines] == [True, False, *[True] * 5]
    records = {path.name: json.loads(path.read_text()) for path in (tmp_path / "run/bad_steps").iterdir()}
    assert sorted(records) == [f"step-{step}-rank-{rank}.json" for step in (2, 4) for rank in (0, 1)]
    assert records["step-2-rank-1.json"]["causes_here"][0] == "loss"
    assert "loss" not in records["step-2-rank-0.json"]["causes_here"]
    assert records["step-2-rank-0.json"]["causes"][0] == "loss"
    assert records["step-4-rank-0.json"]["causes"] == ["gradient"]
    assert len(records["step-4-rank-1.json"]["rows"]) == 4
    assert load(tmp_path / "run" / "policy")
