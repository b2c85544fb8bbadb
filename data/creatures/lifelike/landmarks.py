"""Where the parts of a character are: what its clothes and held things are attached to."""

from dataclasses import dataclass, field

from data.creatures.body import Vector


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Joints and places of a character. Lists have the left side first.

    `ground`: the joint between the feet, or -1. `legs`: the joint above the thighs. `head_size`: half
    extents along x, y, z. `chest_size`, `waist_size`, `pelvis_size`: half width and half depth.
    """

    ground: int
    pelvis: int
    legs: int
    spines: list[int]
    chest: int
    head: int
    neck_base: Vector
    head_centre: Vector
    head_size: tuple[float, float, float]
    leg: float
    torso: float
    chest_size: tuple[float, float]
    pelvis_size: tuple[float, float]
    waist_size: tuple[float, float]
    arm_radius: float
    leg_radius: float
    thighs: list[int] = field(default_factory=list)
    shins: list[int] = field(default_factory=list)
    feet: list[int] = field(default_factory=list)
    leg_points: list[tuple[Vector, Vector, Vector]] = field(default_factory=list)
    arms: list[int] = field(default_factory=list)
    forearms: list[int] = field(default_factory=list)
    hands: list[int] = field(default_factory=list)
    arm_points: list[tuple[Vector, Vector, Vector]] = field(default_factory=list)
    grips: list[Vector] = field(default_factory=list)
    headings: list[Vector] = field(default_factory=list)
