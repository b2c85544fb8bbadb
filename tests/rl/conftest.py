"""Fixtures: the tiny policy, recipes for it, and the training command in this process."""

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.stop_signals import STOP_SIGNALS
from policy.bundle import RigPolicy
from rl import train_grpo
from rl.recipe import Recipe
from tests.rl import tiny


@pytest.fixture(scope="session", autouse=True)
def _quick_garbage_collection() -> None:
    """Every training run collects garbage when it starts; exempt the objects left by imports."""
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


@pytest.fixture
def _signals() -> Iterator[None]:
    """A run that is stopped in this process ignores further signals; restore the handlers."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in tests started in the background
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def here(policy_path: Path, tmp_path: Path, _signals: None) -> Callable[..., int]:
    """Run the command in this process, inline: `here({"train.max_steps": 3}, "resume=false")`."""

    def command(changes: dict[str, Any] | None = None, *overrides: str) -> int:
        recipe = tmp_path / "recipe.yaml"
        tiny.write_recipe_file(recipe, policy_path, tmp_path / "run", changes or {})
        return train_grpo.main([str(recipe), *overrides])

    return command
