"""Tuning a copy of the policy to one mesh: what it learns, what it leaves alone, and the gain it states."""

import re

import numpy as np
import pytest
import torch
import trimesh

from data import load_mesh
from data.command_line import RunFailedError
from data.sets.dataset import make_sample
from data.typed_recipe import RecipeError
from rewards.service import InlineRewardService
from rewards.worker import INVALID, GroupScore, RolloutScore
from rl import evaluate as evaluate_command
from rl import rig
from rl.engine.choose import make_sampler
from rl.evaluation import evaluate
from rl.given_skeleton import true_skeletons
from rl.mesh_bank import MeshBank
from rl.mesh_tuning import MeshTuner
from rl.meshes import load_meshes, reward_meshes
from rl.preflight.at_start import check_start
from rl.recipe import reward_settings
from rl.rigging import rig_mesh
from rl.rollout import row_seeds, sample_for_meshes
from rl.scoring import SampledRollout, read_rollout, submit_scores
from tests.rl import tiny

NAMES = ("coverage", "containment", "sparsity", "smoothness")
MESH = 3


class FewJoints:
    """Scores a rig by 1 / joints; `invalid` rejects all."""

    def __init__(self, invalid: bool = False) -> None:
        self.invalid = invalid
        self.pose_seeds: set[int] = set()

    def submit(self, mesh, rigs, pose_seed):
        assert mesh == MESH
        self.pose_seeds.add(pose_seed)
        scores = [
            INVALID
            if rig is None or self.invalid
            else RolloutScore(dict.fromkeys(NAMES, 1 / len(rig.joints)), True)
            for rig in rigs
        ]

        class Pending:
            def result(self) -> GroupScore:
                return GroupScore(scores, 0.0, 0.0)

        return Pending()


@pytest.fixture
def bank(make_recipe, policy) -> MeshBank:
    return MeshBank(load_meshes(make_recipe()).samples, policy.vocabulary, "articulation")


def sampled(policy, bank, recipe, service, seeds, given=None) -> list[SampledRollout]:
    """Rollouts of the loaded policy."""
    rows = [MESH] * len(seeds)
    sampler = make_sampler(policy.model, recipe)
    tokens, _ = sample_for_meshes(sampler, policy.model, bank, rows, recipe, seeds, 1.0, 16, given).rows()
    skeleton = (given or {}).get(MESH)
    rigs = [read_rollout(ids, bank.class_id, bank.vocabulary, skeleton) for ids in tokens]
    scores = submit_scores(service, rows, rigs, lambda _: 9)
    return [
        SampledRollout(MESH, bank.class_id, ids, seed, 9, rig, score)
        for ids, seed, rig, score in zip(tokens, seeds, rigs, scores, strict=True)
    ]


def tokens_of(rollouts) -> list[list[int]]:
    return [list(rollout.tokens) for rollout in rollouts]


def mean_reward(rollouts) -> float:
    return float(np.mean([rollout.score.rewards(NAMES)["coverage"] for rollout in rollouts]))


def test_rigs_get_better_on_a_toy_reward(policy, bank, make_recipe):
    """With a reward for few joints, the last step's rigs beat the first's by far more than chance."""
    recipe = make_recipe({"tuning": {"learning_rate": 1e-2}})
    service = FewJoints()
    first = sampled(policy, bank, recipe, service, row_seeds(16, 0))
    found = MeshTuner(policy, bank, service, recipe).tune(first, 6, 1.0, 16, (0,))
    assert found[:16] == first
    assert len(found) == 16 * 7
    before, after = mean_reward(first), mean_reward(found[-16:])
    untuned = [mean_reward(sampled(policy, bank, recipe, service, row_seeds(16, 0, k))) for k in range(1, 5)]
    assert after > before
    assert after > max(untuned) + 2 * np.std(untuned)
    assert service.pose_seeds == {9}  # the best is sought in the poses that the first were scored in


def test_nothing_of_the_tuning_stays(policy, bank, make_recipe):
    """Weights, gradients and random states are left alone, and a second tuning is not helped by the first."""
    recipe = make_recipe({"tuning": {"learning_rate": 1e-2}})
    service = FewJoints()
    weights = {name: value.clone() for name, value in policy.model.state_dict().items()}
    random = torch.get_rng_state()
    first = sampled(policy, bank, recipe, service, row_seeds(6, 0))
    tuner = MeshTuner(policy, bank, service, recipe)
    once = tokens_of(tuner.tune(first, 2, 1.0, 6, (0,)))
    assert tokens_of(tuner.tune(first, 2, 1.0, 6, (0,))) == once
    assert tokens_of(tuner.tune(first, 2, 1.0, 2, (0,))) == once  # nor by how many are sampled at once
    assert tokens_of(tuner.tune(first, 2, 1.0, 6, (1,))) != once
    assert all(torch.equal(weights[name], value) for name, value in policy.model.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("invalid", "rate"), [(True, 1e-2), (False, 1e-12)])
def test_without_an_update_the_rigs_are_the_loaded_policys(policy, bank, make_recipe, invalid, rate):
    """No valid rig to imitate, or no rate to learn at: later steps sample what the policy would."""
    recipe = make_recipe({"tuning": {"learning_rate": rate}})
    service = FewJoints(invalid)
    first = sampled(policy, bank, recipe, service, row_seeds(4, 0))
    found = MeshTuner(policy, bank, service, recipe).tune(first, 2, 1.0, 4, (0,))
    for step in (1, 2):
        own = sampled(policy, bank, recipe, service, row_seeds(4, 0, step))
        assert tokens_of(found[4 * step : 4 * step + 4]) == tokens_of(own)


