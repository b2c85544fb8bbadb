"""Evaluation: means by hand, the same seeds each time, decoding, best of several, and the command."""

import csv
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import CREATURE_KINDS, make_creature, read_manifest, write_skinned_glb
from data.command_line import RunFailedError
from data.prepare import PrepareSettings, prepare
from policy.bundle import RigPolicy
from rewards.service import InlineRewardService
from rewards.worker import INVALID, UNSCORED, GroupScore, RolloutRig, RolloutScore
from rl import evaluate as command_line
from rl import evaluation as module
from rl.evaluation import evaluate, same_weights
from rl.evaluation_results import VALID_ONLY, Evaluation
from rl.ground_truth import METRICS, failed_metrics
from rl.mesh_bank import MeshBank
from rl.meshes import load_meshes, reward_meshes
from rl.recipe import Recipe, reward_settings
from tests.rl import tiny

NAMES = ("coverage", "containment", "sparsity", "smoothness")
COLUMNS = {
    *(*NAMES, "total", "valid", "joints", "true_joints", *METRICS),
    *(f"{name}{VALID_ONLY}" for name in (*NAMES, "total", *METRICS)),
}


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
    rows = result.per_rig[first]
    assert [(row["coverage"], row["total"]) for row in rows] == [(0.25, 2.0), (0.75, 6.0)]
    assert sum(row["valid"] for row in rows) / 2 == result.per_mesh[first]["valid"]
    assert all(row.get("joints", 0) == 9.0 * row["valid"] for row in rows)


def test_unscored_rollouts_are_excluded(policy, bank, make_recipe):
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
    assert {result.mean[name] for name in (*NAMES, "total", "valid", "joints")} == {0.0}
    # Against the ground truth they count as the worst value, and there is no mean over valid rigs.
    for row in result.per_mesh.values():
        worst = failed_metrics(int(row["true_joints"]))
        assert {name: row[name] for name in METRICS} == pytest.approx(worst)
    assert not [name for name in result.mean if name.endswith(VALID_ONLY)]
    assert result.diagnostics == {}


class FixedScores:
    """A service that gives row r of every mesh the rewards `values[r]`; None makes the rig invalid."""

    def __init__(self, values: list[float | None]) -> None:
        self.values = values

    def submit(self, mesh, rigs, pose_seed):
        assert len(rigs) == len(self.values)
        scores = [
            INVALID if value is None else RolloutScore(dict.fromkeys(NAMES, value), True, {"row": float(row)})
            for row, value in enumerate(self.values)
        ]

        class Pending:
            def result(self) -> GroupScore:
                return GroupScore(scores, 0.0, 0.0)

        return Pending()


@pytest.fixture
def whole_rigs(monkeypatch) -> None:
    """Every rollout reads as the same rig of two joints, whatever the policy sampled."""
    joints = np.array([[0, 0, 0], [0, 0.5, 0]], dtype=np.float32)
    rig = RolloutRig(joints, np.array([-1, 0]), np.array([[1, 2], [3, 4]]))
    monkeypatch.setattr(module, "read_rollout", lambda *arguments: rig)


@pytest.mark.usefixtures("whole_rigs")
def test_failures_count_as_the_worst_and_not_at_all(policy, bank, make_recipe):
    # Of four rigs one is invalid: (0.5 + 0.25 + 0.75 + 0) / 4 = 0.375, and 1.5 / 3 = 0.5 over the valid ones.
    result = run(policy, bank, make_recipe(), FixedScores([0.5, None, 0.25, 0.75]), samples=4)
    assert result.mean["coverage"] == 0.375
    assert result.mean["coverage_valid"] == 0.5
    assert result.mean["total"] == 3.0  # weights 5 + 1 + 1 + 1
    assert result.mean["total_valid"] == 4.0
    assert result.mean["valid"] == 0.75
    for row in result.per_mesh.values():
        for name, worst in failed_metrics(int(row["true_joints"])).items():
            assert row[name] == pytest.approx((3 * row[f"{name}{VALID_ONLY}"] + worst) / 4), name


