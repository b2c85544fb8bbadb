"""Skeleton tokenizer: joints, parents and SkinToken codes to token ids and back, as in the release."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.tokens.vocabulary import Vocabulary

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

LOW, HIGH = -1.0, 1.0  # extent of the mesh frame, the released continuous_range


class RigTokenError(ValueError):
    """Token ids that are not a rig, malformed or truncated: an error of the policy that generated them."""


@dataclass(frozen=True)
class Skeleton:
    """A skeleton decoded from tokens, mesh frame.

    joints: (J, 3) float32; parents: (J,) int64, -1 for joint 0, parents[i] < i; cls: class name or None;
    parent_joints: (J, 3) float32, position of each joint's parent (joint 0: its own); names: ``bone_0``, …
    """

    joints: FloatArray
    parents: IntArray
    cls: str | None
    parent_joints: FloatArray
    names: tuple[str, ...]

    @property
    def bones(self) -> FloatArray:
        """(J, 6) float32: parent position, joint position."""
        return np.concatenate([self.parent_joints, self.joints], axis=1)


def discretize(values: npt.ArrayLike, bins: int, low: float = LOW, high: float = HIGH) -> IntArray:
    """Coordinates of any shape to bins 0..bins-1 (int64), computed in the precision of the input.

    clip(round_half_even((x - low) / (high - low) * bins)). Not the inverse of :func:`undiscretize`: a bin's
    centre lies halfway between two integers and is rounded to the even one, so odd bins move up by one when a
    decoded skeleton is tokenized again. Raises ValueError for values that are not finite.
    Source: specification, section 10.
    """
    x = np.asarray(values)
    if not np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("coordinates contain a value that is not finite; fix the joints before tokenizing")
    return np.clip(np.round((x - low) / (high - low) * bins), 0, bins - 1).astype(np.int64)


def undiscretize(tokens: npt.ArrayLike, bins: int, low: float = LOW, high: float = HIGH) -> FloatArray:
    """Bins of any shape to their centres (float32): (k + 0.5) / bins * (high - low) + low."""
    k = np.asarray(tokens).astype(np.float32)
    return ((k + np.float32(0.5)) / np.float32(bins) * np.float32(high - low) + np.float32(low)).astype(
        np.float32
    )


def tokenize_skeleton(
    joints: npt.ArrayLike,
    parents: Sequence[int | None] | npt.NDArray[Any],
    cls: str | None,
    vocabulary: Vocabulary,
) -> list[int]:
    """Tokenize a skeleton: ``bos, class, joint..., skeleton_eos``.

    joints: (J, 3) float, mesh frame, J >= 1; parents: J indices, parents[i] < i, parents[0] is ignored (joint
    0 is the root). A joint is ``x y z`` if its parent is the joint before it, otherwise ``branch px py pz x y
    z`` with the parent's position. An unknown class becomes "none". Raises ValueError for wrong shapes, for a
    joint before its parent and for values that are not finite. Source: specification, sections 9.2 and 10.
    """
    positions = np.asarray(joints)
    if positions.ndim != 2 or positions.shape[1] != 3 or len(positions) == 0:
        raise ValueError(f"joints have shape {positions.shape}; pass (J, 3) with at least one joint")
    if len(parents) != len(positions):
        raise ValueError(f"{len(positions)} joints have {len(parents)} parents; pass one parent per joint")
    cells = discretize(positions, vocabulary.bins).tolist()
    tokens = [vocabulary.bos, vocabulary.class_id(cls), *cells[0]]
    for i in range(1, len(cells)):
        parent = parents[i]
        if parent is None or not 0 <= parent < i:
            raise ValueError(f"joint {i} has parent {parent}; sort the joints so that parents come first")
        if parent != i - 1:
            tokens += [vocabulary.branch, *cells[int(parent)]]
        tokens += cells[i]
    tokens.append(vocabulary.skeleton_eos)
    return tokens


def detokenize(ids: Iterable[int], vocabulary: Vocabulary) -> Skeleton:
    """Decode a skeleton: the inverse of :func:`tokenize_skeleton` up to the size of a bin, as in the release.

    ids: ``bos ... skeleton_eos``, optionally followed by pads. As in the release, only the *first* id of a
    joint is validated, the others may be any id; a joint's parent is the earlier joint nearest to the given
    parent position, the latest among equals; a single incomplete joint decodes to garbage. Raises
    RigTokenError, with the released messages, where the release raises. Source: specification, section 10.
    """
    sequence = [int(token) for token in ids]
    groups, cls = _joint_groups(sequence, vocabulary)
    rows: list[list[int]] = []
    previous: list[int] | None = None
    for branch, numbers in groups:
        joint = numbers[3:] if branch else numbers
        parent = numbers[:3] if branch else previous
        rows.append((joint if previous is None or parent is None else parent) + joint)
        previous = joint
    if not rows:
        raise RigTokenError("need at least one array to stack")
    if any(len(row) != len(rows[0]) for row in rows):
        raise RigTokenError("all input arrays must have the same shape")
    bones = undiscretize(rows, vocabulary.bins)
    parent_joints, joints = bones[:, :3], bones[:, 3:]
    parents = _nearest_earlier(parent_joints, joints)
    if len(rows) > 1:
        parent_joints[1:] = joints[parents[1:]]
    return Skeleton(
        joints=joints,
        parents=parents,
        cls=cls,
        parent_joints=parent_joints,
        names=tuple(f"bone_{i}" for i in range(len(rows))),
    )


def _joint_groups(
    sequence: list[int], vocabulary: Vocabulary
) -> tuple[list[tuple[bool, list[int]]], str | None]:
    """Skeleton ids to ([(is a branch, its six or three ids, fewer if truncated)], class)."""
    if not sequence or sequence[0] != vocabulary.bos:
        raise RigTokenError("first token is not bos")
    end = len(sequence)
    while sequence[end - 1] == vocabulary.pad:
        end -= 1
    if sequence[end - 1] != vocabulary.skeleton_eos:
        raise RigTokenError("last token is not eos")
    groups: list[tuple[bool, list[int]]] = []
    cls: str | None = None
    branch = False
    position = 1
    while position < end - 1:
        token = sequence[position]
        if 0 <= token < vocabulary.bins:
            width = 6 if branch else 3
            groups.append((branch, sequence[position : min(position + width, end - 1)]))
            branch = False
            position += width
            continue
        if token == vocabulary.branch:
            branch = True
        elif vocabulary.class_none <= token < vocabulary.skin_first:
            cls = vocabulary.class_name(token)
        elif not vocabulary.spring <= token < vocabulary.class_none:
            raise RigTokenError(f"unexpected token found: {token}")
        position += 1
    return groups, cls


def _nearest_earlier(parent_joints: FloatArray, joints: FloatArray) -> IntArray:
    """Per joint, the earlier joint nearest to its parent position, the latest among equals: (J,) int64."""
    count = len(joints)
    parents = np.full(count, -1, dtype=np.int64)
    if count > 1:
        squared = ((parent_joints[:, None] - joints[None]) ** 2).sum(axis=-1)
        squared[np.triu_indices(count)] = np.inf
        parents[1:] = count - 1 - np.argmin(squared[1:, ::-1], axis=1)
    return parents


def rig_tokens(skeleton_tokens: Iterable[int], codes: npt.ArrayLike, vocabulary: Vocabulary) -> list[int]:
    """The full sequence of a rig: skeleton tokens, ``skin_first + code`` of joint 0, 1, ..., final eos.

    skeleton_tokens: from :func:`tokenize_skeleton`; codes: (J, tokens_per_skin) int, 0 <= code < codebook, in
    the order of the joints. Raises ValueError if the codes do not fit the skeleton or the codebook. Source:
    specification, section 9.2.
    """
    skeleton = [int(token) for token in skeleton_tokens]
    table = np.asarray(codes)
    expected = (len(detokenize(skeleton, vocabulary).joints), vocabulary.tokens_per_skin)
    if table.shape != expected:
        raise ValueError(f"codes have shape {table.shape}; this skeleton needs {expected}")
    if not np.issubdtype(table.dtype, np.integer) or table.min() < 0 or table.max() >= vocabulary.codebook:
        raise ValueError(f"codes must be integers from 0 to {vocabulary.codebook - 1}")
    return [*skeleton, *(table.astype(np.int64).ravel() + vocabulary.skin_first).tolist(), vocabulary.eos]


def tokenize_rig(
    joints: npt.ArrayLike,
    parents: Sequence[int | None] | npt.NDArray[Any],
    codes: npt.ArrayLike,
    cls: str | None,
    vocabulary: Vocabulary,
) -> list[int]:
    """Tokenize a rig: :func:`tokenize_skeleton`, then :func:`rig_tokens`."""
    return rig_tokens(tokenize_skeleton(joints, parents, cls, vocabulary), codes, vocabulary)


def split_rig(ids: Iterable[int], vocabulary: Vocabulary, strict: bool = True) -> tuple[list[int], IntArray]:
    """Split a full sequence (prompt included) into skeleton ids and codes (J, tokens_per_skin) int64.

    strict: the sequence must be one that :func:`rig_tokens` writes, optionally followed by pads: complete
    joints and branches, J * tokens_per_skin SkinTokens, the final eos. Otherwise split as the release does:
    the J * tokens_per_skin ids after the skeleton, whatever they are, modulo the codebook; the final eos is
    not checked. Both raise RigTokenError for missing tokens. Source: specification, section 11.
    """
    sequence = [int(token) for token in ids]
    if vocabulary.skeleton_eos not in sequence:
        raise RigTokenError(f"the rig is truncated: no skeleton eos among its {len(sequence)} tokens")
    where = sequence.index(vocabulary.skeleton_eos) + 1
    skeleton, rest = sequence[:where], sequence[where:]
    bones = len(detokenize(skeleton, vocabulary).joints)
    needed = bones * vocabulary.tokens_per_skin
    if strict:
        _check_complete(skeleton, vocabulary)
        found = next(
            (i for i, t in enumerate(rest) if not vocabulary.skin_first <= t < vocabulary.eos), len(rest)
        )
    else:
        found = len(rest)
    if found < needed:
        raise RigTokenError(f"the rig is truncated: {found} of the {needed} SkinTokens of its {bones} joints")
    if strict and (
        found > needed
        or rest[needed : needed + 1] != [vocabulary.eos]
        or any(token != vocabulary.pad for token in rest[needed + 1 :])
    ):
        raise RigTokenError(f"the rig does not end with its eos after {needed} SkinTokens of {bones} joints")
    codes = (np.asarray(rest[:needed], dtype=np.int64) - vocabulary.skin_first) % vocabulary.codebook
    return skeleton, codes.reshape(bones, vocabulary.tokens_per_skin)


def _check_complete(skeleton: list[int], vocabulary: Vocabulary) -> None:
    """Raise RigTokenError for ids that `detokenize` accepts but `tokenize_skeleton` never writes."""
    groups, cls = _joint_groups(skeleton, vocabulary)
    written = [vocabulary.bos, vocabulary.class_id(cls)]
    for branch, numbers in groups:
        complete = len(numbers) == (6 if branch else 3) and all(
            0 <= number < vocabulary.bins for number in numbers
        )
        if not complete or (branch and len(written) == 2):
            raise RigTokenError("the skeleton contains an incomplete joint or branch")
        written += [vocabulary.branch, *numbers] if branch else numbers
    if [*written, vocabulary.skeleton_eos] != skeleton:
        raise RigTokenError("the skeleton contains a control token outside any joint")


@dataclass(frozen=True)
class ReleasedSkeletonTokenizer:
    """The released skeleton tokenizer and its grammar as plain loops, the reference for `Grammar`.

    For comparison with the released system: raises the same built-in exceptions. Source: specification,
    sections 9.3, 9.4 and 10.
    """

    vocabulary: Vocabulary

    def tokenize(
        self, joints: npt.ArrayLike, parents: Sequence[int | None] | npt.NDArray[Any], cls: str | None
    ) -> list[int]:
        """See :func:`tokenize_skeleton`."""
        return tokenize_skeleton(joints, parents, cls, self.vocabulary)

    def detokenize(self, ids: Iterable[int]) -> Skeleton:
        """See :func:`detokenize`; raises plain ValueError, as the release does."""
        try:
            return detokenize(ids, self.vocabulary)
        except RigTokenError as error:
            raise ValueError(str(error)) from error

    def allowed_next(self, ids: Iterable[int]) -> list[int]:
        """Ids that may follow a prefix of a skeleton, ascending (specification, section 9.3).

        Raises AssertionError if a non-empty prefix does not start with bos.
        """
        v = self.vocabulary
        state, _ = self._walk([int(token) for token in ids], stop_at_end=False)
        coordinates = list(range(v.bins))
        parts = list(range(v.spring, v.class_none))
        if state == "bos":
            return [v.bos]
        if state == "class":
            return coordinates + parts + list(range(v.class_none, v.skin_first))
        if state == "first":
            return [*coordinates, v.skeleton_eos, *parts]
        if state == "next":
            return [*coordinates, v.branch, v.skeleton_eos, *parts]
        return coordinates

    def bones_in_sequence(self, ids: Iterable[int]) -> int:
        """Bones that the released logits processor counts up to the skeleton eos (section 9.4).

        Raises AssertionError if a non-empty sequence does not start with bos.
        """
        return self._walk([int(token) for token in ids], stop_at_end=True)[1]

    def _walk(self, sequence: list[int], stop_at_end: bool) -> tuple[str, int]:
        """State after the sequence ("x", "y", "z" expect that coordinate) and number of bones in it."""
        v = self.vocabulary
        state, bones, branch = "bos", 0, False
        for token in sequence:
            coordinate = 0 <= token < v.bins
            if state == "bos":
                if token != v.bos:
                    raise AssertionError("ids do not start with bos")
                state = "class"
            elif state == "class":
                is_class = v.class_none <= token < v.skin_first
                state = "y" if coordinate else "first" if is_class else "x"
            elif state == "first":
                state = "y" if coordinate else "first"
            elif state == "next":
                state, branch = "y" if coordinate else "x", token == v.branch
            elif state == "z":
                state, bones, branch = "next", bones + (not branch), False
            else:
                state = {"x": "y", "y": "z"}[state]
            if stop_at_end and token == v.skeleton_eos:
                break
        return state, bones


def released_skeleton_tokenizer(vocabulary: Vocabulary | None = None) -> ReleasedSkeletonTokenizer:
    """The released skeleton tokenizer, for the released vocabulary by default."""
    return ReleasedSkeletonTokenizer(Vocabulary() if vocabulary is None else vocabulary)
