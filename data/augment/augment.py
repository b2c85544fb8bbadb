"""The paper's training augmentations of a rigged mesh, each switchable, in one documented order."""

from dataclasses import dataclass

import numpy as np

from data.augment.posing import randomly_posed
from data.augment.pruning import reparented, with_joints_deleted, without_subtree
from data.mesh import Mesh
from data.rig import Rig
from data.transforms import jittered, quarter_turned, rotated, scaled, turned
from data.typed_recipe import RecipeError


@dataclass(frozen=True)
class AugmentRecipe:
    """Which augmentations training examples get; a probability or a noise of 0 (the default) is off.

    The paper's values are named; where it gives none, the choice is the recipe's.

    - `reparent_probability`, `max_reparented` (paper: 0.3, stage 1): joints hung below another parent.
    - `subtree_probability`: cut off a joint with all below it and its vertices, such as a limb.
    - `deletion_probability`, `max_deleted` (paper: 0.5): share of the joints deleted with their vertices.
    - `scale_probability` (paper: 0.5), `scale_range`: a factor per axis, log-uniform between these two.
    - `pose_probability` (paper: 0.5), `max_pose_deg` (paper: 30): turn every joint; the pose is the new rest.
    - `rotation_probability` (paper: 0.2), `max_rotation_deg` (paper: 15): turn about a random axis.
    - `turn_probability`, `max_turn_deg`: turn about the up axis, to either side; not of the paper.
    - `quarter_turns_probability`: turn about the up axis by 90, 180 or 270 degrees; not of the paper.
    - `joint_noise` (paper: 1e-2), `vertex_noise` (paper: 1e-3): standard deviation per axis, mesh frame.

    Raises RecipeError, naming the key below 'data.augment', for a value out of its range.
    """

    reparent_probability: float = 0.0
    max_reparented: float = 0.3
    subtree_probability: float = 0.0
    deletion_probability: float = 0.0
    max_deleted: float = 0.5
    scale_probability: float = 0.0
    scale_range: tuple[float, float] = (0.75, 1.25)
    pose_probability: float = 0.0
    max_pose_deg: float = 30.0
    rotation_probability: float = 0.0
    max_rotation_deg: float = 15.0
    turn_probability: float = 0.0
    max_turn_deg: float = 180.0
    quarter_turns_probability: float = 0.0
    joint_noise: float = 0.0
    vertex_noise: float = 0.0

    def __post_init__(self) -> None:
        most = {"max_pose_deg": 180.0, "max_rotation_deg": 180.0, "max_turn_deg": 180.0}
        for name, value in vars(self).items():
            if name == "scale_range":
                if not (len(value) == 2 and 0 < value[0] <= value[1] < np.inf):
                    raise RecipeError(
                        f"'data.augment.{name}' must be two positive factors, the smaller first, not {value}"
                    )
            elif not 0 <= value <= most.get(name, 1.0):
                raise RecipeError(
                    f"'data.augment.{name}' must be between 0 and {most.get(name, 1.0):g}, not {value}"
                )


def augmented(mesh: Mesh, rig: Rig, recipe: AugmentRecipe, rng: np.random.Generator) -> tuple[Mesh, Rig]:
    """The mesh and rig, changed as `recipe` says; both in the mesh frame of the changed mesh.

    In this order: what changes the tree (re-parenting, then cutting off, then deleting, so that all that
    follows sees the final skeleton), the creature's own proportions (scale along its axes, pose), its place
    in the room (rotation, turns), and noise last. Joint noise moves the joints a model must predict and not
    its input, as upstream's perturbation of the bind matrices does (specification, section 13).
    With everything off `mesh` and `rig` themselves. A cut that would leave too little is skipped.
    """

    def happens(probability: float) -> bool:
        return probability > 0 and rng.random() < probability

    if happens(recipe.reparent_probability):
        rig = reparented(rig, rng, recipe.max_reparented)
    if happens(recipe.subtree_probability):
        mesh, rig = without_subtree(mesh, rig, rng)
    if happens(recipe.deletion_probability):
        mesh, rig = with_joints_deleted(mesh, rig, rng, recipe.max_deleted)
    if happens(recipe.scale_probability):
        mesh, rig = scaled(mesh, rig, rng, recipe.scale_range)
    if happens(recipe.pose_probability):
        mesh, rig = randomly_posed(mesh, rig, rng, np.deg2rad(recipe.max_pose_deg))
    if happens(recipe.rotation_probability):
        mesh, rig = rotated(mesh, rig, rng, np.deg2rad(recipe.max_rotation_deg))
    if happens(recipe.turn_probability):
        mesh, rig = turned(mesh, rig, rng, np.deg2rad(recipe.max_turn_deg))
    if happens(recipe.quarter_turns_probability):
        mesh, rig = quarter_turned(mesh, rig, rng)
    if recipe.joint_noise or recipe.vertex_noise:
        mesh, rig = jittered(mesh, rig, rng, recipe.joint_noise, recipe.vertex_noise)
    return mesh, rig