def test_a_given_skeleton_is_kept(policy, bank, make_recipe):
    recipe = make_recipe({"tuning": {"learning_rate": 1e-2}})
    given = true_skeletons(bank.samples, [MESH], bank.vocabulary)
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    first = sampled(policy, bank, recipe, service, row_seeds(4, 0), given)
    found = MeshTuner(policy, bank, service, recipe).tune(first, 2, 1.0, 4, (0,), given)
    assert all(np.array_equal(one.rig.joints, given[MESH].joints) for one in found)
    plain = sampled(policy, bank, recipe, service, row_seeds(4, 0, 2), given)
    assert tokens_of(found[-4:]) != tokens_of(plain)


# ------------------------------------------------------------------ the commands


@pytest.fixture
def recipe_file(policy_path, tmp_path):
    return str(tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "out", {}))


def test_rigging_says_what_tuning_gained(recipe_file, tmp_path, capsys):
    """The comparison is the best of as many rigs of the loaded policy, and the best of all is written."""
    mesh = tmp_path / "box.obj"
    trimesh.creation.capsule(height=2.0, radius=0.4, count=[8, 8]).export(mesh)
    shown = {}
    for name, options in {
        "tuned": ["rig.candidates=4", "rig.tune_steps=2", "tuning.learning_rate=0.01"],
        "untuned": ["rig.candidates=12"],
    }.items():
        out = f"rig.out={tmp_path / name}.glb"
        assert rig.main([recipe_file, f"rig.mesh={mesh}", out, *options]) == 0
        shown[name] = capsys.readouterr().out
    line = next(line for line in shown["tuned"].splitlines() if line.startswith("tuning to the mesh"))
    tuned, untuned, rigs, gain = re.fullmatch(
        r"tuning to the mesh: total reward (\S+) with, (\S+) without, the best of (\d+) rigs each \((\S+)\)",
        line,
    ).groups()
    assert int(rigs) == 12
    assert float(gain) == pytest.approx(float(tuned) - float(untuned), abs=2e-3)

    def total(name: str) -> str:
        return re.search(r"joints, total reward (\S+)", shown[name])[1]

    assert total("untuned") == untuned
    assert float(total("tuned")) == max(float(tuned), float(untuned))
    assert "tuning to" not in shown["untuned"]


def test_no_whole_rig_fails_with_their_number(policy, make_recipe, tmp_path):
    trimesh.creation.box().export(tmp_path / "box.obj")
    sample = make_sample(load_mesh(tmp_path / "box.obj"), None, 64, 0)
    short = make_recipe({"train.max_completion_length": 4})
    with pytest.raises(RunFailedError, match="none of the 10 rigs"):  # 2 × 3, and 2 × 2 from tuning
        rig_mesh(policy, sample, short, 2, 1.0, 0, tune_steps=2)


def test_evaluation_measures_the_gain_over_the_best_of_as_many(policy, bank, make_recipe):
    shared = {"eval.samples": 2, "eval.metrics": False}
    settings = {"eval.best_of": 3, "eval.tune_steps": 1, "tuning.learning_rate": 1e-2}
    recipe = make_recipe({**shared, **settings})
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    tuned = evaluate(policy, bank, [3, 4], service, recipe, "tuned")
    as_many = make_recipe({**shared, "eval.best_of": 6})
    untuned = evaluate(policy, bank, [3, 4], service, as_many, "untuned")
    for name, row in tuned.per_mesh.items():
        assert row["tuning_gain"] == pytest.approx(row["total"] - untuned.per_mesh[name]["total"])
    assert tuned.mean["tuning_gain"] == pytest.approx(tuned.mean["total"] - untuned.mean["total"])
    assert "tuning_gain" not in untuned.mean
    assert (tuned.best_of, tuned.tune_steps, tuned.samples) == (3, 1, 2)
    assert evaluate(policy, bank, [3, 4], service, recipe, "tuned") == tuned


def test_the_evaluation_command_shows_the_gain(recipe_file, capsys):
    options = ["eval.best_of=3", "eval.tune_steps=1", "eval.samples=1"]
    assert evaluate_command.main([recipe_file, *options]) == 0
    shown = capsys.readouterr().out
    assert "each the best of 6 by total reward in 1 step of tuning to its mesh" in " ".join(shown.split())
    assert "total, gain by tuning" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rig.tune_steps": 2, "rig.candidates": 1}, "set rig.candidates=16, or rig.tune_steps=0"),
        (
            {"rig.tune_steps": 2, "rig.temperature": 0},
            "set an 'rig.temperature' above 0, or rig.tune_steps=0",
        ),
        ({"rig.tune_steps": -1}, "'rig.tune_steps' must not be negative"),
        ({"eval.tune_steps": 2}, "set eval.best_of=16, or eval.tune_steps=0"),
        ({"eval.tune_steps": 2, "eval.best_of": 4, "eval.decoding": "beam"}, "set eval.decoding=sampled"),
        (
            {"eval.tune_steps": 2, "eval.best_of": 4, "eval.sheets": 1},
            "'eval.sheets' draws rigs of the policy",
        ),
        ({"tuning.learning_rate": 0}, "'tuning.learning_rate' must be above 0"),
        ({"tuning.imitated": 0}, "'tuning.imitated' must be above 0"),
    ],
)
def test_contradictions_are_refused(make_recipe, changes, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        make_recipe(changes)


def test_training_evaluates_policies_as_they_are(make_recipe):
    with pytest.raises(RecipeError, match=r"'eval.tune_steps' is 2, but a run evaluates .* rl.evaluate"):
        check_start(make_recipe({"eval.tune_steps": 2, "eval.best_of": 4}))
