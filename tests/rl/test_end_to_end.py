"""Training through the real command line: Ray, files, wandb, both backends, user errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data import make_creature, read_skinned_glb, write_skinned_glb
from data.prepare import prepare
from data.sets.prepared import write_manifest
from rl import evaluate, train_grpo
from rl.recipe import load_recipe
from tests.rl import tiny
from tests.rl.commands import (
    BIN,
    ROOT,
    TIMEOUT,
    evaluation,
    metrics,
    steps,
    without_worker_failures,
)

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("_signals")]


# ------------------------------------------------------------------ the command users type


@dataclass
class Finished:
    """A run of the real command, real Ray, on mesh files, with wandb offline."""

    recipe: Path
    output: Path
    wandb: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def finished(policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("launched")
    meshes = folder / "meshes"
    meshes.mkdir()
    for seed in range(5):
        creature = make_creature(seed)
        write_skinned_glb(meshes / f"creature{seed}.glb", creature.mesh, creature.rig)
    (meshes / "broken.glb").write_bytes((meshes / "creature0.glb").read_bytes()[:1000])
    recipe = tiny.write_recipe_file(
        folder / "recipe.yaml",
        policy_path,
        folder / "run",
        {
            "data.meshes": f"{meshes}/*.glb",
            "workers": {"backend": "ray", "count": 2},
            "train.report_to": "wandb",
        },
    )
    result = subprocess.run(
        [
            *(BIN / "accelerate", "launch", "--config_file", ROOT / "recipes/accelerate/single.yaml"),
            *(ROOT / "rl/train_grpo.py", recipe, "train.max_steps=3"),
        ],
        cwd=folder,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    return Finished(recipe, folder / "run", folder / "wandb", result.stdout, result.stderr)


def test_a_run_leaves_every_file(finished):
    names = {path.name for path in finished.output.iterdir()}
    assert {
        "recipe.yaml",
        "metrics.jsonl",
        "before.json",
        "after.json",
        "policy",
        "rig.glb",
        "rig.png",
        "checkpoints",
    } <= names
    assert steps(finished.output) == [1, 2, 3]
    assert (finished.output / "rig.png").read_bytes().startswith(b"\x89PNG")
    mesh, rig = read_skinned_glb(finished.output / "rig.glb")
    assert len(rig.joints) >= 1
    assert rig.weights.shape == (len(mesh.vertices), len(rig.joints))
    # No partial files remain.
    assert not [path for path in finished.output.rglob("*") if "partial" in path.name]


def test_the_first_step_logs_the_time_since_the_command(finished):
    lines = [json.loads(line) for line in (finished.output / "metrics.jsonl").read_text().splitlines()]
    assert ["seconds/startup" in line for line in lines] == [True, False, False]
    assert lines[0]["seconds/startup"] > 0
    assert finished.stderr.count("startup_s") == 1


def test_the_recipe_left_behind_is_the_one_that_ran(finished):
    again = load_recipe(finished.output / "recipe.yaml")
    assert again == load_recipe(finished.recipe, ["train.max_steps=3"])
    assert again.train["max_steps"] == 3


def test_it_prints_before_and_after_and_the_output_paths(finished):
    for word in ("coverage", "containment", "sparsity", "smoothness", "total", "valid", "joints"):
        assert re.search(rf"{word} .*│", finished.stdout), word
    assert "before" in finished.stdout
    assert str(finished.output / "policy") in finished.stdout
    assert "step 3 " in finished.stderr  # a line of metrics
    assert re.search(r"GRPO: +100%", finished.stderr)  # and a bar
    assert "Traceback" not in finished.stderr


def test_a_broken_file_is_reported_and_skipped(finished):
    skipped = [line for line in finished.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 1
    assert "broken.glb" in skipped[0]
    assert len(evaluation(finished.output / "before.json")["per_mesh"]) == 2


def test_wandb_got_every_metric_offline(finished):
    (log,) = finished.wandb.glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for name in ("rewards/coverage/mean", "frac_reward_zero_std", "seconds/train", "rig/valid", "kl"):
        assert f"train/{name}".encode() in content, name


def test_both_backends_train_alike(finished, tmp_path):
    """The same recipe in this process without Ray gives bitwise the same metrics and evaluations."""
    overrides = ["workers.backend=inline", "train.report_to=none", f"output_dir={tmp_path}"]
    assert train_grpo.main([str(finished.output / "recipe.yaml"), *overrides]) == 0
    assert metrics(tmp_path) == without_worker_failures(metrics(finished.output))
    for name in ("before.json", "after.json"):
        assert evaluation(tmp_path / name) == evaluation(finished.output / name)


def test_the_exported_policy_gives_the_same_rollouts(finished, tmp_path):
    """Loaded again, it gets the same scores per mesh as in the process that trained it."""
    for name, policy in (("before", None), ("after", finished.output / "policy")):
        overrides = ["workers.backend=inline", f"output_dir={tmp_path}"]
        overrides += [f"policy.path={policy}"] if policy else []
        assert evaluate.main([str(finished.output / "recipe.yaml"), *overrides]) == 0
        assert evaluation(tmp_path / "evaluation.json") == evaluation(finished.output / f"{name}.json")
    assert evaluation(finished.output / "before.json") != evaluation(finished.output / "after.json")


# ------------------------------------------------------------------ user errors


def test_user_errors_reach_the_shell_as_2_and_one_sentence(policy_path, tmp_path):
    """No usable mesh, through a real process: each file with its reason."""
    (tmp_path / "cut.glb").write_bytes(b"glTF")
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    recipe = tiny.write_recipe_file(
        tmp_path / "r.yaml", policy_path, tmp_path / "run", {"data.meshes": [str(tmp_path)]}
    )
    result = subprocess.run(
        [sys.executable, ROOT / "rl/train_grpo.py", recipe],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert "cut.glb" in result.stderr
    assert "points.obj" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.max_stepz": 3}, ["'train.max_stepz'", "'train.max_steps'"]),
        ({"policy.path": "/nowhere"}, ["'policy.path'", "/nowhere"]),
        ({"policy.skin_vae": "/nowhere"}, ["/nowhere", "skin VAE"]),
        ({"data.meshes": "/nowhere/*.glb"}, ["/nowhere/*.glb", "no file matches"]),
        ({"data.class_name": "dragon"}, ["'data.class_name'", "dragon", "articulation"]),
        ({"train.max_completion_length": 247}, ["'train.max_completion_length' 247", "between 1 and 246"]),
        ({"train.num_generations": 3}, ["'train.num_generations' 3", "8 rollouts"]),
        (
            {"train.generation_batch_size": 12, "train.num_generations": 6},
            ["'train.generation_batch_size' 12", "not a multiple of the 8 rows"],
        ),
        ({"train.fp16": True}, ["'train.fp16'", "GPU"]),
        ({"workers.decoder_device": "cuda:99"}, ["'workers.decoder_device'", "cuda:99"]),
        ({"output_dir": __file__}, ["'output_dir'", "test_end_to_end.py"]),
        ({"policy.lora": {"target_modules": ["w_proj"]}}, ["'policy.lora.target_modules'", "w_proj"]),
        ({"workers.decoder_device": "quantum"}, ["'workers.decoder_device'", "quantum"]),
        ({"workers.decoder_dtype": "tf32"}, ["'workers.decoder_dtype'", "tf32", "bfloat16"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_user_errors_are_one_sentence_before_any_work(here, tmp_path, capsys, changes, words):
    assert here(changes) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(word in shown.err for word in words), shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "before.json").exists()


@pytest.mark.parametrize("key", ["meshes", "eval_meshes"])
@pytest.mark.parametrize("kind", ["empty", "broken", "split"])
def test_no_run_starts_without_meshes(here, tmp_path, capsys, key, kind):
    folder = tmp_path / "rigs"
    folder.mkdir()
    expected = f"error: {folder}: no file matches; check the path"
    if kind == "broken":
        (folder / "cut.glb").write_bytes(b"glTF")
        expected = f"error: {folder}: none of the 1 files is a usable mesh; fix or replace them:"
    if kind == "split":
        for seed in range(2):
            creature = make_creature(seed)
            write_skinned_glb(folder / f"{seed}.glb", creature.mesh, creature.rig)
        manifest = prepare([folder], tmp_path / "prepared")
        part, other = ("train", "eval") if key == "meshes" else ("eval", "train")
        rigs = tuple(replace(rig, split=other) for rig in manifest.rigs)
        write_manifest(tmp_path / "prepared", replace(manifest, rigs=rigs))
        folder = tmp_path / "prepared"
        fix = "run `python -m data.prepare` with more rigs or a different --eval"
        expected = f"error: {folder}: no rigs in the {part!r} split; {fix}"
    assert here({f"data.{key}": str(folder)}) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(expected)
    assert shown.err.count("\n") == (2 if kind == "broken" else 1)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_policy_is_not_replaced(here, tmp_path, capsys):
    mine = tmp_path / "run" / "policy" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert here() == 2
    assert "policy" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_damaged_weights_are_a_user_error(policy_path, tmp_path, here, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(policy_path, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert here({"policy.path": str(damaged)}) == 2
    assert f"{damaged} cannot be loaded" in capsys.readouterr().err


def test_a_policy_that_completes_no_rig_still_trains(here, tmp_path, capsys):
    """Four tokens are too few for any rig, so every rollout is cut off."""
    assert here({"train.max_completion_length": 4}) == 0
    shown = capsys.readouterr()
    assert "no example rig" in shown.err
    assert evaluation(tmp_path / "run" / "after.json")["mean"]["valid"] == 0
    assert (tmp_path / "run" / "policy").is_dir()
    for line in metrics(tmp_path / "run"):
        assert (line["reward"], line["rig/valid"], line["frac_reward_zero_std"]) == (0, 0, 1)


# ------------------------------------------------------------------ given skeletons


def test_training_the_skin_of_given_skeletons(policy_path, tmp_path, here):
    """The real command with real Ray on mesh files, one of them without a rig; resumed inline."""
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    for seed in range(4):
        creature = make_creature(seed)
        write_skinned_glb(meshes / f"creature{seed}.glb", creature.mesh, creature.rig)
    creature = make_creature(9)
    trimesh.Trimesh(creature.mesh.vertices, creature.mesh.faces).export(meshes / "bare.obj")
    changes = {
        "data.meshes": str(meshes),
        "data.eval_meshes": str(meshes / "creature3.glb"),
        "data.skeleton": "given",
        "eval.skeleton": "given",
    }
    recipe = tiny.write_recipe_file(
        tmp_path / "given.yaml",
        policy_path,
        tmp_path / "run",
        {**changes, "workers": {"backend": "ray", "count": 2}},
    )
    result = subprocess.run(
        [
            *(BIN / "accelerate", "launch", "--config_file", ROOT / "recipes/accelerate/single.yaml"),
            *(ROOT / "rl/train_grpo.py", recipe),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    assert "skipped: bare: it has no rig" in result.stderr
    assert "skipped: 1 of 5 training meshes" in result.stderr
    run = tmp_path / "run"
    assert steps(run) == [1, 2]
    joints = [len(make_creature(seed).rig.joints) for seed in range(4)]
    for line in metrics(run):
        assert line["rig/valid"] == 1
        assert min(joints) <= line["rig/joints"] <= max(joints)
        # A row has the SkinTokens of its mesh and an eos, and nothing of its skeleton.
        skin = tiny.VOCABULARY.tokens_per_skin * line["rig/joints"] + 1
        assert line["completions/mean_length"] == pytest.approx(skin)
        assert line["entropy"] > 0
    assert "unirig_j2j" not in evaluation(run / "after.json")["mean"]
    given, found = (read_skinned_glb(path)[1] for path in (meshes / "creature3.glb", run / "rig.glb"))
    assert sorted(found.names) == sorted(given.names)
    place = [found.names.index(name) for name in given.names]
    np.testing.assert_allclose(found.joints[place], given.joints, atol=1e-5)

    # Resumed without Ray, it equals a run that was never interrupted.
    assert here(changes, "train.max_steps=3") == 0
    unbroken = tmp_path / "unbroken"
    assert here(changes, "train.max_steps=3", f"output_dir={unbroken}") == 0
    lines = metrics(run)
    assert without_worker_failures(lines[:2]) + lines[2:] == metrics(unbroken)
    assert evaluation(run / "after.json") == evaluation(unbroken / "after.json")


def test_training_on_given_skeletons_needs_rigs(here, tmp_path, capsys):
    creature = make_creature(9)
    trimesh.Trimesh(creature.mesh.vertices, creature.mesh.faces).export(tmp_path / "bare.obj")
    assert here({"data.meshes": str(tmp_path / "bare.obj"), "data.skeleton": "given"}) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "'data.skeleton' is given, but none of the 1 training meshes has a usable skeleton" in message
    assert here({"data.skeleton": "mine"}) == 2
    assert "data.skeleton" in capsys.readouterr().err.splitlines()[-1]