def test_a_valid_rig_without_a_bone_has_failed_in_published_distances_only(
    policy, bank, make_recipe, monkeypatch
):
    """UniRig and RigNet's line leave such rigs out of their means."""
    point = RolloutRig(np.zeros((1, 3), np.float32), np.array([-1]), np.array([[1, 2]]))
    joints = np.array([[0, 0, 0], [0, 0.5, 0]], dtype=np.float32)
    bone = RolloutRig(joints, np.array([-1, 0]), np.array([[1, 2], [3, 4]]))
    rigs = itertools.cycle([point, bone])
    monkeypatch.setattr(module, "read_rollout", lambda *arguments: next(rigs))
    result = run(policy, bank, make_recipe(), FixedScores([0.5, 0.5]), samples=2)
    assert result.mean["valid"] == 1
    for row in result.per_mesh.values():
        worst = failed_metrics(int(row["true_joints"]))
        for name in METRICS:
            if name.startswith(("unirig_", "rignet_")):
                assert row[name] == pytest.approx((row[f"{name}{VALID_ONLY}"] + worst[name]) / 2)
            else:
                assert row[name] == row[f"{name}{VALID_ONLY}"]


def test_the_skin_convention_changes_the_skin_scores_alone(policy, bank, make_recipe, whole_rigs):
    plain, pruned = (
        run(policy, bank, make_recipe(), FixedScores([0.5, 0.5]), skin_convention=convention)
        for convention in ("plain", "puppeteer")
    )
    assert (plain.skin_convention, pruned.skin_convention) == ("plain", "puppeteer")
    changed = {name for name in METRICS if plain.mean[name] != pruned.mean[name]}
    assert {"skin_l1", "skin_l1_per_entry"} <= changed <= {n for n in METRICS if n.startswith("skin_")}


def test_null_metric_vertices_compares_all(policy, bank, make_recipe, whole_rigs):
    few, whole, enough = (
        run(policy, bank, make_recipe(), FixedScores([0.5, 0.5]), metric_vertices=count)
        for count in (8, None, 10**6)
    )
    assert whole.per_mesh == enough.per_mesh != few.per_mesh
    assert (few.metric_vertices, whole.metric_vertices) == (8, None)


@pytest.mark.usefixtures("whole_rigs")
def test_the_best_of_each_so_many_counts(policy, bank, make_recipe):
    # Six rollouts are two picks of three: 0.5 at place 1, and 0.25, the only valid one, at place 5.
    scores = FixedScores([0.25, 0.5, 0.25, None, None, 0.25])
    result = run(policy, bank, make_recipe(), scores, samples=2, best_of=3)
    assert (result.samples, result.best_of) == (2, 3)
    assert result.mean["coverage"] == 0.375
    assert result.mean["valid"] == 1.0
    assert result.diagnostics == {"row": 3.0}  # (1 + 5) / 2
    # A valid rig that earns nothing is better than none; of equals the first is kept.
    nothing = run(policy, bank, make_recipe(), FixedScores([None, 0.0, 0.0]), samples=1, best_of=3)
    assert (nothing.mean["valid"], nothing.diagnostics) == (1.0, {"row": 1.0})
    none = run(policy, bank, make_recipe(), FixedScores([None, None]), samples=1, best_of=2)
    assert none.mean["valid"] == 0.0


def test_the_best_of_several_are_of_the_rigs_that_are_sampled_without(policy, bank, make_recipe):
    recipe = make_recipe()
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    every = run(policy, bank, recipe, service, samples=6)
    best = run(policy, bank, recipe, service, samples=1, best_of=6)
    for name, row in best.per_mesh.items():
        assert row["total"] > every.per_mesh[name]["total"]


