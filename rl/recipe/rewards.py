"""Keys and defaults of the recipe sections `rewards` and `deformation`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from data.typed_recipe import PathText, RecipeError, require_not_negative, require_positive
from rewards.guards import GUARD_NAMES
from rewards.settings import REWARD_NAMES


@dataclass(frozen=True)
class CoverageRecipe:
    """Volumetric joint coverage, R_vj: how close the mesh's occupied cells are to their nearest joint."""

    weight: float = 5.0
    """Weight in the total reward; at least 0. Source: paper (5)."""

    alpha: float = 0.05
    """Decay of coverage with distance, per `distance_unit`; at least 0. Source: paper, R_vj (alpha)."""

    distance_unit: Literal["cells", "mesh"] = "cells"
    """Unit of the distance to the nearest joint: `cells` of the occupancy grid, or `mesh` units, in which the
    longest side is 2 and coverage is nearly 1 for any rig. Source: this project; the paper gives none."""


@dataclass(frozen=True)
class ContainmentRecipe:
    """Bone containment, R_vk: the share of points on the bones that lie inside the mesh."""

    weight: float = 1.0
    """Weight in the total reward; at least 0. Source: paper (1)."""

    samples_per_bone: int = 10
    """Intervals per bone; one more point than this is tested; at least 1. Source: paper, R_vk (s)."""


@dataclass(frozen=True)
class SparsityRecipe:
    """Skin coverage and sparsity, R_sc: every vertex is bound, and to few bones."""

    weight: float = 1.0
    """Weight in the total reward; at least 0. Source: paper (1)."""

    threshold: float = 0.1
    """A weight above this is an influence; a vertex with every weight below it is unbound; between 0 and 1.
    Source: paper, R_sc (beta)."""

    max_influences: int = 4
    """Influences above which a vertex counts as crowded; at least 0. Source: paper, R_m."""

    unbound_power: float = 1.0
    """Exponent of the share of unbound vertices; above 0. Source: paper, R_z (alpha_z), which gives no value;
    1 is this project's."""

    crowded_power: float = 1.0
    """Exponent of the share of crowded vertices; above 0. Source: paper, R_m (alpha_m), which gives no value;
    1 is this project's."""


@dataclass(frozen=True)
class SmoothnessRecipe:
    """Deformation smoothness, R_mo: how little edges stretch in the poses of `deformation`."""

    weight: float = 1.0
    """Weight in the total reward; at least 0. Source: paper (1)."""

    scale: float = 1.0
    """Factor s of the mean stretch; at least 0. Source: paper, R_mo (s), which gives no value; 1 is this
    project's."""

    reduce: Literal["max", "mean"] = "max"
    """Reduction over a pose's edges: `max`, or `mean`, which is smoother but saturates near a reward of 0.5.
    Source: paper, R_mo (max); `mean` is this project's."""


@dataclass(frozen=True)
class BoneInfluenceRecipe:
    """Opt-in guard against rigs that bind everything to one bone: the share of bones that own vertices."""

    weight: float = 0.0
    """Weight in the total reward; at least 0, and 0 disables the guard. Source: this project."""

    min_vertices: int = 1
    """Scoring vertices on which a bone must be the strongest to count; at least 1. Source: this project."""


@dataclass(frozen=True)
class JointCountPriorRecipe:
    """Opt-in guard against rigs that buy coverage with joints: how typical the number of joints is."""

    weight: float = 0.0
    """Weight in the total reward; at least 0, and 0 disables the guard. Source: this project."""

    expected: float = 30.0
    """Number of joints at which the guard is 1; above 0; set it to the typical number in your data. Source:
    this project."""

    factor: float = 2.0
    """The guard falls to 0.61 at `expected` times or divided by this; above 1. Source: this
    project."""


@dataclass(frozen=True)
class VolumePreservationRecipe:
    """Opt-in guard against blurred weights, under which joints collapse: local volume kept when posed."""

    weight: float = 0.0
    """Weight in the total reward; at least 0, and 0 disables the guard. Source: this project."""


@dataclass(frozen=True)
class WeightLocalityRecipe:
    """Opt-in guard against weights that leak: the share of weight on bones of the vertex's own sub-tree."""

    weight: float = 0.0
    """Weight in the total reward; at least 0, and 0 disables the guard. Source: this project."""


