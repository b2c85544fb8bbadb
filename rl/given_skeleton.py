"""Given skeletons: their tokens for the prompt, and rigs that keep their exact joints, names and order."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.file_content import mesh_suffix, read_head
from data.formats.load import GLTF_SUFFIXES
from data.formats.rig_repair import FARTHEST_JOINT
from data.formats.skeleton_files import read_skeleton_file
from data.mesh import Mesh
from data.rig import depth_first_order, reordered_parents
from data.sets.dataset import MeshSample
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy
from policy.tokens.grammar import PROMPT_LENGTH
from policy.tokens.skeleton_tokenizer import tokenize_skeleton
from policy.tokens.vocabulary import Vocabulary
from rewards.worker import RolloutRig
from rl.prompts import completion_length
from rl.recipe import Recipe

# Half sides of the mesh's box. A skeleton file with a joint beyond FARTHEST_JOINT, or with most joints beyond
# BOX_MARGIN, belongs to another mesh or uses another unit; so does one smaller than SMALLEST_EXTENT.
BOX_MARGIN, SMALLEST_EXTENT = 1.25, 0.02


@dataclass(frozen=True, eq=False)
class GivenSkeleton:
    """A skeleton that the policy only skins: it is part of the prompt, and rigs keep it as it is.

    joints: (J, 3) float32, mesh frame, not quantised; parents: (J,) int64, root first, parents before
    children; names: J names. All three are in the order given by the user.
    order: (J,) int64; entry i is the index of the joint that is i-th in the tokens (`depth_first_order`).
    tokens: the skeleton's tokens after `<bos> <class>`, up to and including its eos. They hold quantised
    coordinates, those outside [-1, 1] clipped. SkinTokens follow in the order of these tokens.
    """

    joints: NDArray[np.float32]
    parents: NDArray[np.int64]
    names: tuple[str, ...]
    order: NDArray[np.int64]
    tokens: tuple[int, ...]

    @property
    def outside(self) -> int:
        """Number of joints outside the mesh's box, which the tokens place on its faces."""
        return int((np.abs(self.joints) > 1).any(axis=1).sum())

    def rollout_rig(self, codes: NDArray[np.int64]) -> RolloutRig:
        """The rig to score, from codes (J, K) in the order of the tokens: exact joints, in the given order.

        Poses turn joints by index, so a file with the joints in this order has the score that was computed.
        """
        restored = np.empty_like(codes)
        restored[self.order] = codes
        return RolloutRig(self.joints, self.parents, restored)


# Given skeletons by mesh index.
GivenSkeletons = Mapping[int, GivenSkeleton]


@dataclass(frozen=True)
class SkeletonRoom:
    """How long a given skeleton may be.

    vocabulary: the policy's. positions: those of the model behind the mesh. completion: the recipe's
    `train.max_completion_length`.
    """

    vocabulary: Vocabulary
    positions: int
    completion: int

    @classmethod
    def of(cls, policy: RigPolicy, recipe: Recipe) -> SkeletonRoom:
        """The room in a policy's sequences under a recipe's token limit."""
        config = policy.model.config
        positions = config.max_position_embeddings - config.get_mesh_encoder().tokens
        return cls(policy.vocabulary, positions, recipe.train["max_completion_length"])

    def refusal(self, skeleton: GivenSkeleton) -> str | None:
        """Why a completion of this skeleton cannot be whole, with the fix; None if it can."""
        joints = len(skeleton.joints)
        needed = completion_length(joints, self.vocabulary)
        if needed > self.completion:
            return (
                f"its {joints} joints need {needed} tokens; raise train.max_completion_length, now "
                f"{self.completion}"
            )
        whole = PROMPT_LENGTH + len(skeleton.tokens) + needed
        if whole > self.positions:
            return (
                f"its {joints} joints take {whole} tokens, but the model has {self.positions} positions "
                "behind the mesh; remove joints or use a larger model"
            )
        return None


