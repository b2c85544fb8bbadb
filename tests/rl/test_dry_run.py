"""`--dry-run`: every part of a run once, with times and memory, and nothing left behind, also on failure."""

import os
import subprocess
from pathlib import Path

import pytest
import trimesh

from data import make_creature
from rl import train_grpo
from rl.dry_run import few_files, shortened
from rl.peak_memory import read_peak, reset_peak
from rl.trainer import RigGRPOTrainer
from tests.rl import tiny
from tests.rl.commands import BIN, ROOT, TIMEOUT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PARTS = (
    "start",
    "evaluation",
    "rollout",
    "log-probs",
    "reward wait",
    "update",
    "checkpoint",
    "export",
    "rig",
)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def rows(output: str) -> dict[str, list[str]]:
    """The cells behind each part's name."""
    return {
        name: line[len(name) :].split()
        for line in output.splitlines()
        for name in PARTS
        if line.startswith(name)
    }


def test_a_dry_run_runs_every_part_and_writes_nothing(here, tmp_path, capsys):
    assert here({"train.max_steps": 500, "train.save_steps": 100}, "--dry-run") == 0
    assert [path.name for path in files(tmp_path)] == ["recipe.yaml"]
    printed = capsys.readouterr().out
    found = rows(printed)
    assert set(found) == set(PARTS)
    for cells in found.values():
        assert float(cells[0]) >= 0  # seconds
        assert cells[3] in ("MiB", "GiB")
    assert "resume and step 2" in printed
    assert printed.splitlines()[-1].startswith("ok")
    assert str(tmp_path) not in printed


def test_a_dry_run_leaves_an_earlier_run_as_it_is(here, tmp_path):
    assert here({"eval.before_and_after": False}) == 0
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path / "run")}
    assert here({"eval.before_and_after": False}, "--dry-run", "train.learning_rate=0.5") == 0
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "run")} == before


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_dry_run_leaves_nothing(here, tmp_path, monkeypatch, failure):
    def fail(*arguments, **options):
        assert any(path.name.startswith(".dry-run-") for path in tmp_path.iterdir())
        raise failure("the update fails")

    monkeypatch.setattr(RigGRPOTrainer, "compute_loss", fail)
    if failure is KeyboardInterrupt:
        assert here({"eval.before_and_after": False}, "--dry-run") == 130
    else:
        with pytest.raises(RuntimeError, match="the update fails"):
            here({"eval.before_and_after": False}, "--dry-run")
    assert [path.name for path in files(tmp_path)] == ["recipe.yaml"]


@pytest.mark.slow
def test_two_processes_share_a_temporary_folder(policy_path, tmp_path):
    """With Ray; the folder is made by the main process and removed when both are done."""
    changes = {"train.per_device_train_batch_size": 4, "workers": {"backend": "ray", "count": 1}}
    changes["eval.before_and_after"] = False
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", changes)
    command = [
        BIN / "accelerate",
        "launch",
        "--main_process_port",
        "0",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    result = subprocess.run(
        [*command, ROOT / "rl/train_grpo.py", recipe, "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ok: ") == 1
    assert {"rollout", "update", "checkpoint"} <= set(rows(result.stdout))
    assert [path.name for path in files(tmp_path)] == ["r.yaml"]


def test_a_dry_run_takes_few_meshes_and_no_settings_of_long_runs(make_recipe, tmp_path):
    for seed in range(9):
        mesh = make_creature(seed).mesh
        trimesh.Trimesh(mesh.vertices, mesh.faces).export(tmp_path / f"mesh_{seed}.obj")
    recipe = make_recipe(
        {
            "data.meshes": str(tmp_path / "*.obj"),
            "train.max_steps": 9,
            "train_guard": {"save_every_minutes": 1.0, "stop_after_minutes": 1.0},
            "profile": {"steps": [2, 3]},
        }
    )
    short = shortened(recipe, tmp_path / "elsewhere", groups=1)
    assert short.output_dir == str(tmp_path / "elsewhere")
    # A group's mesh and four in reserve, spread over the nine.
    assert [Path(name).stem for name in short.data.meshes] == [f"mesh_{seed}" for seed in (0, 1, 3, 5, 7)]
    assert short.data.eval_count == 1
    assert (short.train["max_steps"], short.train["report_to"]) == (1, "none")
    assert short.profile.steps is short.train_guard.stop_after_minutes is None
    assert few_files(str(tmp_path / "none*"), 3) == [str(tmp_path / "none*")]
    assert few_files(None, 3) is None


def test_the_option_belongs_to_training_alone(capsys):
    with pytest.raises(SystemExit):
        train_grpo.main(["--help"])
    assert "--dry-run" in capsys.readouterr().out


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_peaks_begin_anew():
    reset_peak()
    held = bytearray(200 << 20)
    high = read_peak().resident
    del held
    reset_peak()
    assert read_peak().resident <= high - (150 << 20)
