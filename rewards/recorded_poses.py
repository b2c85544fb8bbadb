"""Recorded poses: joint rotations of real motion from an NPZ file, mapped onto any rig."""

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.file_content import stand_in_at
from rewards.skeleton import hierarchy_levels

# SMPL's first 22 joints (the body without hands), in SMPL's order.
SMPL22_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
SMPL22_PARENTS = np.array([-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19])


class PoseFileError(ValueError):
    """A pose file cannot be used; the message gives the file, the reason and the fix."""


@dataclass(frozen=True, eq=False)
class RecordedPoses:
    """The frames of a recording.

    Attributes:
        rotations: (T, K, 3, 3) float64 local rotations of K joints in T frames, for column vectors.
        parents: (K,) int64, -1 for a root; None if the file has none.
        names: K joint names, or none.
    """

    rotations: NDArray[np.float64]
    parents: NDArray[np.int64] | None
    names: tuple[str, ...]


@lru_cache(maxsize=4)
def load_recorded_poses(path: str | Path) -> RecordedPoses:
    """Read a pose file; the last four are cached.

    The NPZ file holds the rotations under one of three keys:

    - `rotations`: (T, K, 3, 3) matrices;
    - `rotations_6d`: (T, K, 6), the first two rows of each matrix (its first two columns if the file also
      holds `layout` = "columns");
    - `smpl_272`: (T, 272) frames of the SMPL-22 motion representation, whose last 132 numbers are 22
      rotations in 6D;

    and `names` (K,) text, `parents` (K,) integers with -1 for the root, or both. SMPL-22 frames need neither.

    Raises:
        PoseFileError: the file is missing, unreadable or not as described.
    """
    try:
        found = stand_in_at(path)
        if found is None:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PoseFileError(f"{path}: cannot be read as NPZ ({error}); check 'deformation.poses'") from error
    if found is not None:
        raise PoseFileError(found)
    names = tuple(str(name) for name in arrays["names"]) if "names" in arrays else ()
    parents = arrays["parents"].astype(np.int64) if "parents" in arrays else None
    if "rotations" in arrays:
        rotations = arrays["rotations"].astype(np.float64)
    elif "rotations_6d" in arrays or "smpl_272" in arrays:
        numbers = arrays.get("rotations_6d")
        if numbers is None:
            numbers = smpl22_rotations_6d(arrays["smpl_272"], path)
            names, parents = names or SMPL22_NAMES, SMPL22_PARENTS if parents is None else parents
        layout = str(arrays.get("layout", "rows"))
        if numbers.ndim != 3 or numbers.shape[2] != 6 or layout not in ("rows", "columns"):
            raise PoseFileError(
                f"{path}: rotations_6d has shape {numbers.shape} and layout {layout}; "
                "store (T, K, 6), rows or columns"
            )
        rotations = matrices_from_6d(numbers.astype(np.float64))
        rotations = rotations if layout == "rows" else rotations.swapaxes(-1, -2)
    else:
        raise PoseFileError(
            f"{path}: no rotations found; store them as 'rotations', 'rotations_6d' or 'smpl_272'"
        )
    _check(rotations, parents, names, path)
    return RecordedPoses(rotations, parents, names)


def smpl22_rotations_6d(frames: NDArray[np.floating], path: str | Path = "frames") -> NDArray[np.float64]:
    """The 22 joint rotations in 6D, (T, 22, 6), from frames (T, 272) of the SMPL-22 motion representation."""
    if frames.ndim != 2 or frames.shape[1] != 272:
        raise PoseFileError(f"{path}: smpl_272 has shape {frames.shape}; store (T, 272)")
    return frames[:, -132:].reshape(len(frames), 22, 6).astype(np.float64)