def give(
    joints: NDArray[np.float32], parents: NDArray[np.int64], names: Sequence[str], vocabulary: Vocabulary
) -> GivenSkeleton:
    """Prepare a skeleton for the prompt: order it canonically and tokenize it.

    joints (J, 3), finite, mesh frame; parents (J,), root first and parents before children. Joints may
    coincide: tokens, codes and weights correspond by index, never by position.
    """
    order = depth_first_order(joints, parents)
    tokens = tokenize_skeleton(joints[order], reordered_parents(parents, order), None, vocabulary)
    return GivenSkeleton(joints, parents, tuple(names), order, tuple(tokens[PROMPT_LENGTH:]))


def true_skeleton(sample: MeshSample, vocabulary: Vocabulary) -> GivenSkeleton | None:
    """The skeleton of a mesh's ground-truth rig, None if it has no rig."""
    rig = sample.rig
    return None if rig is None else give(rig.joints, rig.parents, rig.names, vocabulary)


def true_skeletons(
    samples: Sequence[MeshSample], meshes: Sequence[int], vocabulary: Vocabulary
) -> GivenSkeletons:
    """The skeletons of the ground-truth rigs of `meshes`. Raises ValueError for a mesh without a rig."""
    given = {}
    for mesh in meshes:
        skeleton = true_skeleton(samples[mesh], vocabulary)
        if skeleton is None:
            raise ValueError(f"mesh {samples[mesh].name} has no rig, so no skeleton to give; skip it")
        given[mesh] = skeleton
    return given


def tokens_of(given: GivenSkeletons | None, meshes: Sequence[int]) -> list[tuple[int, ...]]:
    """The tokens of each mesh's given skeleton, empty where it has none."""
    return [given[mesh].tokens if given and mesh in given else () for mesh in meshes]


def chosen_skeleton(recipe: Recipe, mesh: Mesh, room: SkeletonRoom) -> GivenSkeleton | None:
    """The skeleton that `rig.skeleton` names for the mesh to rig, None if the policy is to write it.

    mesh: `rig.mesh`, read with `rig.up`. Notes on how a skeleton file was read go to standard error.

    Raises:
        RecipeError: the mesh file has no skeleton (`own`), or the skeleton is too long or in another frame.
        MeshError: the skeleton file cannot be used.
    """
    choice = recipe.rig.skeleton
    if choice is None:
        return None
    if choice == "own":
        path = Path(str(recipe.rig.mesh))
        suffix = mesh_suffix(path, read_head(path))
        if suffix not in GLTF_SUFFIXES:
            raise RecipeError(
                f"'rig.skeleton' is own, but {path} holds no skeleton ({suffix[1:].upper()} files cannot); "
                "pass a file with one or set it to null"
            )
        found = read_skeleton_file(path)
    else:
        found = read_skeleton_file(choice, recipe.rig.up)
        if found.notes:
            print(f"note: {choice}: {'; '.join(found.notes)}", file=sys.stderr)
    with np.errstate(over="ignore"):
        joints = ((found.joints - mesh.centre) * mesh.scale).astype(np.float32)
    if choice != "own" and (reason := _misfit(joints)):
        raise RecipeError(f"'rig.skeleton': {choice} does not fit {recipe.rig.mesh}: {reason}")
    if not np.isfinite(joints).all():
        raise RecipeError(f"'rig.skeleton': a joint of {recipe.rig.mesh} is not finite; repair the skeleton")
    skeleton = give(joints, found.parents, found.names, room.vocabulary)
    if reason := room.refusal(skeleton):
        raise RecipeError(f"'rig.skeleton': {choice} is too long: {reason}")
    return skeleton


def _misfit(joints: NDArray[np.float32]) -> str | None:
    """Why joints (J, 3) in the mesh frame cannot belong to the mesh; None if they can."""
    fix = "export both in one unit and frame"
    if not np.isfinite(joints).all() or np.abs(joints).max() > FARTHEST_JOINT:
        return f"a joint is more than {FARTHEST_JOINT / 2:g} box sides away; {fix}"
    beyond = int((np.abs(joints) > BOX_MARGIN).any(axis=1).sum())
    if 2 * beyond > len(joints):
        return f"{beyond} of its {len(joints)} joints lie outside the mesh's box; {fix}"
    extent = float(np.ptp(joints, axis=0).max())
    if len(joints) > 1 and extent < SMALLEST_EXTENT:
        return f"it spans only {100 * extent / 2:.2g} % of the mesh's box; {fix}"
    return None
