"""The builder that collects a creature's joints and surfaces, and body parts that many kinds share."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.creatures.swept_surfaces import GridPatch, SweptSurface, ellipsoid

Vector = NDArray[np.float64]

X, Y, Z = np.eye(3)
SIDES = ((1, "left"), (-1, "right"))


def v(x: float, y: float, z: float) -> Vector:
    return np.array([x, y, z])


def unit(direction: ArrayLike) -> Vector:
    vector = np.asarray(direction, dtype=np.float64)
    return vector / np.sqrt(vector @ vector)


def mirror(points: ArrayLike, sign: int) -> Vector:
    return np.asarray(points, dtype=np.float64) * np.array([sign, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Style:
    """How all surfaces of a creature are shaped.

    `corners`, `squareness`: of the profiles, as in `SweptSurface`. `segmented`: every bone is a rigid surface
    of its own, as in a robot or a mannequin. `cull_interior`: faces inside other surfaces are dropped.
    """

    corners: int | None
    squareness: float
    segmented: bool
    cull_interior: bool


class Body:
    """A creature under construction: joints, swept surfaces and patches. Lengths are in arbitrary units.

    y is up and the creature faces +z, so its left is +x.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.joints: list[Vector] = []
        self.parents: list[int] = []
        self.names: list[str] = []
        self.sweeps: list[SweptSurface] = []
        self.patches: list[GridPatch] = []
        self.blend = rng.uniform(0.25, 0.5)
        boxy = self.chance(0.2)
        self.style = Style(
            corners=(4, 5, 6, 8)[self.pick(0, 3)] if boxy else None,
            squareness=(0.45, 0.6, 0.8)[self.pick(0, 2)] if self.chance(0.25) else 1.0,
            segmented=self.chance(0.1),
            cull_interior=self.chance(0.65),
        )

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, low: int, high: int) -> int:
        """A random integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def joint(self, name: str, position: ArrayLike, parent: int) -> int:
        """Add a joint below joint `parent` (-1 for the root) and return its index."""
        self.joints.append(np.asarray(position, dtype=np.float64))
        self.parents.append(parent)
        self.names.append(name)
        return len(self.joints) - 1

    def chain(self, name: str, positions: ArrayLike, parent: int) -> list[int]:
        """Add a chain of joints at positions (n, 3), the first a child of `parent`; return their indices."""
        made: list[int] = []
        for index, position in enumerate(np.asarray(positions, dtype=np.float64)):
            made.append(self.joint(f"{name}_{index}", position, made[-1] if made else parent))
        return made

    def sweep(self, spine: ArrayLike, radii: ArrayLike, joints: list[int], normal: ArrayLike) -> None:
        """Add a swept surface along `spine` (n + 1, 3) whose segment i is bound to joints[i] of n.

        radii (n + 1,) or (n + 1, 2): along `normal` and along the binormal, see `SweptSurface`.
        A segmented body gets one surface for each joint.
        """
        points, both = np.asarray(spine, float), _two_radii(radii)
        cuts = [0, len(joints)]
        if self.style.segmented:
            cuts = [0, *(i for i in range(1, len(joints)) if joints[i] != joints[i - 1]), len(joints)]
        for start, stop in pairwise(cuts):
            self.sweeps.append(
                SweptSurface(
                    points[start : stop + 1],
                    both[start : stop + 1],
                    tuple(joints[start:stop]),
                    np.asarray(normal, float),
                    self.blend,
                    corners=self.style.corners,
                    squareness=self.style.squareness,
                )
            )

    def ellipsoid(
        self,
        centre: ArrayLike,
        axis: ArrayLike,
        radii: tuple[float, float],
        joint: int,
        normal: ArrayLike,
        prop: bool = False,
    ) -> None:
        """Add an ellipsoid bound to `joint`: half axis `axis` (3,), radii along `normal` and the binormal."""
        self.sweeps.append(
            ellipsoid(
                np.asarray(centre, float),
                np.asarray(axis, float),
                radii,
                joint,
                np.asarray(normal, float),
                self.style.corners,
                prop,
            )
        )

    def prop(
        self,
        spine: ArrayLike,
        radii: ArrayLike,
        joint: int,
        normal: ArrayLike,
        corners: int | None = None,
        cap_length: float = 0.0,
    ) -> None:
        """Add a rigid prop, worn or held: a swept surface with flat caps, bound to `joint` alone."""
        points = np.asarray(spine, float)
        self.sweeps.append(
            SweptSurface(
                points,
                _two_radii(radii),
                (joint,) * (len(points) - 1),
                np.asarray(normal, float),
                0.0,
                corners=corners,
                cap_length=cap_length,
                prop=True,
            )
        )

    def limb(
        self,
        name: str,
        points: ArrayLike,
        radii: ArrayLike,
        parent: int,
        normal: ArrayLike,
        inset: float = 0.5,
    ) -> list[int]:
        """Add joints at all of `points` (n, 3) but the last, the tip, and one swept surface through them.

        The surface starts inside the parent: `inset` of the way from the parent joint to the first joint.
        radii (n,) or (n, 2): at the points. Returns the joints.
        """
        positions = np.asarray(points, dtype=np.float64)
        made = self.chain(name, positions[:-1], parent)
        start = self.joints[parent] + inset * (positions[0] - self.joints[parent])
        across = np.asarray(radii, dtype=np.float64)
        self.sweep(
            np.concatenate([start[None], positions]),
            np.concatenate([across[:1], across]),
            [parent, *made],
            normal,
        )
        return made


def _two_radii(radii: ArrayLike) -> Vector:
    """Radii (n, 2) from (n,), the same in both directions, or (n, 2)."""
    both = np.asarray(radii, dtype=np.float64)
    return np.stack([both, both], axis=1) if both.ndim == 1 else both


def joints_for_length(length: float, spacing: float, low: int, high: int) -> int:
    """How many joints a chain of this length gets: one per `spacing`, so that a model can see the number."""
    return int(np.clip(round(length / spacing), low, high))


def curved_spine(start: Vector, direction: ArrayLike, length: float, count: int, turn: ArrayLike) -> Vector:
    """A curling polyline of `count` + 1 evenly spaced points (count + 1, 3).

    `turn` (3,) is added to the unit heading over the whole length.
    """
    heading = unit(direction)
    points = [start]
    for _ in range(count):
        points.append(points[-1] + heading * length / count)
        heading = unit(heading + np.asarray(turn) / count)
    return np.array(points)


def tail(
    body: Body,
    parent: int,
    start: Vector,
    direction: ArrayLike,
    length: float,
    radius: float,
    spacing: float = 0.22,
    max_joints: int = 6,
) -> list[int]:
    """A curling tail in `direction`, tapering or bushy, with one joint per `spacing`. Returns its joints."""
    count = joints_for_length(length, spacing, 1, max_joints)
    turn = v(body.uniform(-0.5, 0.5) if body.chance(0.25) else 0.0, body.uniform(-0.6, 1.0), 0)
    points = curved_spine(start, direction, length, count, turn)
    if body.chance(0.25):
        t = np.linspace(0, 1, count + 1)
        widths = 0.8 + 1.4 * np.sin(np.pi * np.clip(t * 1.1, 0, 1)) - 0.4 * t
    else:
        widths = np.linspace(1.0, body.uniform(0.25, 0.7), count + 1)
    made = body.limb("tail", points, radius * widths, parent, X, inset=0.6)
    if body.chance(0.15):
        tuft = radius * body.uniform(1.2, 2.2)
        body.ellipsoid(points[-1], unit(points[-1] - points[-2]) * tuft * 1.4, (tuft, tuft), made[-1], X)
    return made


def ear(
    body: Body, name: str, root: Vector, axis: Vector, radii: tuple[float, float], head: int, long: bool
) -> None:
    """An ear from `root` along `axis`; a long one has two joints of its own, a short one none."""
    if not long:
        body.ellipsoid(root + axis * 0.35, axis * 0.5, radii, head, Z)
        return
    spine = np.array([root, root + axis * 0.5, root + axis])
    widths = np.array([[0.6, 0.6], [1.0, 1.0], [0.5, 0.6]]) * np.array(radii)
    made = body.chain(name, spine[:-1], head)
    start = root - axis * 0.15
    body.sweep([start, *spine], np.concatenate([widths[:1], widths]), [head, *made], Z)


def membrane(
    body: Body, line: Vector, joints: list[int], drop: ArrayLike, widths: ArrayLike, rows: int = 3
) -> None:
    """An open patch that hangs from the chain `line` (n + 1, 3) of n `joints` in the direction `drop`.

    widths (n + 1,): how far it reaches. Around each joint the weights blend from one joint to the next.
    """
    count = len(joints)
    reach = np.asarray(widths, dtype=np.float64)
    columns = 4 * count + 1
    t = np.linspace(0, count, columns)
    lower = np.minimum(t.astype(int), count - 1)
    f = (t - lower)[:, None]
    edge = line[lower] * (1 - f) + line[lower + 1] * f
    depth = reach[lower] * (1 - f[:, 0]) + reach[lower + 1] * f[:, 0]
    down = np.linspace(0, 1, rows + 1)
    points = edge[None] + (down[:, None] * depth)[..., None] * unit(drop)
    steps = np.ones((columns, count + 1))
    steps[:, count] = 0
    for index in range(1, count):
        s = np.clip(t - index + 0.5, 0, 1)
        steps[:, index] = s * s * (3 - 2 * s)
    weights = np.broadcast_to(steps[:, :-1] - steps[:, 1:], (rows + 1, columns, count))
    body.patches.append(GridPatch(points, tuple(joints), weights))


def ring_of_limbs(
    body: Body,
    root: int,
    count: int,
    base: float,
    reach: float,
    radius: float,
    arch: float,
    floor: float,
    curl: float,
    taper: float,
    spacing: float,
    max_joints: int,
) -> None:
    """`count` limbs around the root joint that arch over to the floor, with one joint per `spacing`."""
    centre = body.joints[root]
    turn = np.pi / count
    wave = body.uniform(-0.5, 0.5)
    bones = joints_for_length(reach, spacing, 2, max_joints)
    for index in range(count):
        angle = turn + 2 * np.pi * index / count
        fractions = np.linspace(0, 1, bones + 1)
        away = base + fractions * reach
        bent = angle + curl * fractions**2 * (1 + wave * np.sin(3 * angle))
        rise = arch * np.sin(np.pi * fractions * 0.9) - (floor - radius * 0.5) * fractions
        points = centre + np.stack([away * np.sin(bent), rise, away * np.cos(bent)], axis=1)
        points[0, 1] = centre[1] - 0.1 * base
        normal = np.array([np.cos(angle), 0, -np.sin(angle)])
        body.limb(f"arm{index}", points, radius * np.linspace(1.0, taper, bones + 1), root, normal, inset=0.4)
