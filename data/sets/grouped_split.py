"""The train/eval split by groups of related items, so that siblings never stand on both sides."""

import hashlib
from collections.abc import Mapping, Sequence

from data.sets.dataset import NamedItem


def split_groups(
    items: Sequence[NamedItem], groups: Mapping[str, str | None], eval_count: int, seed: int = 0
) -> tuple[list[NamedItem], list[NamedItem]]:
    """Split into (train, eval) so that each group stands on one side, regardless of the order of the items.

    `items` have a unique `name`; `groups` maps names to groups. An item without a group (None or missing) is
    its own group. The number of held-out items is as close to `eval_count` as whole groups allow (of two
    equally close numbers, the smaller); if `eval_count` is above 0 and there are two groups, each side gets
    at least one. Of all such splits, the one that holds out the first groups in the order of a hash of
    (seed, group) is taken, so an added item usually changes the side of few others. If no item has a group,
    the split is that of `data.sets.dataset.split`. Both lists keep the given order.
    """
    members: dict[tuple[bool, str], int] = {}
    keys = []
    for item in items:
        group = groups.get(item.name)
        keys.append((group is not None, item.name if group is None else group))
        members[keys[-1]] = members.get(keys[-1], 0) + 1
    if eval_count <= 0 or len(members) < 2:
        return list(items), []
    ordered = sorted(members, key=lambda key: (_hash(f"{seed}:{key[1]}"), key[1], key[0]))
    chosen = _closest([members[key] for key in ordered], eval_count)
    held_out = {ordered[index] for index in chosen}
    train = [item for item, key in zip(items, keys, strict=True) if key not in held_out]
    return train, [item for item, key in zip(items, keys, strict=True) if key in held_out]


def _closest(sizes: list[int], target: int) -> list[int]:
    """Indices of some but not all `sizes` whose sum is closest to `target`; the lexicographically first ones.

    A set of possible sums is an integer whose bit s is set if the sum s is possible.
    """
    # A larger sum is further from the target than an empty selection, or than the smallest size alone.
    limit = max(2 * target, min(sizes))
    mask = (1 << (limit + 1)) - 1
    # sums[i]: possible sums of sizes[i:].
    sums = [1]
    for size in reversed(sizes):
        sums.append((sums[-1] | sums[-1] << size) & mask)
        if sums[-1] == sums[-2]:
            sums[-1] = sums[-2]  # Share memory: with many groups, most sets are full.
    sums.reverse()
    allowed = [total for total in range(1, min(limit, sum(sizes) - 1) + 1) if sums[0] >> total & 1]
    left = min(allowed, key=lambda total: (abs(total - target), total))
    chosen = []
    for index, size in enumerate(sizes):
        if size <= left and sums[index + 1] >> (left - size) & 1:
            chosen.append(index)
            left -= size
    return chosen


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
