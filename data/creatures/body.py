"""The builder that collects a creature's joints and parts, and limbs that many creatures share."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.creatures.swept_surfaces import Sheet, Tube, ellipsoid

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
    """How all parts of a creature are shaped.

    `sides`: corners of the cross sections, None for round ones. `square`: exponent of the cross sections.
    `segmented`: every bone is a stiff part of its own, as in a robot or a mannequin. `trim`: faces within
    other parts are left out.
    """

    sides: int | None
    square: float
    segmented: bool
    trim: bool


class Body:
    """Collects joints and parts while a creature is put together; lengths are in arbitrary units."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.joints: list[Vector] = []
        self.parents: list[int] = []
        self.names: list[str] = []
        self.tubes: list[Tube] = []
        self.sheets: list[Sheet] = []
        self.blend = rng.uniform(0.25, 0.5)
        boxy = self.chance(0.2)
        self.style = Style(
            sides=(4, 5, 6, 8)[self.pick(0, 3)] if boxy else None,
            square=(0.45, 0.6, 0.8)[self.pick(0, 2)] if self.chance(0.25) else 1.0,
            segmented=self.chance(0.1),
            trim=self.chance(0.65),
        )

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def joint(self, name: str, position: ArrayLike, parent: int) -> int:
        self.joints.append(np.asarray(position, dtype=np.float64))
        self.parents.append(parent)
        self.names.append(name)
        return len(self.joints) - 1

    def chain(self, name: str, positions: ArrayLike, parent: int) -> list[int]:
        """Joints one after the other, the first a child of `parent`."""
        made: list[int] = []
        for index, position in enumerate(np.asarray(positions, dtype=np.float64)):
            made.append(self.joint(f"{name}_{index}", position, made[-1] if made else parent))
        return made

    def tube(self, path: ArrayLike, radii: ArrayLike, owners: list[int], side: ArrayLike) -> None:
        """A tube through `path` (n + 1, 3); segment i belongs to joint owners[i], n of them.

        radii (n + 1,) or (n + 1, 2): across `side` direction and the direction at right angles to it.
        A segmented body gets one tube for each owner.
        """
        points, both = np.asarray(path, float), np.asarray(radii, dtype=np.float64)
        if both.ndim == 1:
            both = np.stack([both, both], axis=1)
        cuts = [0, len(owners)]
        if self.style.segmented:
            cuts = [0, *(i for i in range(1, len(owners)) if owners[i] != owners[i - 1]), len(owners)]
        for start, stop in pairwise(cuts):
            self.tubes.append(
                Tube(
                    points[start : stop + 1],
                    both[start : stop + 1],
                    tuple(owners[start:stop]),
                    np.asarray(side, float),
                    self.blend,
                    sides=self.style.sides,
                    square=self.style.square,
                )
            )

    def blob(
        self,
        centre: ArrayLike,
        axis: ArrayLike,
        radii: tuple[float, float],
        owner: int,
        side: ArrayLike,
        prop: bool = False,
    ) -> None:
        """An ellipsoid: `axis` is its half axis along its length, radii the ones across (side, other)."""
        sides = self.style.sides
        self.tubes.append(
            ellipsoid(
                np.asarray(centre, float),
                np.asarray(axis, float),
                radii,
                owner,
                np.asarray(side, float),
                sides,
                prop,
            )
        )

    def prop(
        self,
        path: ArrayLike,
        radii: ArrayLike,
        owner: int,
        side: ArrayLike,
        sides: int | None = None,
        cap: float = 0.0,
    ) -> None:
        """A stiff thing that is worn or held: a tube with flat ends, owned by one joint alone."""
        points, both = np.asarray(path, float), np.asarray(radii, dtype=np.float64)
        if both.ndim == 1:
            both = np.stack([both, both], axis=1)
        owners = (owner,) * (len(points) - 1)
        self.tubes.append(
            Tube(points, both, owners, np.asarray(side, float), 0.0, sides=sides, cap=cap, prop=True)
        )

    def limb(
        self,
        name: str,
        points: ArrayLike,
        radii: ArrayLike,
        parent: int,
        side: ArrayLike,
        inset: float = 0.5,
    ) -> list[int]:
        """Joints at all of `points` (n, 3) but the last, which is the tip, and one tube through them.

        The tube starts inside the parent: `inset` of the way from the parent joint to the first joint.
        radii (n,) or (n, 2): at the points.
        """
        positions = np.asarray(points, dtype=np.float64)
        made = self.chain(name, positions[:-1], parent)
        start = self.joints[parent] + inset * (positions[0] - self.joints[parent])
        across = np.asarray(radii, dtype=np.float64)
        self.tube(
            np.concatenate([start[None], positions]),
            np.concatenate([across[:1], across]),
            [parent, *made],
            side,
        )
        return made