@pytest.mark.parametrize("decoding", ["greedy", "beam"])
def test_decoding_without_chance_gives_one_rig_whatever_the_seed(policy, bank, make_recipe, decoding):
    recipe = make_recipe()
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    result = run(policy, bank, recipe, service, decoding=decoding, samples=7)
    assert result.samples == 1
    assert result.decoding == decoding
    one = run(policy, bank, recipe, service, decoding=decoding, batch_size=1, beams=4)
    assert one == result
    assert all(row["valid"] in (0.0, 1.0) for row in result.per_mesh.values())


def test_a_beam_of_one_is_greedy(policy, bank, make_recipe):
    recipe = make_recipe()
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    greedy = run(policy, bank, recipe, service, decoding="greedy")
    assert run(policy, bank, recipe, service, decoding="beam", beams=1).per_mesh == greedy.per_mesh
    # So is sampling at temperature 0.
    cold = run(policy, bank, recipe, service, samples=1, temperature=0.0)
    assert cold.per_mesh == greedy.per_mesh


def test_metrics_can_be_switched_off(policy, bank, make_recipe, monkeypatch):
    with_metrics = run(policy, bank, make_recipe(), FixedScores([0.5, None]))
    monkeypatch.setattr(module, "GroundTruthMetrics", None)
    result = run(policy, bank, make_recipe(), FixedScores([0.5, None]), metrics=False)
    for name, row in result.per_mesh.items():
        assert set(row) == COLUMNS - {
            "true_joints",
            *METRICS,
            *(f"{n}{VALID_ONLY}" for n in METRICS),
        }
        assert row == {column: with_metrics.per_mesh[name][column] for column in row}


# ------------------------------------------------------------------ given skeletons

SKIN = {name for name in METRICS if name.startswith(("skin_", "motion_"))}


@pytest.mark.parametrize(
    "settings", [{"decoding": "sampled"}, {"decoding": "greedy"}, {"decoding": "beam"}, {"best_of": 3}]
)
def test_with_given_skeletons_rigs_have_the_true_joints(policy, bank, make_recipe, settings):
    scored: dict[int, list[RolloutRig | None]] = {}

    class Seen(Scores):
        def submit(self, mesh, rigs, pose_seed):
            scored[mesh] = list(rigs)
            return super().submit(mesh, rigs, pose_seed)

    service = Seen(lambda mesh, row: (row + 1) / 8)
    result = run(policy, bank, make_recipe(), service, skeleton="given", samples=2, **settings)
    assert result.skeleton == "given"
    for mesh, rigs in scored.items():
        truth = bank.samples[mesh].rig
        row = result.per_mesh[bank.samples[mesh].name]
        assert row["valid"] == 1
        assert row["joints"] == row["true_joints"] == len(truth.joints)
        for rig in rigs:
            assert np.array_equal(rig.joints, truth.joints)  # exactly: J2J is 0
            assert np.array_equal(rig.parents, truth.parents)
        assert {name for name in row if name.startswith(("unirig", "rignet"))} == set()
        assert set(row) >= {*SKIN, *(f"{name}{VALID_ONLY}" for name in SKIN)}
    assert not [column for column in result.mean if column.startswith(("unirig", "rignet"))]


def test_given_skeletons_in_other_batches_change_nothing(policy, bank, make_recipe):
    recipe = make_recipe()
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    for decoding in ("sampled", "beam"):
        first = run(policy, bank, recipe, service, skeleton="given", decoding=decoding)
        again = run(policy, bank, recipe, service, skeleton="given", decoding=decoding, batch_size=1)
        assert again == first


def test_cut_off_skins_count_as_the_worst(policy, bank, make_recipe):
    recipe = make_recipe({"train.max_completion_length": 4})
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    service.prepare_meshes(reward_meshes(bank.samples))
    result = run(policy, bank, recipe, service, skeleton="given")
    assert result.mean["valid"] == 0
    for name in SKIN:
        worst = [failed_metrics(len(bank.samples[mesh].rig.joints))[name] for mesh in (3, 4)]
        assert result.mean[name] == pytest.approx(sum(worst) / 2)


