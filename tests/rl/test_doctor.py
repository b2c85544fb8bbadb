"""`python -m rl.doctor`: one line per check, the exit status, and the estimate of the step time."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trimesh
from safetensors.torch import load_file, save_file

from data import make_creature
from data.run_lock import run_lock
from rl import doctor
from rl.preflight.launch import Launch, StepBatch, launch_from_environment, launch_from_file
from rl.preflight.step_time import PartTimes, estimate_step, measure_parts, reward_wait
from tests.rl import tiny
from tests.rl.training_runs import Run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def examine(policy_path, tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, dict[str, str]]]:
    """Run the doctor in this process: its exit status, and `level text` by check."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def command(*arguments: str, policy: Path = policy_path, **changes):
        values = {key.replace("__", "."): value for key, value in changes.items()}
        recipe = tiny.write_recipe_file(tmp_path / "recipe.yaml", policy, tmp_path / "run", values)
        status = doctor.main([str(recipe), *arguments])
        lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        found = {rest[:15].strip(): f"{level} {rest[15:]}" for level, rest in lines if level != "this"}
        return status, found

    return command


def damaged(policy_path: Path, copy: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the policy whose weights `change` has changed."""
    copy.mkdir()
    for path in policy_path.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(policy_path)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


# ------------------------------------------------------------------ the command


def test_a_recipe_that_can_run(examine, tmp_path):
    status, found = examine()
    assert status == 0
    assert {line.split()[0] for line in found.values()} == {"ok"}
    assert set(found) == {
        *("recipe", "launch", "batch", "versions", "GPU", "threads", "disk", "output_dir"),
        *("policy", "meshes", "memory", "step time"),
    }
    assert "3 to train on, 2 held out" in found["meshes"]
    assert "2 meshes of 4 rollouts" in found["batch"]
    assert not (tmp_path / "run").exists()  # nothing is written


def test_an_invalid_recipe(examine):
    status, found = examine("train.learning_rat=1")
    assert status == 2
    assert found["recipe"].startswith("problem")
    assert "learning_rate" in found["recipe"]


def test_a_batch_that_groups_do_not_fill(examine):
    status, found = examine(train__per_device_train_batch_size=6)
    assert (status, found["recipe"].split()[0]) == (2, "problem")


@pytest.mark.parametrize("part", ["model.safetensors", "skin_vae/model.safetensors"])
def test_a_truncated_file(examine, policy_path, tmp_path, part):
    copy = damaged(policy_path, tmp_path / "copy", lambda weights: None)
    (copy / part).write_bytes((copy / part).read_bytes()[:-100])
    status, found = examine(policy=copy)
    assert status == 2
    assert found["policy"].startswith("problem")
    assert str(copy) in found["policy"]
    assert found["meshes"].startswith("ok")  # the other checks still run


def test_a_weight_that_is_not_finite(examine, policy_path, tmp_path):
    def poison(weights):
        weights["transformer.model.norm.weight"][3] = float("nan")

    status, found = examine(policy=damaged(policy_path, tmp_path / "copy", poison))
    assert status == 2
    assert found["policy"].startswith("problem")
    assert "NaN" in found["policy"]
    assert "norm.weight" in found["policy"]


def test_a_missing_policy(examine, tmp_path):
    status, found = examine(policy=tmp_path / "none")
    assert status == 2
    assert "no such directory" in found["policy"]


def test_meshes_that_cannot_be_read_are_counted(examine, tmp_path, capsys):
    folder = tmp_path / "meshes"
    folder.mkdir()
    for seed in range(3):
        mesh = make_creature(seed).mesh
        trimesh.Trimesh(mesh.vertices, mesh.faces).export(folder / f"{seed}.obj")
    (folder / "broken.glb").write_bytes(b"glTF")
    status, found = examine("--no-measure", data__meshes=str(folder))
    assert status == 0
    assert found["meshes"].startswith("warning")
    assert "1 of 4 files skipped" in found["meshes"]
    assert "step time" not in found
    status, found = examine(data__meshes=str(folder / "broken.glb"))
    assert (status, found["meshes"].split()[0]) == (2, "problem")


def test_a_directory_that_cannot_be_used(examine, here, tmp_path):
    (tmp_path / "file").write_text("")
    status, found = examine("--no-measure", f"output_dir={tmp_path / 'file' / 'run'}")
    assert status == 2
    assert "is a file" in found["recipe"]
    assert here({"eval.before_and_after": False, "train.max_steps": 1}) == 0
    status, found = examine("--no-measure", train__max_steps=2, eval__before_and_after=False)
    assert status == 0
    assert "resumes from checkpoint-1" in found["output_dir"]
    with run_lock(tmp_path / "run"):
        status, found = examine("--no-measure", train__max_steps=2, eval__before_and_after=False)
    assert status == 2
    assert str(os.getpid()) in found["output_dir"]  # another run: its process is reported
    status, found = examine("--no-measure", train__learning_rate=0.5)
    assert status == 2
    assert "different 'train.learning_rate'" in found["output_dir"]


def test_an_option_that_this_machine_cannot_do(examine):
    status, found = examine(train__fp16=True)
    assert status == 2
    assert found["dtype"].startswith("problem")


def test_the_doctor_of_another_process_is_silent(examine, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert examine() == (0, {})


# ------------------------------------------------------------------ how the run is launched


def test_launches_from_files_and_from_the_environment(tmp_path):
    zero = launch_from_file(ROOT / "recipes/accelerate/zero2.yaml", {})
    assert (zero.processes, zero.sharding, zero.threads) == (8, "zero2", None)
    environment = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}
    environment |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert launch_from_environment(environment) == Launch(4, 2, "zero3", 3)
    assert launch_from_environment({}) == Launch()
    assert launch_from_environment({"ACCELERATE_USE_FSDP": "true"}).sharding == "fsdp"


def test_two_processes_on_a_cpu_need_the_launcher_of_this_project(examine):
    file = ROOT / "recipes/accelerate/two_cores.yaml"
    assert launch_from_file(file, {}).processes == 2
    status, found = examine("--no-measure", "--config_file", str(file))
    assert status == 0
    assert found["launch"].startswith("ok 2 processes with python -m rl.launch")


def test_processes_of_a_configuration_count_for_the_batch(examine, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n")
    batch = {"train__per_device_train_batch_size": 2}
    status, found = examine("--no-measure", "--config_file", str(file), **batch)
    assert status == 0
    assert "2 processes x 2 rollouts = 1 meshes of 4" in found["batch"]
    assert found["batch"].startswith("warning")  # a group is split over the processes
    assert examine("--no-measure", **batch)[0] == 2  # one process has no whole group
    assert "WORLD_SIZE" not in os.environ
    status, found = examine("--config_file", str(tmp_path / "none.yaml"))
    assert (status, found["recipe"].split()[0]) == (2, "problem")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, (8, 1.0, False)),
        ({"gradient_accumulation_steps": 4}, (32, 1.0, False)),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, (16, 2.0, False)),
        ({"steps_per_generation": 2}, (16, 0.5, True)),
        ({"num_iterations": 2}, (8, 0.5, True)),
    ],
)
def test_the_batch_of_a_step(make_recipe, train, expected):
    batch = StepBatch.of({**make_recipe().train, **train}, 1)
    assert (batch.rows, batch.generations, batch.stale) == expected


# ------------------------------------------------------------------ step time


def test_a_step_is_the_sum_of_its_parts(make_recipe):
    """Two groups of 4 in one micro-batch of 8: rollout 3, reference 1, update 4 + 0.5.

    Inline, the rewards of two groups at 1 + 0.25 each follow the rollout: 2.5.
    """
    recipe = make_recipe({"train.beta": 0.1})
    times = PartTimes(3.0, 100.0, 120, True, 1.0, 4.0, 0.5, 1.0, 0.25)
    estimate = estimate_step(recipe, StepBatch.of(recipe.train, 1), times, 2, 1, 1, held_out=2)
    assert estimate.step == pytest.approx(3 + 1 + 2.5 + 4.5)
    # 2 meshes x 2 samples are half a batch, and one group's rewards.
    assert estimate.evaluation == pytest.approx(1.5 + 1.25)
    without = make_recipe({"train.beta": 0.0})
    assert estimate_step(without, StepBatch.of(without.train, 1), times, 2, 1, 1, 2).reference == 0


@pytest.mark.parametrize(
    ("changes", "meanwhile", "cores", "busy", "expected"),
    [
        ({}, 1.0, 2, 1, 1.5),  # 2 groups of 2 s on two cores, one busy for 1 s: (1 + 4) / 2 - 1
        ({}, 9.0, 4, 1, 0.0),  # ready before they are needed
        ({}, 1.0, 8, 1, 1.0),  # two scorers at once: 4 / 2 - 1
        ({"decoder_device": "cuda"}, 1.0, 8, 1, 2.5),  # decoded in turn: 2 x 1.5 + 0.5 - 1
    ],
)
def test_waiting_for_rewards(make_recipe, changes, meanwhile, cores, busy, expected):
    recipe = make_recipe({"workers": {"backend": "ray", "count": 2, **changes}})
    batch = StepBatch.of(recipe.train, 1)
    assert reward_wait(recipe, batch, meanwhile, 1.5, 0.5, cores, busy) == pytest.approx(expected)


def test_whole_completions_are_sampled_if_that_is_quick(make_recipe):
    recipe = make_recipe({"train.beta": 0.1})
    run = Run(recipe)
    samples = [run.bank.samples[mesh] for mesh in run.meshes.train]
    threads = torch.get_num_threads()
    times = measure_parts(recipe, run.policy, samples, StepBatch.of(recipe.train, 1), threads)
    assert torch.get_num_threads() == threads
    assert times.sampled
    assert 1 < times.tokens <= times.longest <= 160
    assert min(times.rollout, times.forward, times.update, times.optimiser, times.decode, times.score) > 0


def test_completions_that_take_too_long_are_not_sampled_whole(make_recipe, monkeypatch):
    monkeypatch.setattr("rl.preflight.step_time._BUDGET", 0.0)
    recipe = make_recipe()
    run = Run(recipe)
    samples = [run.bank.samples[mesh] for mesh in run.meshes.train]
    times = measure_parts(recipe, run.policy, samples, StepBatch.of(recipe.train, 1), 1)
    assert not times.sampled
    assert times.tokens == 160  # the limit, below the usual length
    assert times.decode is not None
    assert times.decode > 0
