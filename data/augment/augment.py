"""Training augmentations of a rigged mesh: which ones, how strong, and in which order."""

from dataclasses import dataclass

import numpy as np

from data.augment.posing import randomly_posed
from data.augment.proportions import reproportioned
from data.augment.pruning import reparented, with_joints_deleted, without_subtree
from data.mesh import Mesh
from data.rig import Rig
from data.transforms import jittered, mirrored, quarter_turned, rotated, scaled, turned
from data.typed_recipe import RecipeError


@dataclass(frozen=True)
class AugmentRecipe:
    """Augmentations of training examples, applied in the order of the keys; all are off by default.

    Raises RecipeError, naming the key below 'data.augment', for a value out of range.
    """

    reparent_probability: float = 0.0
    """Probability of re-parenting joints; 0 to 1. Source: paper (stage 1 only), which gives no
    probability."""

    max_reparented: float = 0.3
    """Largest share of the joints that are re-parented; 0 to 1. Source: paper (0.3)."""

    subtree_probability: float = 0.0
    """Probability of cutting off a joint with all joints below it and their vertices, such as a limb; 0 to 1.
    Source: paper, which gives no probability."""

    deletion_probability: float = 0.0
    """Probability of deleting single joints with their vertices; 0 to 1. Source: paper, which gives no
    probability."""

    max_deleted: float = 0.5
    """Largest share of the joints that are deleted; 0 to 1. Source: paper (0.5)."""

    proportions_probability: float = 0.0
    """Probability of giving each limb another length and girth; limbs that mirror each other change alike; 0
    to 1. Source: this project."""

    proportions_sigma: float = 0.25
    """Standard deviation of the logarithm of a limb's length and girth factors; 0 to 1. Source: this
    project."""

    scale_probability: float = 0.0
    """Probability of scaling each axis by a factor of its own; 0 to 1. Source: paper (0.5)."""

    scale_range: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest scale factor, drawn log-uniformly; above 0, the smaller first. Source: this
    project; the paper gives none."""

    pose_probability: float = 0.0
    """Probability of turning every joint about a random axis; the pose becomes the rest pose; 0 to 1. Source:
    paper (0.5)."""

    max_pose_deg: float = 30.0
    """Largest rotation of a joint, degrees; 0 to 180. Source: paper (30)."""

    mirror_probability: float = 0.0
    """Probability of swapping left and right; 0 to 1. Source: this project."""

    rotation_probability: float = 0.0
    """Probability of turning mesh and rig about a random axis; 0 to 1. Source: paper (0.2)."""

    max_rotation_deg: float = 15.0
    """Largest rotation about the random axis, degrees; 0 to 180. Source: paper (15)."""

    turn_probability: float = 0.0
    """Probability of turning mesh and rig about the up axis; 0 to 1. Source: this project."""

    max_turn_deg: float = 180.0
    """Largest turn about the up axis, to either side, degrees; 0 to 180. Source: this project."""

    quarter_turns_probability: float = 0.0
    """Probability of turning mesh and rig about the up axis by 90, 180 or 270 degrees; 0 to 1. Source: this
    project."""

    joint_noise: float = 0.0
    """Standard deviation of Gaussian noise on the joints, per axis, mesh units; 0 to 1. Source: paper
    (1e-2)."""

    vertex_noise: float = 0.0
    """Standard deviation of Gaussian noise on the vertices, per axis, mesh units; 0 to 1. Source: paper
    (1e-3)."""

    def __post_init__(self) -> None:
        most = {"max_pose_deg": 180.0, "max_rotation_deg": 180.0, "max_turn_deg": 180.0}
        for name, value in vars(self).items():
            if name == "scale_range":
                if not (len(value) == 2 and 0 < value[0] <= value[1] < np.inf):
                    raise RecipeError(
                        f"'data.augment.{name}' must be two positive factors, smaller first, not {value}"
                    )
            elif not 0 <= value <= most.get(name, 1.0):
                raise RecipeError(
                    f"'data.augment.{name}' must be between 0 and {most.get(name, 1.0):g}, not {value}"
                )


def augmented(mesh: Mesh, rig: Rig, recipe: AugmentRecipe, rng: np.random.Generator) -> tuple[Mesh, Rig]:
    """The augmented mesh and rig, both in the mesh frame of the new mesh; with everything off, the inputs.

    Order: first the joint tree (re-parenting, cutting off, deleting), so that later steps see the final
    skeleton; then proportions (limbs, scale along the creature's own axes, pose); then orientation (mirror,
    rotation, turns); noise last. Joint noise moves the joints that a model must predict, not its input, like
    upstream's perturbation of the bind matrices (specification, section 13). A cut that would leave too
    little is skipped.
    """

    def happens(probability: float) -> bool:
        return probability > 0 and rng.random() < probability

    if happens(recipe.reparent_probability):
        rig = reparented(rig, rng, recipe.max_reparented)
    if happens(recipe.subtree_probability):
        mesh, rig = without_subtree(mesh, rig, rng)
    if happens(recipe.deletion_probability):
        mesh, rig = with_joints_deleted(mesh, rig, rng, recipe.max_deleted)
    if happens(recipe.proportions_probability):
        mesh, rig = reproportioned(mesh, rig, rng, recipe.proportions_sigma)
    if happens(recipe.scale_probability):
        mesh, rig = scaled(mesh, rig, rng, recipe.scale_range)
    if happens(recipe.pose_probability):
        mesh, rig = randomly_posed(mesh, rig, rng, np.deg2rad(recipe.max_pose_deg))
    if happens(recipe.mirror_probability):
        mesh, rig = mirrored(mesh, rig)
    if happens(recipe.rotation_probability):
        mesh, rig = rotated(mesh, rig, rng, np.deg2rad(recipe.max_rotation_deg))
    if happens(recipe.turn_probability):
        mesh, rig = turned(mesh, rig, rng, np.deg2rad(recipe.max_turn_deg))
    if happens(recipe.quarter_turns_probability):
        mesh, rig = quarter_turned(mesh, rig, rng)
    if recipe.joint_noise or recipe.vertex_noise:
        mesh, rig = jittered(mesh, rig, rng, recipe.joint_noise, recipe.vertex_noise)
    return mesh, rig
