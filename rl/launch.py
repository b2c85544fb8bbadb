"""Launches GRPO post-training in any number of processes: `python -m rl.launch RECIPE.yaml`.

As `accelerate launch rl/train_grpo.py RECIPE.yaml`, and with its options before the recipe, but:

1. the recipe is read before anything starts, and an error is one sentence, printed once for all processes;
2. the exit code is the run's: 0, 1 (failed), 2 (the user's mistake), and 130, 143 or 138 after SIGINT,
   SIGTERM or SIGUSR1; `accelerate launch` makes each of them 1 and adds a traceback of its own;
3. SIGUSR1 is passed on too, and after a signal processes get an hour to finish their step and save, not 30
   seconds (PET_SHUTDOWN_TIMEOUT);
4. a single process replaces the launcher instead of running under it;
5. several processes on CPUs (`distributed_type: MULTI_CPU`, or `--cpu --num_processes 2`) really start, where
   `accelerate launch` starts one unless it is given an MPI.

`python -m rl.launch -m policy.pretrain_tokenrig RECIPE.yaml` launches a pre-training stage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.launcher import LAUNCHER

_TRAINING = "rl.train_grpo"
# These end without starting a run.
_SHOWING = {"-h", "--help", "--print-recipe"}
# Exit codes of a run that was stopped by a signal and has said so.
_STOPPED = {128 + signum for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Check the recipe, launch the processes and return the exit code of the run.

    Does not return if there is only one process: this one becomes it.
    """
    options = parse_options(sys.argv[1:] if argv is None else argv)
    module = options.training_script if options.module else _TRAINING
    try:
        program = importlib.import_module(module)
    except ModuleNotFoundError as error:
        return _refuse(f"-m {module}: {error}; use {_TRAINING} or one of policy.pretrain_*")
    arguments = options.training_script_args
    if _SHOWING & set(arguments):
        return int(program.main(arguments))
    with contextlib.redirect_stdout(io.StringIO()):
        code = int(program.main([*arguments, "--print-recipe"]))
    if code:
        return code
    if options.config_file is not None and not Path(options.config_file).is_file():
        return _refuse(f"--config_file {options.config_file}: no such file; recipes/accelerate/ has examples")
    if not options.module:
        options.training_script = str(Path(__file__).with_name("train_grpo.py"))
    if _several_on_cpus(options):
        options.cpu, options.multi_gpu = False, True  # torch's launcher, which this option selects
        os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.stdout.flush()
    return _launch(options)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """accelerate's options; without `-m`, the recipe and its overrides are in `training_script_args`."""
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    parser.prog, parser.description = "python -m rl.launch", __doc__
    options = parser.parse_args(list(argv))
    if not options.module:
        options.training_script_args = [options.training_script, *options.training_script_args]
    return options


def _several_on_cpus(options: argparse.Namespace) -> bool:
    """Whether the options and their configuration file mean several processes on CPUs, without MPI."""
    values: dict[str, Any] = {}
    if options.config_file is not None:
        values = yaml.safe_load(Path(options.config_file).read_text(encoding="utf-8")) or {}
    on_cpus = options.cpu or values.get("distributed_type") == "MULTI_CPU"
    count = options.num_processes or values.get("num_processes") or 1
    hosts = options.mpirun_hostfile or (values.get("mpirun_config") or {}).get("mpirun_hostfile")
    return bool(on_cpus and count > 1 and not hosts)


def _launch(options: argparse.Namespace) -> int:
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", "3600")
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    # What they report about failed processes is said below, in a line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    launch.simple_launcher = _become
    try:
        launch.launch_command(options)
    except ChildFailedError as error:
        return _report(error.failures)
    except subprocess.CalledProcessError as error:  # DeepSpeed's launcher of several nodes
        return _exit_code(error.returncode)
    except SignalException as error:
        return 128 + error.sigval
    except (ValueError, ImportError) as error:  # options that accelerate refuses
        return _refuse(str(error))
    return 0


def _become(options: argparse.Namespace) -> None:
    """Replace this process by the single one of the run, so that signals and exit codes are its own."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(options)
    os.execvpe(command[0], command, environment)


def _report(failures: Mapping[int, Any]) -> int:
    """Print each error of the processes (by rank) once, and return the exit code of the run.

    The first process that left a sentence decides, or else the first that failed: the launcher then ends the
    others, which is no failure of theirs.
    """
    explained = {rank: failure for rank, failure in failures.items() if _sentence(failure)}
    for text in dict.fromkeys(map(_sentence, explained.values())):
        print(text, file=sys.stderr)
    rank, first = min((explained or failures).items(), key=lambda item: item[1].timestamp)
    code = _exit_code(first.exitcode)
    if not explained and code not in _STOPPED:
        print(f"failed: rank {rank} (process {first.pid}) {_ending(first.exitcode)}", file=sys.stderr)
    return code


def _sentence(failure: Any) -> str | None:
    """What the process left for its user (data/launcher.py), if it did."""
    content = failure.error_file_data
    return content["message"] if "timestamp" in content and isinstance(content["message"], str) else None


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}; its traceback is above"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + ("; the machine may have run out of memory" if name == "SIGKILL" else "")


def _exit_code(code: int) -> int:
    """As a shell gives it: 128 + signal for a process that a signal ended."""
    return 128 - code if code < 0 else code


def _refuse(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
