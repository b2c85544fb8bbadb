"""Every documented variant of GRPO runs, and changes what the policy learns."""

import pytest
import torch

from rl.recipe.train import check_train
from rl.recipe.train_options import CHOICES
from rl.recipe.train_variants import VARIANTS
from tests.rl.training_runs import FakeService, Run, weights

# Deprecations of transformers, which TRL has to fix.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

# Two updates per batch, so that ratios differ from 1, with a learning rate that makes clips act.
BASE = {
    **{"num_iterations": 2, "max_steps": 2, "learning_rate": 0.01, "beta": 0.04},
    **{"save_strategy": "no", "max_completion_length": 80},
}
METRICS = {
    "loss_type: cispo": "cispo_clip_ratio",
    "loss_type: vespo": "vespo/phi_seq_mean",
    "entropy_coef: 0.01": "entropy_coef",
    "use_adaptive_entropy: true": "entropy_coef",
    "epsilon_high: 0.28": "clip_ratio/high_mean",
    "delta: 4.0": "clip_ratio/region_mean",
}


def run(make_recipe, output, train: dict) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """How a short run moves the tiny policy, and its metrics; scores are of the test's choosing."""
    changes = {f"train.{key}": value for key, value in {**BASE, **train}.items()}
    parts = Run(make_recipe({**changes, "output_dir": str(output)}), FakeService(lambda row: (row % 4) ** 2))
    moved = {name: new - parts.before[name] for name, new in weights(parts.optimise()).items()}
    return moved, parts.metrics()


@pytest.fixture(scope="module")
def base(policy_path, tmp_path_factory):
    """The run without any variant, once."""
    from tests.rl import tiny

    output = tmp_path_factory.mktemp("variants") / "base"
    return run(lambda changes: tiny.make_recipe(policy_path, output, changes), output, {})


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_a_variant_runs_and_changes_the_update(make_recipe, tmp_path, base, variant):
    documented = {**variant.keys, **variant.needs}
    check_train(documented)
    train = {**documented, **variant.effect}
    if train == {"num_iterations": 2}:  # as BASE has it, so compare it with a run of one
        train = {"num_iterations": 1}
    moved, lines = run(make_recipe, tmp_path / "run", train)
    assert len(lines) == 2
    for line in lines:
        assert line["train_guard/bad_steps"] == 0
        assert torch.isfinite(torch.tensor(line["loss"]))
    assert all(change.isfinite().all() for change in moved.values())
    # The policy's own metric, where TRL logs one for the variant.
    metric = METRICS.get(variant.name)
    assert metric is None or lines[-1][metric] > 0
    difference = max(float((moved[name] - base[0][name]).abs().max()) for name in moved)
    if variant.name == "loss_type: grpo":
        assert difference == 0  # the default
    else:
        assert difference > 1e-4, difference


def test_every_word_of_the_variants_options_has_a_paragraph():
    documented = {(key, value) for variant in VARIANTS for key, value in variant.keys.items()}
    for key in ("loss_type", "scale_rewards", "importance_sampling_level", "multi_objective_aggregation"):
        words = {word for word in CHOICES[key] if (key, word) in documented}
        usual = {"scale_rewards": "group", "importance_sampling_level": "token"}.get(
            key, "sum_then_normalize"
        )
        assert words | {usual} == {*CHOICES[key], usual}
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