@dataclass(frozen=True)
class RewardsRecipe:
    """The four rewards, the opt-in guards and your own rewards (docs/rewards.md).

    GRPO optimises their weighted sum, which is 0 for a rig that does not decode. At least one weight must be
    above 0.
    """

    coverage: CoverageRecipe = field(default_factory=CoverageRecipe)
    """Volumetric joint coverage, R_vj."""

    containment: ContainmentRecipe = field(default_factory=ContainmentRecipe)
    """Bone containment, R_vk."""

    sparsity: SparsityRecipe = field(default_factory=SparsityRecipe)
    """Skin coverage and sparsity, R_sc."""

    smoothness: SmoothnessRecipe = field(default_factory=SmoothnessRecipe)
    """Deformation smoothness, R_mo."""

    bone_influence: BoneInfluenceRecipe = field(default_factory=BoneInfluenceRecipe)
    """Guard: bones own vertices; disabled by default."""

    joint_count_prior: JointCountPriorRecipe = field(default_factory=JointCountPriorRecipe)
    """Guard: a usual number of joints; disabled by default."""

    volume_preservation: VolumePreservationRecipe = field(default_factory=VolumePreservationRecipe)
    """Guard: posed joints keep their volume; disabled by default."""

    weight_locality: WeightLocalityRecipe = field(default_factory=WeightLocalityRecipe)
    """Guard: no weights across unconnected sub-trees; disabled by default."""

    custom: str | tuple[str, ...] | dict[str, float] | None = None
    """Your own rewards: a function as `package.module:function`, or a list of them, or a mapping from them to
    their weights, which are 1 otherwise; at least 0, and 0 disables (docs/rewards.md, "Your own reward").
    Source: this project."""

    credit: Literal["rig", "phase"] = "rig"
    """Which rewards a token's advantage comes from: `rig`, the total for every token; `phase`, the rewards of
    the skeleton for skeleton tokens and those of the skin for SkinTokens, normalised one by one
    (docs/rewards.md, "Phase credit"). Source: this project."""

    resolution: int = 196
    """Occupancy cells along the mesh's longest side; above 0. Source: paper, occupancy grid."""

    interior: Literal["projection", "flood", "surface"] = "projection"
    """Cells inside the surface that count as occupied: `projection`, those between surface cells along all
    three axes; `flood`, those not reachable from outside; `surface`, none. Source: this project."""

    max_scoring_vertices: int = 16_384
    """Vertices at which skinning weights are scored; a larger mesh is scored on a fixed random subset; at
    least 2. Source: this project."""

    def __post_init__(self) -> None:
        require_positive("rewards", self, "resolution", "max_scoring_vertices")
        for name in (*REWARD_NAMES, *GUARD_NAMES):
            require_not_negative(f"rewards.{name}", getattr(self, name), "weight")
        self._check_custom()
        if not any(self.weights.values()):
            raise RecipeError("every reward weight is 0; set at least one 'rewards.<name>.weight' above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each of the four rewards, then of the enabled guards, then of the user's own rewards."""
        ours = {name: getattr(self, name).weight for name in (*REWARD_NAMES, *self.guards)}
        return ours | {place.partition(":")[2]: weight for place, weight in self.custom_weights.items()}

    @property
    def guards(self) -> tuple[str, ...]:
        """The enabled guards: those with a weight above 0."""
        return tuple(name for name in GUARD_NAMES if getattr(self, name).weight > 0)

    @property
    def custom_weights(self) -> dict[str, float]:
        """Weight of each of the user's own rewards that is enabled, by `package.module:function`."""
        return {place: weight for place, weight in self._custom_entries() if weight > 0}

    def _custom_entries(self) -> list[tuple[str, float]]:
        if isinstance(self.custom, dict):
            return list(self.custom.items())
        places = (self.custom,) if isinstance(self.custom, str) else self.custom or ()
        return [(place, 1.0) for place in places]

    def _check_custom(self) -> None:
        taken = dict.fromkeys((*REWARD_NAMES, *GUARD_NAMES), "a reward of this project has that name")
        listed: list[str] = []
        for place, weight in self._custom_entries():
            if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", place) is None:
                raise RecipeError(
                    f"'rewards.custom' has '{place}', which names no function; write package.module:function"
                )
            if weight < 0:
                raise RecipeError(
                    f"'rewards.custom': the weight of {place} must not be negative, not {weight}; return 1 "
                    "minus the number instead"
                )
            if place in listed:
                raise RecipeError(f"'rewards.custom' has {place} twice; remove one, or give a weight instead")
            name = place.partition(":")[2]
            if name in taken:
                raise RecipeError(
                    f"'rewards.custom' has {place}, but {taken[name]}; give the function another name"
                )
            taken[name] = f"{place} has that name too"
            listed.append(place)


@dataclass(frozen=True)
class DeformationRecipe:
    """The poses in which the smoothness reward and `rewards.volume_preservation` deform a rig."""

    poses: int | PathText = 5
    """Number of random poses, above 0; or an NPZ file of recorded joint rotations (docs/rewards.md, "Poses").
    Source: paper, R_mo (5); recorded poses are this project's."""

    max_angle_deg: float = 30.0
    """Largest rotation of a joint in a random pose, degrees; 0 to 180. Source: this project; the paper gives
    none."""

    frames: int = 5
    """Frames of a pose file that are drawn per mesh and step; above 0. Source: this project."""

    wide_poses: int = 0
    """Further random poses, in which joints turn by up to `wide_angle_deg`; at least 0. They count as much as
    the others. Source: this project."""

    wide_angle_deg: float = 90.0
    """Largest rotation of a joint in a wide pose, degrees; 0 to 180. Source: this project."""

    def __post_init__(self) -> None:
        require_positive("deformation", self, "frames", *([] if isinstance(self.poses, str) else ["poses"]))
