"""Keys and defaults of the recipe sections train_guard, profile and report."""

from __future__ import annotations

from dataclasses import dataclass

from data.typed_recipe import RecipeError, require_not_negative, require_positive


@dataclass(frozen=True)
class TrainGuardRecipe:
    """What a run does about steps that are not finite, and when it saves and stops by the clock."""

    max_bad_steps: int = 3
    """Consecutive steps with a loss or gradient that is not finite after which the run stops; above 0. Such a
    step is skipped, counted, and written to `output_dir/bad_steps/`. Source: this project."""

    save_every_minutes: float | None = None
    """Also save a checkpoint when this many minutes have passed since the last one, by the main process's
    clock; above 0, or null. Source: this project."""

    stop_after_minutes: float | None = None
    """When the command has run for this many minutes, start-up included, finish the step, save and exit with
    0, for queues with a time limit. Nothing is evaluated or exported then; the same command resumes. A
    finished run has `policy/` in `output_dir`. Above 0, or null. Source: this project."""

    def __post_init__(self) -> None:
        limits = [
            name for name in ("save_every_minutes", "stop_after_minutes") if getattr(self, name) is not None
        ]
        require_positive("train_guard", self, "max_bad_steps", *limits)


@dataclass(frozen=True)
class ProfileRecipe:
    """A profile of some steps by torch's profiler."""

    steps: tuple[int, int] | None = None
    """First and last step to profile, counted from 1, such as [3, 5]; null for none; not after
    `train.max_steps`. Every process writes a trace for Perfetto and a table of operators to
    `output_dir/profile/` (docs/before_a_run.md). Source: this project."""

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps[0] <= self.steps[1]:
            raise RecipeError(
                f"'profile.steps' {list(self.steps)} must be the first and the last step, such as [3, 5]"
            )


@dataclass(frozen=True)
class ReportRecipe:
    """Rollouts that a run keeps in `output_dir/rollouts/` (docs/watching_a_run.md), and the page that
    `python -m rl.report` makes of it (docs/report.md)."""

    every: int = 0
    """Keep the best and the worst rig of a group of the first step, of each multiple of this many steps and
    of the last, and the first rollout of every kind of failure of any step; 0 for none. Source: this
    project."""

    max_megabytes: int = 256
    """Largest size of `rollouts/`, MiB; above 0. Beyond it, steps between the first and the latest are
    dropped. Source: this project."""

    meshes: int = 4
    """Held-out meshes whose rigs the page shows in 3D, spread evenly over all; at least 0. Source: this
    project."""

    def __post_init__(self) -> None:
        require_not_negative("report", self, "every", "meshes")
        require_positive("report", self, "max_megabytes")
