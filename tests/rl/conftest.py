"""The tiny policy and what tests of training share."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy.bundle import RigPolicy
from rl.recipe import Recipe
from tests.rl import tiny


@pytest.fixture(scope="session", autouse=True)
def _quick_garbage_collection() -> None:
    """Every training collects garbage at its start; what the imports left need not be looked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random policy; tests must not write there."""
    path = tmp_path_factory.mktemp("policy") / "tiny"
    tiny.make_policy().save(path)
    return path


@pytest.fixture
def policy(policy_path: Path) -> RigPolicy:
    """The tiny policy, to change as a test likes."""
    return RigPolicy.load(policy_path)


@pytest.fixture
def make_recipe(policy_path: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Recipes for the tiny policy: `make_recipe({"train.max_steps": 3})`; output in tmp_path/run."""

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        return tiny.make_recipe(policy_path, tmp_path / "run", changes)

    return make
