"""Checks Python, the project's requirements and the CUDA build of torch against what is installed."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from rl.preflight.finding import Finding, ok, problem, warning

_PROJECT = "tokenrig-rl"
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_SHOWN = ("torch", "trl", "transformers", "accelerate", "ray")
# Older versions unpickle `.ckpt` files unsafely even with weights_only=True.
_SAFE_TORCH = Version("2.10")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def requirements() -> list[Requirement]:
    """The project's own requirements, without those of its extras: from the checkout, else as installed."""
    if _PYPROJECT.is_file():
        lines = tomllib.loads(_PYPROJECT.read_text())["project"]["dependencies"]
    else:
        lines = [line for line in metadata.requires(_PROJECT) or () if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_findings(
    required: Sequence[Requirement], installed: Callable[[str], str | None] = installed_version
) -> list[Finding]:
    """A problem for each requirement that is not met; one line of versions if all are."""
    problems = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        found = installed(requirement.name)
        # A local version such as 2.13.0+cpu counts as 2.13.0.
        if found is not None and requirement.specifier.contains(Version(found).public, prereleases=True):
            continue
        has = f"{requirement.name} {found} is installed" if found else f"{requirement.name} is not installed"
        problems.append(
            problem(
                "versions",
                f"{has}, but {_PROJECT} needs {requirement.name}{requirement.specifier}; "
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
        )
    if problems:
        return problems
    python = ".".join(map(str, sys.version_info[:3]))
    shown = ", ".join(f"{name} {installed(name)}" for name in _SHOWN)
    torch_version = installed("torch")
    if torch_version is not None and Version(Version(torch_version).public) < _SAFE_TORCH:
        return [
            warning(
                "versions",
                f"torch {torch_version} trains, but `.ckpt` files are read with torch {_SAFE_TORCH} or later "
                "only; upgrade torch before python -m policy.convert",
            )
        ]
    return [ok("versions", f"Python {python}, {shown}")]


def nvidia_driver() -> str | None:
    """Version of the NVIDIA kernel driver of this machine, None if there is none."""
    if not _DRIVER_FILE.is_file():
        return None
    found = re.search(r"Kernel Module\D*?(\d+\.\d+(?:\.\d+)?)", _DRIVER_FILE.read_text())
    return found[1] if found else "of unknown version"


def cuda_finding_here() -> Finding | None:
    """`cuda_finding` of this machine."""
    return cuda_finding(torch.version.cuda, torch.cuda.is_available(), nvidia_driver())


def cuda_finding(build: str | None, usable: bool, driver: str | None) -> Finding | None:
    """Whether torch's CUDA build and the driver fit together; None on a machine without an NVIDIA driver.

    build: torch's CUDA version, None for a build without; usable: torch finds a GPU.
    """
    if usable or driver is None:
        return None
    if build is None:
        return warning(
            "CUDA",
            f"this machine has an NVIDIA driver ({driver}), but torch {torch.__version__} is built without "
            "CUDA, so that everything runs on the CPU; install a CUDA build of torch",
        )
    return problem(
        "CUDA",
        f"torch is built for CUDA {build}, which finds no GPU with this machine's driver {driver}; update "
        "the driver, install a build of torch for an older CUDA, or check CUDA_VISIBLE_DEVICES",
    )