def matrices_from_6d(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrices (..., 3, 3) from their first two rows, numbers (..., 6), by Gram-Schmidt.

    Source: Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks"; rows, not
    columns, as the 272-number representation stores them.
    """
    first, second = numbers[..., :3], numbers[..., 3:]
    # A zero or parallel pair gives NaN, which the caller refuses.
    with np.errstate(invalid="ignore", divide="ignore"):
        first = first / np.linalg.norm(first, axis=-1, keepdims=True)
        second = second - (first * second).sum(axis=-1, keepdims=True) * first
        second = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def map_joints(
    recorded: RecordedPoses, parents: NDArray[np.int64], names: tuple[str, ...] = ()
) -> NDArray[np.int64]:
    """Which recorded joint drives each joint of a rig: (J,) int64, -1 for none.

    Joints are matched by name (letters and digits only, ignoring case) if any name of the rig is recorded.
    Otherwise by depth in the hierarchy: the n-th joint at a depth takes the n-th recorded joint at that
    depth, starting over when those run out; joints deeper than the recording stay at rest.

    Args:
        recorded: the recording.
        parents: (J,) int64, -1 for a root.
        names: J joint names, or none.

    Raises:
        PoseFileError: no name matches and the recording has no parents.
        RigRewardError: the parents form a cycle.
    """
    known = {_plain(name): index for index, name in enumerate(recorded.names)}
    if names:
        by_name = np.array([known.get(_plain(name), -1) for name in names], dtype=np.int64)
        if (by_name >= 0).any():
            return by_name
    if recorded.parents is None:
        raise PoseFileError(
            "the pose file names no joint of this rig and has no 'parents' to map by depth; add 'parents'"
        )
    chosen = np.full(len(parents), -1, dtype=np.int64)
    for ours, theirs in zip(hierarchy_levels(parents), hierarchy_levels(recorded.parents), strict=False):
        chosen[ours] = np.resize(theirs, len(ours))
    return chosen


def recorded_rotations(
    recorded: RecordedPoses,
    poses: int,
    parents: NDArray[np.int64],
    seed: int,
    names: tuple[str, ...] = (),
) -> NDArray[np.float64]:
    """Recorded poses for one rig; the counterpart of `random_rotations`.

    The frames depend only on the seed, the recording and the number of poses, so that a group shares them. No
    frame is drawn twice unless the recording has fewer frames than poses.

    Args:
        recorded: the recording.
        poses: P >= 1.
        parents: (J,) int64, -1 for a root.
        seed: from `pose_seed`.
        names: J joint names, or none; see `map_joints`.

    Returns:
        (P, J, 3, 3) float64; identity for joints without a recorded one.

    Raises:
        PoseFileError, RigRewardError: as in `map_joints`.
    """
    count = len(recorded.rotations)
    draw = np.random.Generator(np.random.Philox(seed)).choice(count, poses, replace=poses > count)
    chosen = map_joints(recorded, parents, names)
    rotations = recorded.rotations[draw][:, chosen]
    rotations[:, chosen < 0] = np.eye(3)
    return rotations


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _check(
    rotations: NDArray[np.float64],
    parents: NDArray[np.int64] | None,
    names: tuple[str, ...],
    path: str | Path,
) -> None:
    if rotations.ndim != 4 or rotations.shape[2:] != (3, 3) or 0 in rotations.shape:
        raise PoseFileError(f"{path}: rotations have shape {rotations.shape}; store (T, K, 3, 3)")
    error = np.abs(rotations @ rotations.swapaxes(-1, -2) - np.eye(3)).max(axis=(1, 2, 3))
    # `<` is false for NaN too.
    if not (error < 1e-3).all() or not (np.linalg.det(rotations) > 0).all():
        frame = int(np.flatnonzero(~(error < 1e-3))[0]) if not (error < 1e-3).all() else 0
        raise PoseFileError(
            f"{path}: frame {frame} has a matrix that is not a rotation; store rotation matrices"
        )
    joints = rotations.shape[1]
    if not names and parents is None:
        raise PoseFileError(
            f"{path}: neither 'names' nor 'parents' for its {joints} joints; store one of them"
        )
    if names and len(names) != joints:
        raise PoseFileError(f"{path}: {len(names)} names for {joints} joints; store one per joint")
    if parents is not None and (
        parents.shape != (joints,) or not ((parents >= -1) & (parents < np.arange(joints))).all()
    ):
        raise PoseFileError(f"{path}: parents must be {joints} indices, each below its own, -1 for the root")
