"""The arithmetic of an ablation's tables: what each variant changed, and how it differs from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rl.evaluation_results import Difference, Evaluation, compare, mean_of, standard_error

# Measures against ground truth that the tables show, over valid rigs; table.json has all.
METRICS = (
    "unirig_j2j_valid",
    "unirig_j2b_valid",
    "unirig_b2b_valid",
    "skin_iou_valid",
    "motion_loss_valid",
)


@dataclass(frozen=True)
class Change:
    """A mean change of a measure and its standard error.

    over: what the standard error is over: the `count` seeds of a variant, whose changes are means over
    meshes; or the `count` meshes, if there is a single seed.
    """

    mean: float
    standard_error: float
    over: Literal["seeds", "meshes"]
    count: int

    @property
    def difference(self) -> Difference:
        """The same numbers as a difference between two evaluations, to be formatted like one."""
        return Difference(self.mean, self.standard_error, self.count)


@dataclass(frozen=True)
class VariantResult:
    """What one variant reached.

    seeds: those whose runs are finished. change: after − before training, by column. from_base: after
    training, variant − base with the same seed; empty for the base itself. after: means over meshes, then
    seeds.
    """

    name: str
    overrides: list[str]
    seeds: list[int]
    change: dict[str, Change]
    from_base: dict[str, Change]
    after: dict[str, float]


def change_of(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> dict[str, Change]:
    """The mean per-mesh difference second − first of each column, over pairs of evaluations (one per seed).

    With several seeds, the standard error (n − 1) is that of their mean changes; with one, that of the
    per-mesh differences. A column that only some seeds have is over those.
    """
    found = [compare(first, second) for first, second in pairs]
    changes = {}
    for column in dict.fromkeys(column for each in found for column in each):
        own = [each[column] for each in found if column in each]
        if len(own) > 1:
            means = [difference.mean for difference in own]
            changes[column] = Change(mean_of(means), standard_error(means), "seeds", len(means))
        else:
            only = own[0]
            changes[column] = Change(only.mean, only.standard_error, "meshes", only.meshes)
    return changes


def variant_result(
    name: str,
    overrides: Sequence[str],
    before: Mapping[int, Evaluation],
    after: Mapping[int, Evaluation],
    base: Mapping[int, Evaluation],
) -> VariantResult:
    """The result of a variant from its evaluations by seed; `base` are those of the base after training.

    For the base itself `base` is empty. A comparison with the base is over the seeds that both have.
    """
    columns = dict.fromkeys(column for evaluation in after.values() for column in evaluation.mean)
    return VariantResult(
        name,
        list(overrides),
        list(after),
        change_of([(before[seed], after[seed]) for seed in after]),
        change_of([(base[seed], after[seed]) for seed in after if seed in base]),
        {
            column: mean_of([found.mean[column] for found in after.values() if column in found.mean])
            for column in columns
        },
    )


def shown_columns(before: Evaluation) -> tuple[list[str], list[str]]:
    """Columns of the two tables: the total and the rewards; then valid rigs, joints and metrics."""
    names = list(before.mean)
    rewards = names[: names.index("total")]
    return ["total", *rewards], [name for name in ("valid", "joints", *METRICS) if name in names]
