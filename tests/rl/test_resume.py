"""Stopping and resuming a run: signals, the clock, damage, a full disk, changed recipes, adapters."""

import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import data.disk_space
import data.stop_signals
import rl.stop_and_save
import rl.training
from policy.bundle import load
from policy.skintokens.skin_vae import SkinVAE
from rl import evaluate
from rl.trainer import RigRollout
from tests.rl import tiny
from tests.rl.commands import BIN, ROOT, TIMEOUT, evaluation, metrics, steps

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_ctrl_c_keeps_the_checkpoints_and_the_run_resumes_as_if_unbroken(policy_path, tmp_path, here):
    """A terminal's Ctrl-C reaches both the launcher and the run; the resumed run uses no Ray."""
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
    assert "SIGINT: finishing this step and saving" in seen
    assert 'train_grpo.py", line' not in seen  # no traceback of ours; the launcher shows one of its own
    assert not (tmp_path / "run" / "policy").exists()
    assert not (tmp_path / "run" / "run.lock").exists()

    last = max(int(path.name[11:]) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"SIGINT: stopped after step {last} of 10000, which is saved" in seen
    assert steps(tmp_path / "run") == list(range(1, last + 1))  # no step is lost
    assert here({"train.save_steps": 2, "train.max_steps": last + 3}) == 0
    assert steps(tmp_path / "run") == list(range(1, last + 4))
    unbroken = tmp_path / "unbroken"
    assert here({"train.max_steps": last + 3}, f"output_dir={unbroken}") == 0
    # Only a run with Ray counts its workers' failures.
    interrupted = [
        {key: value for key, value in line.items() if not key.startswith("workers/")}
        for line in metrics(tmp_path / "run")
    ]
    assert interrupted == metrics(unbroken)
    assert evaluation(tmp_path / "run" / "after.json") == evaluation(unbroken / "after.json")


@pytest.fixture
def in_step_two(monkeypatch) -> Callable[[Callable[[], None]], None]:
    """Call something in the middle of step 2 of a run, once its rollouts are sampled."""

    def install(action: Callable[[], None]) -> None:
        rollout, calls = RigRollout.__call__, []

        def interrupted(self, prompts, trainer):
            result = rollout(self, prompts, trainer)
            calls.append(prompts)
            if len(calls) == 2:
                action()
            return result

        monkeypatch.setattr(RigRollout, "__call__", interrupted)

    return install


NO_EVALUATION = {"eval.before_and_after": False, "train.save_steps": 5}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_lets_the_step_finish_and_saves_it(here, tmp_path, in_step_two, capsys, signum, code):
    """As schedulers and torchrun stop a process. The next save would have been that of step 5."""
    in_step_two(lambda: os.kill(os.getpid(), signum))
    assert here({**NO_EVALUATION, "train.max_steps": 4}) == code
    message = (
        f"{signum.name}: stopped after step 2 of 4, which is saved; run the same command again to resume"
    )
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert steps(tmp_path / "run") == [1, 2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]
    # A launcher's SIGTERM while the process ends must not change its exit code.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert here({**NO_EVALUATION, "train.max_steps": 4}) == 0
    unbroken = tmp_path / "unbroken"
    assert here({**NO_EVALUATION, "train.max_steps": 4}, f"output_dir={unbroken}") == 0
    assert metrics(tmp_path / "run") == metrics(unbroken)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        own, other = (each / "checkpoints" / "checkpoint-4" / name for each in (tmp_path / "run", unbroken))
        assert own.read_bytes() == other.read_bytes()


def test_a_second_signal_stops_at_once(here, tmp_path, in_step_two, capsys, monkeypatch):
    monkeypatch.setattr(data.stop_signals, "SAME_REQUEST_SECONDS", 0.0)
    in_step_two(lambda: [os.kill(os.getpid(), signum) for signum in (signal.SIGTERM, signal.SIGINT)])
    assert here({"eval.before_and_after": False}) == 143  # of the first
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    assert steps(tmp_path / "run") == [1]
    monkeypatch.undo()
    assert here({"eval.before_and_after": False}) == 0
    assert steps(tmp_path / "run") == [1, 2]


def test_a_signal_during_the_export_leaves_nothing_half_written(here, tmp_path, monkeypatch):
    save = SkinVAE.save

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)

    monkeypatch.setattr(SkinVAE, "save", interrupted)
    assert here({"eval.before_and_after": False}) == 143
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("checkpoints", "metrics.jsonl", "recipe.yaml", "trainer")
    }
    monkeypatch.undo()
    assert here({"eval.before_and_after": False}) == 0
    assert load(tmp_path / "run" / "policy")


