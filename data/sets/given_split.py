"""The train/eval split that a file gives, refused where it leaves a rig out or divides a group."""

from collections.abc import Mapping, Sequence

from data.mesh import MeshError
from data.sets.groups import GroupedRig, Groups

# Names that data sets give the splits that are not trained on.
HELD_OUT = ("eval", "dev", "val", "valid", "validation", "test")


def held_out_names(rigs: Sequence[GroupedRig], splits: Groups, groups: Mapping[str, str | None]) -> set[str]:
    """Names of the rigs whose split is one of HELD_OUT; `groups` maps names to groups, None for no group.

    Raises MeshError for a rig without a split or with an unknown one, and for a group on both sides.
    """
    given = splits.of_all(rigs)
    first: dict[str, GroupedRig] = {}
    for rig in rigs:
        split, group = given[rig.name], groups.get(rig.name)
        if split is None:
            raise MeshError(f"{splits.label}: {rig.source} has no split; add it there, or skip the file")
        if split not in ("train", *HELD_OUT):
            raise MeshError(
                f"{splits.label}: {rig.source} has the split {split!r}; use train or {', '.join(HELD_OUT)}"
            )
        if group is None:
            continue
        other = first.setdefault(group, rig).name
        if (given[other] == "train") != (split == "train"):
            names = (other, rig.name) if split != "train" else (rig.name, other)
            raise MeshError(
                f"{splits.label}: the group {group!r} is on both sides ({names[0]!r} for training, "
                f"{names[1]!r} held out); correct the split or the groups"
            )
    return {name for name, split in given.items() if split != "train"}
