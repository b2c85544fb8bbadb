"""Training through the real command line: Ray, files, resume, Ctrl-C, two processes, user errors."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from data import make_creature, read_skinned_glb, write_skinned_glb
from data.prepare import prepare
from data.sets.prepared import write_manifest
from data.typed_recipe import to_mapping
from policy.bundle import load
from rewards.service import InlineRewardService
from rl import evaluate, train_grpo
from rl.recipe import load_recipe
from tests.rl import tiny

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Only against a hang: nothing here takes a tenth of it.
TIMEOUT = 600

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Training in this process takes SIGTERM as Ctrl-C; the tests' own handler comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def metrics(output: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what measures time."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "second" not in key and "time" not in key}
        for line in lines
    ]


def steps(output: Path) -> list[int]:
    return [line["step"] for line in metrics(output)]


def evaluation(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text())
    return {key: values[key] for key in ("per_mesh", "mean", "standard_error", "diagnostics")}


@pytest.fixture
def here(policy_path: Path, tmp_path: Path) -> Callable[..., int]:
    """Run the command in this process, inline: `here({"train.max_steps": 3}, "resume=false")`."""

    def command(changes: dict[str, Any] | None = None, *overrides: str) -> int:
        recipe = tmp_path / "recipe.yaml"
        tiny.write_recipe_file(recipe, policy_path, tmp_path / "run", changes or {})
        return train_grpo.main([str(recipe), *overrides])

    return command


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
    # Nothing half-written stays behind.
    assert not [path for path in finished.output.rglob("*") if "partial" in path.name]


def test_the_recipe_left_behind_is_the_one_that_ran(finished):
    again = load_recipe(finished.output / "recipe.yaml")
    assert again == load_recipe(finished.recipe, ["train.max_steps=3"])
    assert again.train["max_steps"] == 3


def test_it_tells_before_and_after_and_where_things_are(finished):
    for word in ("coverage", "containment", "sparsity", "smoothness", "total", "valid", "joints"):
        assert re.search(rf"{word} .*│", finished.stdout), word
    assert "before" in finished.stdout
    assert str(finished.output / "policy") in finished.stdout
    assert "step 3 " in finished.stderr  # a line of metrics
    assert re.search(r"GRPO: +100%", finished.stderr)  # and a bar
    assert "Traceback" not in finished.stderr


def test_a_broken_file_is_named_and_left_out(finished):
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
    """The same recipe here without Ray: the same metrics, the same evaluations, to the last bit."""
    overrides = ["workers.backend=inline", "train.report_to=none", f"output_dir={tmp_path}"]
    assert train_grpo.main([str(finished.output / "recipe.yaml"), *overrides]) == 0
    assert metrics(tmp_path) == metrics(finished.output)
    for name in ("before.json", "after.json"):
        assert evaluation(tmp_path / name) == evaluation(finished.output / name)


def test_the_exported_policy_gives_the_same_rollouts(finished, tmp_path):
    """Loaded again, it scores per mesh what it did in the process that trained it."""
    for name, policy in (("before", None), ("after", finished.output / "policy")):
        overrides = ["workers.backend=inline", f"output_dir={tmp_path}"]
        overrides += [f"policy.path={policy}"] if policy else []
        assert evaluate.main([str(finished.output / "recipe.yaml"), *overrides]) == 0
        assert evaluation(tmp_path / "evaluation.json") == evaluation(finished.output / f"{name}.json")
    assert evaluation(finished.output / "before.json") != evaluation(finished.output / "after.json")


# ------------------------------------------------------------------ stopping and going on


def test_ctrl_c_keeps_the_checkpoints_and_the_run_goes_on_as_if_unbroken(policy_path, tmp_path, here):
    """Ctrl-C of a terminal reaches the launcher and the training; then the same recipe without Ray."""
    changes = {"workers": {"backend": "ray", "count": 1}, "train.save_steps": 2}
    recipe = tiny.write_recipe_file(tmp_path / "ray.yaml", policy_path, tmp_path / "run", changes)
    process = subprocess.Popen(
        [
            *(BIN / "accelerate", "launch", "--config_file", ROOT / "recipes/accelerate/single.yaml"),
            *(ROOT / "rl/train_grpo.py", recipe, "train.max_steps=10000"),
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run started in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    seen = ""
    for line in process.stderr:
        seen += line
        if "step 3 " in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    seen += process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode in (130, -signal.SIGINT), seen
    assert "stopped" in seen
    assert 'train_grpo.py", line' not in seen  # no traceback of ours; the launcher shows one of its own
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "policy").exists()

    last = max(int(path.name[11:]) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert here({"train.save_steps": 2, "train.max_steps": last + 3}) == 0
    assert steps(tmp_path / "run") == list(range(1, last + 4))
    unbroken = tmp_path / "unbroken"
    assert here({"train.max_steps": last + 3}, f"output_dir={unbroken}") == 0
    assert metrics(tmp_path / "run") == metrics(unbroken)
    assert evaluation(tmp_path / "run" / "after.json") == evaluation(unbroken / "after.json")


def test_sigterm_is_taken_as_ctrl_c(here, tmp_path, monkeypatch, capsys):
    """As schedulers and torchrun stop a process: in the third batch of rollouts."""
    submit, calls = InlineRewardService.submit, []

    def terminated(*arguments):
        calls.append(arguments)
        if len(list((tmp_path / "run").glob("checkpoints/*"))) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return submit(*arguments)

    monkeypatch.setattr(InlineRewardService, "submit", terminated)
    assert here({"train.max_steps": 9}) == 130
    assert "stopped" in capsys.readouterr().err.splitlines()[-1]
    assert steps(tmp_path / "run") == [1, 2]
    monkeypatch.undo()
    assert here({"train.max_steps": 3}) == 0
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_what_was_not_written_whole_is_no_checkpoint(here, tmp_path, capsys):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    assert here() == 0
    whole = run / "checkpoints" / "checkpoint-2"
    for name, missing in (("checkpoint-3", "trainer_state.json"), ("checkpoint-4", "model.safetensors")):
        shutil.copytree(whole, run / "checkpoints" / name)
        (run / "checkpoints" / name / missing).unlink()
    shutil.copytree(whole, run / "checkpoints" / "checkpoint-5")
    (run / "checkpoints" / "checkpoint-5" / "trainer_state.json").write_text('{"global_st')
    shutil.copytree(whole, run / "trainer" / "checkpoint-3")  # the trainer's own, never moved: not complete
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')

    assert here({"train.max_steps": 4}) == 0
    assert f"going on from {whole}" in capsys.readouterr().err
    assert not list((run / "trainer").glob("checkpoint-*"))
    assert here({"train.max_steps": 4}, f"output_dir={unbroken}") == 0
    assert metrics(run) == metrics(unbroken)


def test_the_newest_checkpoints_are_kept(here, tmp_path):
    assert here({"train.max_steps": 4, "train.save_total_limit": 2}) == 0
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"checkpoint-3", "checkpoint-4"}


def test_a_finished_run_trains_no_further(here, tmp_path, capsys):
    assert here() == 0
    exported = (tmp_path / "run" / "policy" / "model.safetensors").read_bytes()
    after = evaluation(tmp_path / "run" / "after.json")
    shutil.rmtree(tmp_path / "run" / "policy")
    assert here() == 0
    assert "nothing to train" in capsys.readouterr().err
    assert steps(tmp_path / "run") == [1, 2]
    assert (tmp_path / "run" / "policy" / "model.safetensors").read_bytes() == exported
    assert evaluation(tmp_path / "run" / "after.json") == after
    # More steps than it had: it goes on.
    assert here({"train.max_steps": 3}) == 0
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_another_recipes_run_is_not_gone_on_with(here, tmp_path, capsys):
    assert here() == 0
    lines = metrics(tmp_path / "run")
    assert here({"train.learning_rate": 0.5}) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "'train.learning_rate'" in message
    assert "resume=false" in message
    # Workers, evaluation and the number of steps may change.
    changes = {"workers.timeout_s": 9.0, "eval.samples": 1, "train.max_steps": 3}
    assert here(changes) == 0
    # Starting over keeps what was there.
    assert here({"train.learning_rate": 0.5}, "resume=false") == 0
    assert steps(tmp_path / "run") == [1, 2]
    assert metrics(tmp_path / "run") != lines
    assert steps(tmp_path / "run" / "previous-1") == [1, 2, 3]
    assert (tmp_path / "run" / "previous-1" / "checkpoints" / "checkpoint-3").is_dir()


def test_adapters_go_on_and_end_as_a_merged_policy(here, tmp_path, policy_path, capsys):
    lora = {"policy.lora": {"rank": 4}, "train.learning_rate": 0.01}
    assert here(lora) == 0
    assert here({**lora, "train.max_steps": 4}) == 0
    unbroken = tmp_path / "unbroken"
    assert here({**lora, "train.max_steps": 4}, f"output_dir={unbroken}") == 0
    assert metrics(tmp_path / "run") == metrics(unbroken)
    merged = load(tmp_path / "run" / "policy").model.state_dict()
    before = load(policy_path).model.state_dict()
    assert merged.keys() == before.keys()
    assert any((merged[name] != before[name]).any() for name in merged)
    # A checkpoint of adapters can be evaluated, but full training would have another model as reference.
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    elsewhere = (f"policy.path={checkpoint}", f"output_dir={tmp_path / 'full'}")
    capsys.readouterr()
    assert here({}, *elsewhere) == 2
    assert "holds adapters" in capsys.readouterr().err
    assert evaluate.main([str(tmp_path / "recipe.yaml"), *elsewhere]) == 0


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
        ({"train.max_completion_length": 247}, ["'train.max_completion_length' 247", "1..246"]),
        ({"train.num_generations": 3}, ["'train.num_generations' 3", "8 rollouts"]),
        ({"train.generation_batch_size": 12, "train.num_generations": 6}, ["'train'", "divisible"]),
        ({"train.fp16": True}, ["'train.fp16'", "GPU"]),
        ({"workers.decoder_device": "cuda:99"}, ["'workers.decoder_device'", "cuda:99"]),
        ({"output_dir": __file__}, ["'output_dir'", "test_end_to_end.py"]),
        ({"policy.lora": {"target_modules": ["w_proj"]}}, ["'policy.lora.target_modules'", "w_proj"]),
        ({"workers.decoder_device": "quantum"}, ["'workers.decoder_device'", "quantum"]),
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
        expected = f"error: {folder}: none of its 1 files is a usable mesh; fix or replace them:"
    if kind == "split":
        for seed in range(2):
            creature = make_creature(seed)
            write_skinned_glb(folder / f"{seed}.glb", creature.mesh, creature.rig)
        manifest = prepare([folder], tmp_path / "prepared")
        part, other = ("train", "eval") if key == "meshes" else ("eval", "train")
        rigs = tuple(replace(rig, split=other) for rig in manifest.rigs)
        write_manifest(tmp_path / "prepared", replace(manifest, rigs=rigs))
        folder = tmp_path / "prepared"
        fix = "run `python -m data.prepare` with more rigs or another --eval"
        expected = f"error: {folder}: it has no rigs in the {part!r} split; {fix}"
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


def test_damaged_weights_are_the_users_affair(policy_path, tmp_path, here, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(policy_path, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert here({"policy.path": str(damaged)}) == 2
    assert f"{damaged} cannot be loaded" in capsys.readouterr().err


def test_a_policy_that_writes_no_whole_rig_still_trains(here, tmp_path, capsys):
    """Nine tokens are too few for a joint with its SkinTokens and the ends: everything is cut off."""
    assert here({"train.max_completion_length": 4}) == 0
    shown = capsys.readouterr()
    assert "no example rig" in shown.err
    assert evaluation(tmp_path / "run" / "after.json")["mean"]["valid"] == 0
    assert (tmp_path / "run" / "policy").is_dir()
    for line in metrics(tmp_path / "run"):
        assert (line["reward"], line["rig/valid"], line["frac_reward_zero_std"]) == (0, 0, 1)


# ------------------------------------------------------------------ several processes


def launch_two(recipe: Path, cwd: Path, *arguments: object, **environment: str) -> str:
    """Two processes on the CPU; their standard error."""
    result = subprocess.run(
        [
            BIN / "accelerate",
            "launch",
            "--main_process_port",
            "0",
            *arguments,
            ROOT / "rl/train_grpo.py",
            recipe,
        ],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


TWO_PROCESSES = {"train.per_device_train_batch_size": 4, "train.max_steps": 3, "train.save_steps": 3}


def test_two_processes_share_one_reward_service(policy_path, tmp_path):
    changes = {**TWO_PROCESSES, "workers": {"backend": "ray", "count": 1}}
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", changes)
    errors = launch_two(
        recipe,
        tmp_path,
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        ACCELERATE_USE_CPU="true",
    )
    assert errors.count("GRPO: 100%") >= 1
    assert steps(tmp_path / "run") == [1, 2, 3]
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    for line in metrics(tmp_path / "run"):
        # Eight rollouts, four from either process: validity is counted in eighths.
        assert (line["rig/valid"] * 8) % 1 == 0
        assert line["rig/unscored"] == 0
        assert line["reward"] > 0
    assert load(tmp_path / "run" / "policy")


@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication with g++")
def test_zero_2_trains_as_plain_data_parallel_does(policy_path, tmp_path, here):
    """DeepSpeed on two CPU processes; minutes the first time, when it compiles its communication."""
    configuration = (ROOT / "recipes/accelerate/zero2.yaml").read_text()
    configuration = re.sub(r"num_processes: \d+", "num_processes: 2", configuration)
    (tmp_path / "zero2.yaml").write_text(configuration)
    zero = tiny.write_recipe_file(
        tmp_path / "zero.yaml", policy_path, tmp_path / "zero", {**TWO_PROCESSES, "train.ddp_backend": "gloo"}
    )
    launch_two(zero, tmp_path, "--config_file", tmp_path / "zero2.yaml", DS_ACCELERATOR="cpu")
    assert (tmp_path / "zero" / "checkpoints" / "checkpoint-3" / "zero_to_fp32.py").is_file()

    plain = tiny.write_recipe_file(tmp_path / "plain.yaml", policy_path, tmp_path / "plain", TWO_PROCESSES)
    launch_two(
        plain,
        tmp_path,
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        ACCELERATE_USE_CPU="true",
    )
    for own, other in zip(metrics(tmp_path / "zero"), metrics(tmp_path / "plain"), strict=True):
        for key in ("reward", "kl", "entropy", "rig/valid", "rewards/coverage/mean"):
            assert own[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6)
    assert to_mapping(load_recipe(tmp_path / "zero" / "recipe.yaml"))["train"]["ddp_backend"] == "gloo"
    assert load(tmp_path / "zero" / "policy")