# ------------------------------------------------------------------ the command


def command(recipe: Path, *overrides: str) -> int:
    return command_line.main([str(recipe), *overrides])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def recipe_file(policy_path, tmp_path) -> Path:
    return tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "out", {})


def test_the_command_writes_json_csv_and_tables(recipe_file, policy_path, tmp_path, capsys):
    assert command(recipe_file, "eval.samples=3") == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["policy"] == str(policy_path)
    assert (written["samples"], written["decoding"], written["best_of"]) == (3, "sampled", 1)
    assert (written["skin_convention"], written["metric_vertices"]) == ("plain", 256)
    assert set(written["mean"]) == set(written["standard_error"]) == COLUMNS
    assert len(written["per_mesh"]) == 2
    assert written["compared"] == []
    assert 0 < written["mean"]["valid"] <= 1
    # Random rigs are further away than the box is wide from none, and nearer than its diagonal.
    assert 0.02 < written["mean"]["unirig_j2j_valid"] < 3**0.5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "evaluation.csv"}

    meshes, (mean, error) = (
        rows_of(tmp_path / "out" / "evaluation.csv")[:2],
        rows_of(tmp_path / "out" / "evaluation.csv")[2:],
    )
    assert [row["mesh"] for row in meshes] == list(written["per_mesh"])
    for row in meshes:
        assert row["row"] == "mesh"
        assert row["policy"] == str(policy_path)
        for column, value in written["per_mesh"][row["mesh"]].items():
            assert float(row[column]) == value
    assert (mean["row"], error["row"], mean["mesh"]) == ("mean", "standard_error", "")
    assert float(mean["motion_loss_valid"]) == written["mean"]["motion_loss_valid"]
    assert float(error["total"]) == written["standard_error"]["total"]

    shown = capsys.readouterr().out
    assert f"{written['mean']['total']:.3f}" in shown
    assert f"{100 * written['mean']['unirig_j2j_valid']:.2f}" in shown
    assert f"{written['mean']['rignet_j2j_valid']:.3f}" in shown  # × 100 in the file already
    assert "valid rigs, 2 ground truths" in shown
    assert max(len(line) for line in shown.splitlines() if str(policy_path) not in line) <= 112


def test_several_policies_are_compared_pairwise(recipe_file, policy_path, tmp_path, capsys):
    other = tiny.make_policy()  # of the same skin VAE
    with torch.no_grad():
        other.model.transformer.model.norm.weight.mul_(4)
    other.save(tmp_path / "other")
    tiny.make_policy(seed=3).save(tmp_path / "stranger")
    output = tmp_path / "out"
    assert command(recipe_file, f"eval.compare=[{tmp_path}/other,{tmp_path}/stranger]") == 0
    written = json.loads((output / "evaluation.json").read_text())
    names = [str(policy_path), *(f"{tmp_path}/{name}" for name in ("other", "stranger"))]
    assert [written["policy"], *(each["policy"] for each in written["compared"])] == names
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line[1:3] == ": "] == [
        f"{letter}: {name}" for letter, name in zip("ABC", names, strict=True)
    ]
    rows = rows_of(output / "evaluation.csv")
    assert [row["row"] for row in rows] == (
        ["mesh"] * 6 + ["mean", "standard_error"] * 3 + ["difference", "difference_standard_error"] * 2
    )
    for each in written["compared"]:
        assert list(each["per_mesh"]) == list(written["per_mesh"])
        # By hand: two meshes, so the mean of the two differences and half of what they are apart.
        gains = [each["per_mesh"][mesh]["total"] - row["total"] for mesh, row in written["per_mesh"].items()]
        assert gains != [0, 0]
        found = each["difference"]["total"]
        assert found["mean"] == pytest.approx(sum(gains) / 2)
        assert found["standard_error"] == pytest.approx(abs(gains[0] - gains[1]) / 2)
        assert found["meshes"] == 2
        (row,) = (r for r in rows if r["row"] == "difference" and r["policy"] == each["policy"])
        assert float(row["total"]) == found["mean"]
        assert f"{found['mean']:+.3f} ± {found['standard_error']:.3f}" in shown
        # Each is what it is alone.
        assert command(recipe_file, f"policy.path={each['policy']}", f"output_dir={tmp_path}/alone") == 0
        alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())
        assert alone["per_mesh"] == each["per_mesh"]


