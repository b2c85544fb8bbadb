"""Evaluation: means and standard errors by hand, the same seeds each time, files and tables."""

import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from data.command_line import RunFailedError
from policy.bundle import RigPolicy
from rewards.service import InlineRewardService
from rewards.worker import UNSCORED, GroupScore, RolloutScore
from rl import evaluate as module
from rl.evaluate import Evaluation, compare, evaluate, print_comparison, print_evaluation, standard_error
from rl.meshes import MeshBank
from rl.recipe import Recipe, reward_settings
from rl.session import load_meshes, reward_meshes
from tests.rl import tiny

NAMES = ("coverage", "containment", "sparsity", "smoothness")


class Scores:
    """A service that gives every valid rig of mesh k the rewards of `value_of(k, row)`, None for no score."""

    def __init__(self, value_of: Callable[[int, int], float | None]) -> None:
        self.value_of = value_of
        self.seeds: dict[int, int] = {}

    def submit(self, mesh, rigs, pose_seed):
        self.seeds[mesh] = pose_seed
        scores = []
        for row in range(len(rigs)):
            value = self.value_of(mesh, row)
            rewards = dict.fromkeys(NAMES, value)
            scores.append(UNSCORED if value is None else RolloutScore(rewards, True, {"joints": 9.0}))
        group = GroupScore(scores, 0.0, 0.0, failure="the worker died")

        class Pending:
            def result(self) -> GroupScore:
                return group

        return Pending()


@pytest.fixture
def bank(make_recipe, policy) -> MeshBank:
    return MeshBank(load_meshes(make_recipe()).samples, policy.vocabulary, "articulation")


def run(policy: RigPolicy, bank: MeshBank, recipe: Recipe, service: object, **settings: object) -> Evaluation:
    recipe = replace(recipe, eval=replace(recipe.eval, **settings))
    return evaluate(policy, bank, [3, 4], service, recipe, "before")


def test_means_are_over_rollouts_then_over_meshes(policy, bank, make_recipe):
    # Mesh 3: 0.25 and 0.75, mean 0.5. Mesh 4: 1 and 1. Weights 5, 1, 1, 1: totals 4 and 8.
    service = Scores(lambda mesh, row: [0.25, 0.75][row] if mesh == 3 else 1.0)
    result = run(policy, bank, make_recipe(), service, samples=2)
    first, second = (bank.samples[mesh].name for mesh in (3, 4))
    assert list(result.per_mesh) == [first, second]
    assert result.per_mesh[first]["coverage"] == 0.5
    assert result.per_mesh[first]["total"] == 4.0
    assert result.per_mesh[second]["total"] == 8.0
    assert result.mean["total"] == 6.0
    # Of 4 and 8: variance ((4 - 6)^2 + (8 - 6)^2) / 1 = 8, standard error sqrt(8 / 2) = 2.
    assert result.standard_error["total"] == 2.0
    assert result.diagnostics == {"joints": 9.0}


def test_what_could_not_be_scored_is_left_out(policy, bank, make_recipe):
    service = Scores(lambda mesh, row: None if (mesh, row) != (3, 1) else 0.5)
    result = run(policy, bank, make_recipe(), service, samples=2)
    assert list(result.per_mesh) == [bank.samples[3].name]
    assert result.mean["coverage"] == 0.5
    with pytest.raises(RunFailedError, match=r"no rig could be scored .*the worker died"):
        run(policy, bank, make_recipe(), Scores(lambda mesh, row: None))


def test_rigs_and_poses_depend_on_the_seed_alone(policy, bank, make_recipe):
    recipe = make_recipe()
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    first = run(policy, bank, recipe, service)
    assert run(policy, bank, recipe, service, batch_size=1) == first  # nor on how many are sampled at once
    assert run(policy, bank, recipe, service, seed=5).per_mesh != first.per_mesh
    assert run(policy, bank, recipe, service, temperature=0.0).per_mesh != first.per_mesh
    poses = Scores(lambda mesh, row: 0.5)
    run(policy, bank, recipe, poses)
    assert len(set(poses.seeds.values())) == 2


def test_cut_off_rigs_count_as_invalid(policy, bank, make_recipe):
    recipe = make_recipe({"train.max_completion_length": 4})
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    result = run(policy, bank, recipe, service)
    assert set(result.mean.values()) == {0.0}
    assert result.diagnostics == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0.0),
        ([3.0], 0.0),
        ([1.0, 1.0, 1.0], 0.0),
        # mean 2, squares 1 + 0 + 1 = 2, variance 2 / 2 = 1, error sqrt(1 / 3)
        ([1.0, 2.0, 3.0], (1 / 3) ** 0.5),
    ],
)
def test_standard_error(values, expected):
    assert standard_error(values) == pytest.approx(expected)


def of(**totals: float) -> Evaluation:
    columns = {mesh: {"total": value, "valid": 1.0, "joints": 10.0} for mesh, value in totals.items()}
    mean = sum(totals.values()) / len(totals)
    return Evaluation(
        "x",
        2,
        7,
        columns,
        {"total": mean, "valid": 1.0, "joints": 10.0},
        {"total": 0.1, "valid": 0.0, "joints": 0},
        {},
    )


def test_the_difference_is_paired():
    """+1 and +3 on meshes that differ by 100: mean 2, standard error 1, whatever the spread of meshes."""
    before, after = of(a=1.0, b=101.0), of(a=2.0, b=104.0)
    # squares (1 - 2)^2 + (3 - 2)^2 = 2, variance 2, error sqrt(2 / 2)
    assert compare(before, after)["total"] == (2.0, 1.0)
    assert compare(before, after)["valid"] == (0.0, 0.0)
    # A mesh that only one of them has does not count.
    assert compare(of(a=1.0, b=101.0, c=5.0), after)["total"] == (2.0, 1.0)


def test_tables_show_the_numbers():
    text = io.StringIO()
    console = Console(file=text, width=120)
    print_comparison(of(a=1.0, b=101.0), of(a=2.0, b=104.0), console)
    print_evaluation(of(a=1.0, b=101.0), console)
    shown = text.getvalue()
    for part in ("51.000", "53.000", "+2.000", "+2.0", "100.0%", "held-out meshes (2)", "101.000", "± s.e."):
        assert part in shown, part


def test_the_command_writes_json_and_a_table(policy_path, tmp_path, capsys):
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "out", {})
    assert module.main([str(recipe), "eval.samples=3"]) == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["policy"] == str(policy_path)
    assert written["samples"] == 3
    assert set(written["mean"]) == {*NAMES, "total", "valid", "joints"}
    assert len(written["per_mesh"]) == 2
    assert 0 < written["mean"]["valid"] <= 1
    assert f"{written['mean']['total']:.3f}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]


def test_help_and_wrong_output(policy_path, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    assert "key.sub=value" in capsys.readouterr().out
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "r.yaml", {})
    assert module.main([str(recipe)]) == 2
    assert "'output_dir'" in capsys.readouterr().err