def test_the_clock_saves_and_stops(here, tmp_path, monkeypatch, capsys):
    """Half a minute per reading of the clock, which a step takes once and a save once more."""
    now = itertools.count(start=0.0, step=30.0)
    monkeypatch.setattr(rl.training, "command_start", lambda: 0.0)
    changes = {**NO_EVALUATION, "train.save_steps": 100, "train.max_steps": 9}
    clocks = {"train_guard": {"save_every_minutes": 0.9, "stop_after_minutes": 3.4}}
    monkeypatch.setattr(rl.stop_and_save.StopAndSave.__init__, "__defaults__", (lambda: next(now),))
    assert here({**changes, **clocks}) == 0
    error = capsys.readouterr().err.splitlines()[-1]
    # The begin at 0:00, steps 1 to 3 at 0:30, 1:00, 2:30; after 2 and 3 a save, noted at 1:30 and 3:00,
    # after which 2:00 and 3:30 are looked at: the second is the end.
    assert error == (
        "train_guard.stop_after_minutes=3.4: stopped after step 3 of 9, which is saved; run the same command "
        "again to resume"
    )
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert saved == {"checkpoint-2", "checkpoint-3"}
    assert not (tmp_path / "run" / "policy").exists()


def test_a_run_in_use_is_refused_and_the_other_trains_on(here, tmp_path, in_step_two, capsys):
    """A second command in the middle of the first one's step."""
    codes = []
    in_step_two(lambda: codes.append(here({"eval.before_and_after": False})))
    assert here({"eval.before_and_after": False}) == 0
    assert codes == [2]
    errors = capsys.readouterr().err
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    assert errors.count("error: ") == 1
    assert f"error: 'output_dir' {tmp_path / 'run'} is in use by {owner} since " in errors
    assert steps(tmp_path / "run") == [1, 2]