def test_policies_of_one_skin_vae_share_the_prepared_meshes(recipe_file, policy_path, tmp_path, monkeypatch):
    prepared = []
    prepare = InlineRewardService.prepare_meshes
    monkeypatch.setattr(
        InlineRewardService, "prepare_meshes", lambda self, m: prepared.append(len(m)) or prepare(self, m)
    )
    tiny.make_policy().save(tmp_path / "same")
    tiny.make_policy(seed=3).save(tmp_path / "stranger")
    assert command(recipe_file, f"eval.compare=[{tmp_path}/same,{tmp_path}/stranger]") == 0
    assert prepared == [2, 2]
    assert same_weights(tiny.make_policy().skin_vae, tiny.make_policy().skin_vae)
    assert not same_weights(tiny.make_policy().skin_vae, tiny.make_policy(seed=3).skin_vae)


def test_meshes_with_and_without_a_rig(recipe_file, tmp_path, capsys):
    """A skinned file is measured against its rig, an OBJ without one by the rewards alone."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    creature = make_creature(5, CREATURE_KINDS[0])
    write_skinned_glb(folder / "skinned.glb", creature.mesh, creature.rig)
    lines = [f"v {x} {y} {z}" for x, y, z in creature.mesh.vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (creature.mesh.faces + 1).tolist()]
    (folder / "plain.obj").write_text("\n".join(lines))
    assert command(recipe_file, f"data.meshes={folder}", f"data.eval_meshes={folder}", "eval.samples=3") == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    plain, skinned = written["per_mesh"]["plain"], written["per_mesh"]["skinned"]
    assert set(skinned) == COLUMNS
    assert set(plain) == {
        *NAMES,
        "total",
        "valid",
        "joints",
        *(f"{n}{VALID_ONLY}" for n in (*NAMES, "total")),
    }
    assert skinned["true_joints"] == len(creature.rig.joints)
    # What only one mesh has is the mean.
    assert written["mean"]["unirig_b2b"] == skinned["unirig_b2b"]
    assert written["standard_error"]["unirig_b2b"] == 0
    assert written["mean"]["total"] == pytest.approx((plain["total"] + skinned["total"]) / 2)
    (row,) = (r for r in rows_of(tmp_path / "out" / "evaluation.csv") if r["mesh"] == "plain")
    assert row["unirig_j2j"] == ""
    assert "valid rigs, 1 ground truth " in capsys.readouterr().out


@pytest.mark.parametrize("key", ["meshes", "eval_meshes"])
def test_rigs_of_a_prepared_folder_are_the_ground_truth(recipe_file, tmp_path, capsys, key):
    (tmp_path / "rigs").mkdir()
    for seed in range(3):
        creature = make_creature(seed)
        write_skinned_glb(tmp_path / "rigs" / f"{seed}.glb", creature.mesh, creature.rig)
    prepare([tmp_path / "rigs"], tmp_path / "prepared", PrepareSettings(eval_share=0.7))
    assert command(recipe_file, f"data.{key}={tmp_path / 'prepared'}", "eval.samples=3") == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())["per_mesh"]
    known = {rig.name: rig.joints for rig in read_manifest(tmp_path / "prepared").rigs if rig.split == "eval"}
    assert {name: row["true_joints"] for name, row in written.items()} == known
    assert len(known) == 2
    assert "valid rigs, 2 ground truths" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.decoding=magic"], "'eval.decoding' must be one of 'sampled', 'greedy', 'beam', not 'magic'"),
        (["eval.best_of=8", "eval.decoding=greedy"], "'eval.best_of' is 8 but every rig of a mesh"),
        (["eval.best_of=8", "eval.decoding=beam"], "set eval.decoding=sampled or eval.best_of=1"),
        (["eval.best_of=8", "eval.temperature=0"], "set an 'eval.temperature' above 0 or eval.best_of=1"),
        (["eval.beams=0"], "'eval.beams' must be above 0"),
        (["eval.length_penalty=-1"], "'eval.length_penalty' must not be negative"),
        (["eval.metric_vertices=0"], "'eval.metric_vertices' must be above 0"),
        (
            ["eval.skin_convention=rignet"],
            "'eval.skin_convention' must be one of 'plain', 'puppeteer', 'puppeteer_modelsresource'",
        ),
        (["eval.compare=5"], "'eval.compare' must be a list"),
        (["eval.compare=[nowhere]"], "'eval.compare': nowhere"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(recipe_file, tmp_path, capsys, overrides, message):
    assert command(recipe_file, *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_policy_named_twice_is_refused(recipe_file, policy_path, capsys):
    assert command(recipe_file, f"eval.compare=[{policy_path}]") == 2
    assert f"{policy_path} appears twice in 'policy.path' and 'eval.compare'" in capsys.readouterr().err


def test_help_and_wrong_output(policy_path, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(["--help"])
    assert stop.value.code == 0
    assert "key.sub=value" in capsys.readouterr().out
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "r.yaml", {})
    assert command_line.main([str(recipe)]) == 2
    assert "'output_dir'" in capsys.readouterr().err


def test_the_command_draws_sheets_of_the_rigs_that_it_scored(recipe_file, tmp_path, capsys):
    assert command(recipe_file, "eval.samples=3", "eval.sheets=2") == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    drawn = {name for name, rows in written["per_rig"].items() if rows[0]["valid"]}
    assert drawn  # some of the random rigs are complete
    assert {path.name for path in (tmp_path / "out" / "sheets").iterdir()} == {
        f"{name}_A.png" for name in drawn
    }
    assert f"posed rigs: {tmp_path / 'out' / 'sheets'}" in capsys.readouterr().out


def test_the_command_gives_the_true_skeletons(recipe_file, tmp_path, capsys):
    other = tiny.make_policy()
    with torch.no_grad():
        other.model.transformer.model.norm.weight.mul_(4)
    other.save(tmp_path / "other")
    files = tmp_path / "meshes"
    files.mkdir()
    for seed in (1, 2):
        creature = make_creature(seed)
        write_skinned_glb(files / f"rigged{seed}.glb", creature.mesh, creature.rig)
    (files / "bare.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    changes = ["eval.skeleton=given", f"data.eval_meshes={files}", f"eval.compare=[{tmp_path}/other]"]
    assert command(recipe_file, *changes) == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["skeleton"] == "given"
    assert list(written["per_mesh"]) == ["rigged1", "rigged2"]
    for each in (written, *written["compared"]):
        assert set(each["mean"]) == COLUMNS - {
            f"{name}{suffix}" for name in set(METRICS) - SKIN for suffix in ("", VALID_ONLY)
        }
        assert each["mean"]["joints"] == each["mean"]["true_joints"]
    assert written["compared"][0]["difference"]["coverage"]["mean"] == 0  # the same joints
    rows = rows_of(tmp_path / "out" / "evaluation.csv")
    assert "skin_l1" in rows[0]
    assert "unirig_j2j" not in rows[0]
    shown = capsys.readouterr()
    assert "ground-truth skeletons" in shown.out
    assert "skipped: bare: it has no rig" in shown.err
    assert "skipped: 1 of 3 held-out meshes" in shown.err
    assert command(recipe_file, *changes[:1], f"data.eval_meshes={files / 'bare.obj'}") == 2
    assert "'eval.skeleton' is given, but none of the 1 held-out meshes" in capsys.readouterr().err