def even_joints(length: float, spacing: float, low: int, high: int) -> int:
    """How many joints a chain of this length has: one per `spacing`, so that the shape tells."""
    return int(np.clip(round(length / spacing), low, high))


def curl_line(start: Vector, direction: ArrayLike, length: float, count: int, turn: ArrayLike) -> Vector:
    """`count` + 1 evenly spaced points; `turn` is added to the heading over the whole length."""
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
    most: int = 6,
) -> list[int]:
    """A tail that leaves in `direction`, tapers or is bushy, and curls; one joint per `spacing`."""
    count = even_joints(length, spacing, 1, most)
    turn = v(body.uniform(-0.5, 0.5) if body.chance(0.25) else 0.0, body.uniform(-0.6, 1.0), 0)
    points = curl_line(start, direction, length, count, turn)
    if body.chance(0.25):
        t = np.linspace(0, 1, count + 1)
        widths = 0.8 + 1.4 * np.sin(np.pi * np.clip(t * 1.1, 0, 1)) - 0.4 * t
    else:
        widths = np.linspace(1.0, body.uniform(0.25, 0.7), count + 1)
    made = body.limb("tail", points, radius * widths, parent, X, inset=0.6)
    if body.chance(0.15):
        tuft = radius * body.uniform(1.2, 2.2)
        body.blob(points[-1], unit(points[-1] - points[-2]) * tuft * 1.4, (tuft, tuft), made[-1], X)
    return made


def ear(
    body: Body, name: str, root: Vector, axis: Vector, radii: tuple[float, float], head: int, long: bool
) -> None:
    """An ear along `axis` from `root`; a long one has two joints of its own, a short one none."""
    if not long:
        body.blob(root + axis * 0.35, axis * 0.5, radii, head, Z)
        return
    path = np.array([root, root + axis * 0.5, root + axis])
    widths = np.array([[0.6, 0.6], [1.0, 1.0], [0.5, 0.6]]) * np.array(radii)
    made = body.chain(name, path[:-1], head)
    start = root - axis * 0.15
    body.tube([start, *path], np.concatenate([widths[:1], widths]), [head, *made], Z)


def membrane(
    body: Body, line: Vector, owners: list[int], drop: ArrayLike, widths: ArrayLike, rows: int = 3
) -> None:
    """An open sheet that hangs from the chain `line` (n + 1, 3) of n joints into the direction `drop`.

    widths (n + 1,): how far it reaches. Weights go over from one joint to the next around the joints.
    """
    count = len(owners)
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
    body.sheets.append(Sheet(points, tuple(owners), weights))


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
    most: int,
) -> None:
    """`count` limbs around the root joint, arching over to the floor; one joint per `spacing`."""
    centre = body.joints[root]
    turn = np.pi / count
    wave = body.uniform(-0.5, 0.5)
    bones = even_joints(reach, spacing, 2, most)
    for index in range(count):
        angle = turn + 2 * np.pi * index / count
        fractions = np.linspace(0, 1, bones + 1)
        away = base + fractions * reach
        bent = angle + curl * fractions**2 * (1 + wave * np.sin(3 * angle))
        rise = arch * np.sin(np.pi * fractions * 0.9) - (floor - radius * 0.5) * fractions
        points = centre + np.stack([away * np.sin(bent), rise, away * np.cos(bent)], axis=1)
        points[0, 1] = centre[1] - 0.1 * base
        side = np.array([np.cos(angle), 0, -np.sin(angle)])
        body.limb(f"arm{index}", points, radius * np.linspace(1.0, taper, bones + 1), root, side, inset=0.4)