def test_damaged_checkpoints_are_skipped(here, tmp_path, capsys):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    four = {**NO_EVALUATION, "train.max_steps": 4, "train.save_steps": 1, "train.save_total_limit": 4}
    assert here(four) == 0
    shutil.copytree(run, unbroken)
    whole = run / "checkpoints" / "checkpoint-2"
    flip_byte(run / "checkpoints" / "checkpoint-3" / "model.safetensors")
    with (run / "checkpoints" / "checkpoint-4" / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    shutil.copytree(whole, run / "trainer" / "checkpoint-3")  # the trainer's own, never moved: not complete
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    capsys.readouterr()

    assert here(four) == 0
    errors = capsys.readouterr().err
    damaged = f"skipping a damaged checkpoint: {run}/checkpoints"
    assert f"{damaged}/checkpoint-4: optimizer.pt has 1,000 bytes instead of" in errors
    assert f"{damaged}/checkpoint-3: model.safetensors does not have the content" in errors
    assert f"resuming from {whole}" in errors
    assert not list((run / "trainer").glob("checkpoint-*"))
    assert metrics(run) == metrics(unbroken)
    names = sorted(path.name for path in (unbroken / "checkpoints" / "checkpoint-4").iterdir())
    assert sorted(path.name for path in (run / "checkpoints" / "checkpoint-4").iterdir()) == names
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        own, other = (each / "checkpoints" / "checkpoint-4" / name for each in (run, unbroken))
        assert own.read_bytes() == other.read_bytes()


def test_without_a_whole_checkpoint_the_run_does_not_start_over(here, tmp_path, capsys):
    assert here(NO_EVALUATION) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    (checkpoint / "optimizer.pt").unlink()
    capsys.readouterr()
    assert here(NO_EVALUATION) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: 'output_dir': no checkpoint in {checkpoint.parent} is whole (checkpoint-2: optimizer.pt is "
        "missing); restore the files of one, or start over with resume=false (they are kept in previous-N/)"
    )
    assert not (tmp_path / "run" / "run.lock").exists()
    assert here(NO_EVALUATION, "resume=false") == 0
    assert (tmp_path / "run" / "previous-1" / "checkpoints" / "checkpoint-2").is_dir()


def test_a_checkpoint_from_before_manifests_keeps_loading(here, tmp_path, capsys):
    """Stored by the code before manifests: adapters of rank 1 after two steps of the tiny policy."""
    run = tmp_path / "run"
    shutil.copytree(Path(__file__).parent / "reference" / "checkpoint_without_manifest", run)
    stored = run / "checkpoints" / "checkpoint-2"
    lora = {
        **{"policy.lora": {"rank": 1}, "train.learning_rate": 0.01, "train.save_total_limit": 3},
        **{"eval.before_and_after": False, "train.max_steps": 3},
    }
    assert here(lora) == 0
    assert f"resuming from {stored}" in capsys.readouterr().err
    assert steps(run) == [1, 2, 3]
    saved = torch.load(run / "checkpoints" / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert {state["step"].item() for state in saved["state"].values()} == {3}  # its moments went on
    # Half of its optimiser: refused, as a manifest would.
    (stored / "optimizer.pt").write_bytes((stored / "optimizer.pt").read_bytes()[:9000])
    shutil.rmtree(run / "checkpoints" / "checkpoint-3")
    assert here(lora) == 2
    assert "checkpoint-2: optimizer.pt is truncated or not a torch file" in capsys.readouterr().err


def test_a_full_disk_is_reported_and_costs_no_earlier_checkpoint(here, tmp_path, capsys, monkeypatch):
    """A limit on the size of files, which torch and safetensors hit in the middle of writing."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert here(NO_EVALUATION) == 0
    capsys.readouterr()
    whole = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, reason in ((150_000, "a file could not be written to its end"), (100_000, "File too large")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            assert here({**NO_EVALUATION, "train.max_steps": 3}) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(
            f"failed: checkpoint-3 could not be written to {tmp_path / 'run' / 'trainer'}"
        )
        assert reason in error
        assert not list((tmp_path / "run" / "trainer").glob("checkpoint-*"))
        assert {path.name: path.read_bytes() for path in whole.iterdir()} == files
    # Known before the step: the next checkpoint has the size of the last.
    monkeypatch.setattr(data.disk_space, "free_bytes", lambda path: 300_000)
    assert here({**NO_EVALUATION, "train.max_steps": 3}) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"failed: the next checkpoint needs \d+ kB in {whole.parent}, but the disk at /\S* has 300 kB free; "
        "free some space and run the command again",
        error,
    )
    monkeypatch.undo()
    assert here({**NO_EVALUATION, "train.max_steps": 3}) == 0


def test_the_first_evaluation_is_made_once(here, tmp_path, capsys, monkeypatch):
    assert here({"train.max_steps": 1}) == 0
    before = (tmp_path / "run" / "before.json").read_bytes()
    capsys.readouterr()
    assert here({"train.max_steps": 2}) == 0
    errors = capsys.readouterr().err
    assert f"reusing {tmp_path / 'run' / 'before.json'}" in errors
    assert "evaluate before" not in errors
    assert "evaluate after" in errors
    assert (tmp_path / "run" / "before.json").read_bytes() == before
    # Another number of rigs per mesh: another evaluation.
    assert here({"train.max_steps": 2, "eval.samples": 1}) == 0
    assert f"evaluating again: {tmp_path / 'run' / 'before.json'}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "before.json").read_text())["samples"] == 1


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_checkpoints_are_kept(here, tmp_path):
    assert here({"train.max_steps": 4, "train.save_total_limit": 2}) == 0
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"checkpoint-3", "checkpoint-4"}


def test_a_finished_run_does_not_train(here, tmp_path, capsys):
    assert here() == 0
    exported = (tmp_path / "run" / "policy" / "model.safetensors").read_bytes()
    after = evaluation(tmp_path / "run" / "after.json")
    shutil.rmtree(tmp_path / "run" / "policy")
    assert here() == 0
    assert "nothing to train" in capsys.readouterr().err
    assert steps(tmp_path / "run") == [1, 2]
    assert (tmp_path / "run" / "policy" / "model.safetensors").read_bytes() == exported
    assert evaluation(tmp_path / "run" / "after.json") == after
    # With more steps than before it resumes.
    assert here({"train.max_steps": 3}) == 0
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_another_recipes_run_is_not_resumed(here, tmp_path, capsys):
    assert here() == 0
    lines = metrics(tmp_path / "run")
    assert here({"train.learning_rate": 0.5}) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "'train.learning_rate'" in message
    assert "resume=false" in message
    # Workers, evaluation and the number of steps may change.
    changes = {"workers.timeout_s": 9.0, "eval.samples": 1, "train.max_steps": 3}
    assert here(changes) == 0
    # Starting over keeps the earlier run.
    assert here({"train.learning_rate": 0.5}, "resume=false") == 0
    assert steps(tmp_path / "run") == [1, 2]
    assert metrics(tmp_path / "run") != lines
    assert steps(tmp_path / "run" / "previous-1") == [1, 2, 3]
    assert (tmp_path / "run" / "previous-1" / "checkpoints" / "checkpoint-3").is_dir()


def test_adapters_resume_and_end_as_a_merged_policy(here, tmp_path, policy_path, capsys):
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
