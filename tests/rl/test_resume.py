"""Stopping and resuming a run: Ctrl-C, SIGTERM, damaged checkpoints, changed recipes, adapters."""

import os
import shutil
import signal
import subprocess

import pytest

from policy.bundle import load
from rewards.service import InlineRewardService
from rl import evaluate
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
    assert "interrupted" in seen
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


def test_sigterm_is_handled_like_ctrl_c(here, tmp_path, monkeypatch, capsys):
    """As schedulers and torchrun stop a process: in the third batch of rollouts."""
    submit, calls = InlineRewardService.submit, []

    def terminated(*arguments):
        calls.append(arguments)
        if len(list((tmp_path / "run").glob("checkpoints/*"))) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return submit(*arguments)

    monkeypatch.setattr(InlineRewardService, "submit", terminated)
    assert here({"train.max_steps": 9}) == 130
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    assert steps(tmp_path / "run") == [1, 2]
    monkeypatch.undo()
    assert here({"train.max_steps": 3}) == 0
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_incomplete_checkpoints_are_ignored(here, tmp_path, capsys):
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
    assert f"resuming from {whole}" in capsys.readouterr().err
    assert not list((run / "trainer").glob("checkpoint-*"))
    assert here({"train.max_steps": 4}, f"output_dir={unbroken}") == 0
    assert metrics(run) == metrics(unbroken)


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
