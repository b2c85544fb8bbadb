"""One long run suffers every fault in turn; its final policy equals the undisturbed one's bit for bit."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from policy.bundle import RigPolicy
from rl.run_files import METRICS_FILE
from tests.rl import tiny
from tests.rl.commands import BIN, ROOT, TIMEOUT, metrics, steps
from tests.soak.campaign import FOLDER
from tests.soak.faults import FAULTS, Fault, Running

pytestmark = pytest.mark.soak

HERE = Path(__file__).parent
# Steps that the run makes between two faults, at least, and the steps in all: enough for each fault.
STEPS_BETWEEN, STEPS = 2, 150
CHANGES = {
    "data.train_count": 6,
    "workers": {"backend": "ray", "count": 2, "min_deadline_s": 5},
    "eval.before_and_after": False,
    "train.max_steps": STEPS,
    "train.save_steps": 2,
    "train.save_total_limit": 3,
    "train.max_completion_length": 80,
}
# Of the service, not of the training: restarts and times differ.
VARYING = ("workers/",)


@contextmanager
def ray_head() -> Iterator[tuple[psutil.Process, str]]:
    """A Ray cluster as its owner starts one, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ("--include-dashboard=false", "--num-cpus=2", "--disable-usage-stats", "--block")
    started = subprocess.Popen(
        [BIN / "ray", "start", "--head", f"--port={port}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    head = psutil.Process(started.pid)
    try:
        wait(lambda: {"gcs_server", "raylet"} <= {p.name() for p in head.children(recursive=True)})
        yield head, f"127.0.0.1:{port}"
    finally:
        for process in (*head.children(recursive=True), head):
            if process.is_running():
                process.kill()
        started.wait()


def wait(ready, limit: float = TIMEOUT) -> None:
    end = time.monotonic() + limit
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def await_steps(output: Path, process: subprocess.Popen) -> None:
    """Until the run has made STEPS_BETWEEN more steps, or ended."""
    goal = last_step(output) + STEPS_BETWEEN
    wait(lambda: last_step(output) >= goal or process.poll() is not None)


def await_text(text: str, file: Path, start: int, process: subprocess.Popen) -> None:
    """Until the file has `text` after its first `start` characters, or the run ended."""
    wait(lambda: text in file.read_text()[start:] or process.poll() is not None)


def command(start: str, recipe: Path, *overrides: str) -> list:
    script = [ROOT / "rl/train_grpo.py", recipe, *overrides]
    if start == "accelerate":
        single = ROOT / "recipes/accelerate/single.yaml"
        return [BIN / "accelerate", "launch", "--quiet", "--config_file", single, *script]
    if start.endswith(".py"):
        return [sys.executable, HERE / start, recipe, *overrides]
    return [sys.executable, *script]


def last_step(output: Path) -> int:
    """The last step of the metrics; 0 before the first."""
    path = output / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def suffer(fault: Fault, recipe: Path, output: Path, folder: Path, more: list[Fault]) -> str:
    """Start the command, inject `fault` and those of `more` that follow within it; its standard error.

    All but the last leave the run going.
    """
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        cluster = ray_head() if fault.start == "external" else None
        head, address = cluster.__enter__() if cluster else (None, None)
        try:
            process = subprocess.Popen(
                command(fault.start, recipe, *([f"ray.address={address}"] if address else [])),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **({"RAY_AUTH_MODE": "token"} if address else {})},
                # A test run in the background ignores Ctrl-C, and its children would inherit that.
                preexec_fn=default_interrupt,
                start_new_session=True,
            )
            run = Running(psutil.Process(process.pid), recipe, output, head)
            try:
                for each in [fault, *more]:
                    await_steps(output, process)
                    trainers = run.trainers()
                    if each.start != "full_disk.py":
                        assert process.poll() is None, f"{each.name}: {errors.read_text()}"
                    said = len(errors.read_text())
                    each.inject(run)
                    if each.exit_code is None and each.says:
                        await_text(each.says, errors, said, process)
                        assert process.poll() is None, f"{each.name}: {errors.read_text()}"
                process.wait(TIMEOUT)
                # The rank of a dead launcher finishes its step.
                assert not psutil.wait_procs(trainers, TIMEOUT)[1]
            finally:
                if process.poll() is None:
                    process.kill()
        finally:
            if cluster:
                cluster.__exit__(None, None, None)
    text = errors.read_text()
    last = [fault, *more][-1]
    assert process.returncode == last.exit_code, f"{last.name}: {process.returncode}\n{text}"
    assert last.says in text, f"{last.name}: {text}"
    return text


def default_interrupt() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_every_fault_in_one_run():
    """Resumes after the last fault in `SOAK_DIR/faults/done.json`; delete the folder to start over."""
    folder = FOLDER / "faults"
    output, undisturbed, done = folder / "run", folder / "undisturbed", folder / "done.json"
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tiny.make_policy().save(folder / "policy")
        tiny.write_recipe_file(recipe, folder / "policy", output, CHANGES)
    record = json.loads(done.read_text()) if done.exists() else []
    assert [entry["fault"] for entry in record] == [fault.name for fault in FAULTS[: len(record)]]
    expected = FAULTS[len(record) - 1].afterwards if record else ""
    segment: list[Fault] = []
    for fault in FAULTS[len(record) :]:
        segment.append(fault)
        if fault.exit_code is None:
            continue
        began, first = time.monotonic(), last_step(output)
        text = suffer(segment[0], recipe, output, folder, segment[1:])
        assert expected in text, f"before {fault.name}: {text}"
        record += [{"fault": each.name, "exit_code": each.exit_code} for each in segment]
        record[-1] |= {"from": first, "to": last_step(output), "seconds": round(time.monotonic() - began)}
        if fault.damage is not None:
            fault.damage(output)
        done.write_text(json.dumps(record, indent=1) + "\n")
        expected, segment = fault.afterwards, []
    assert not segment, "the last fault of the table must end the run"
    assert last_step(output) < STEPS, "the run ended before the faults did"
    finished = subprocess.run(command("python", recipe), capture_output=True, text=True, timeout=TIMEOUT * 3)
    assert finished.returncode == 0, finished.stderr
    assert expected in finished.stderr

    inline = command("python", recipe, f"output_dir={undisturbed}", "workers.backend=inline")
    subprocess.run(inline, check=True, capture_output=True, timeout=TIMEOUT * 3)
    assert steps(output) == list(range(1, STEPS + 1))
    assert without_service(output) == without_service(undisturbed)
    for name in ("model.safetensors", "skin_vae/model.safetensors", "config.json"):
        assert (output / "policy" / name).read_bytes() == (undisturbed / "policy" / name).read_bytes(), name
    assert not list(output.glob("bad_steps/*"))


def without_service(output: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in metrics(output)]


def test_a_loss_that_is_not_finite_skips_its_step(tmp_path: Path):
    """Two bad steps: skipped, counted, written down; the weights stay finite. Three in a row end the run."""
    tiny.make_policy().save(tmp_path / "policy")
    output = tmp_path / "run"
    changes = {**CHANGES, "train.max_steps": 8, "workers": {"backend": "inline", "count": 1}}
    recipe = tiny.write_recipe_file(tmp_path / "recipe.yaml", tmp_path / "policy", output, changes)
    run = [sys.executable, HERE / "bad_loss.py"]
    finished = subprocess.run([*run, "3,5", recipe], capture_output=True, text=True, timeout=TIMEOUT)
    assert finished.returncode == 0, finished.stderr
    assert steps(output) == list(range(1, 9))
    assert len(list((output / "bad_steps").iterdir())) == 2
    RigPolicy.load(output / "policy")  # refuses what is not finite

    stopped = tmp_path / "stopped"
    finished = subprocess.run(
        [*run, "3,4,5", recipe, f"output_dir={stopped}"], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (stopped / "policy").exists()
