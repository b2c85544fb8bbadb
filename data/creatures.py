"""Procedural creatures with known rigs: the embedded data set, generated from a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.mesh import Mesh, normalise
from data.rig import Rig, depth_first
from data.tubes import Tube, ellipsoid, mesh_tubes

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Creature:
    """A procedural creature: its mesh (mesh frame), its rig (bind pose, depth-first order) and its kind."""

    mesh: Mesh
    rig: Rig
    kind: str


def make_creature(seed: int, kind: str | None = None) -> Creature:
    """Make a creature; the same seed and kind always give the same one.

    `kind` is one of CREATURE_KINDS; None lets the seed choose, and gives what naming the chosen kind
    gives. y is up, the creature faces +z. The mesh (about 600 to 2500 vertices, mesh frame) is made of
    closed parts that overlap; the rig has 5 to 24 joints, each inside a part, and at most 4 weights per
    vertex, which sum to 1. Raises ValueError for an unknown kind.
    """
    if kind is None:
        kind = CREATURE_KINDS[int(np.random.default_rng([seed, 0]).integers(len(CREATURE_KINDS)))]
    if kind not in _BUILDERS:
        raise ValueError(f"unknown creature kind {kind!r}; choose one of {', '.join(CREATURE_KINDS)}")
    rng = np.random.default_rng([seed, 1 + CREATURE_KINDS.index(kind)])
    body = _Body(rng)
    _BUILDERS[kind](body)
    vertices, faces, weights = mesh_tubes(
        body.tubes, len(body.joints), target=int(rng.integers(350, 1300)), lowest=600, highest=2500
    )
    mesh = normalise(vertices, faces, f"{kind}_{seed}")
    joints = ((np.array(body.joints) - mesh.centre) * mesh.scale).astype(np.float32)
    rig = Rig(joints, np.array(body.parents), weights.astype(np.float32), tuple(body.names))
    return Creature(mesh, depth_first(rig), kind)


class _Body:
    """Collects joints and tubes while a creature is put together; lengths are in arbitrary units."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.joints: list[Vector] = []
        self.parents: list[int] = []
        self.names: list[str] = []
        self.tubes: list[Tube] = []
        self.blend = rng.uniform(0.25, 0.5)

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
        """
        both = np.asarray(radii, dtype=np.float64)
        if both.ndim == 1:
            both = np.stack([both, both], axis=1)
        self.tubes.append(
            Tube(np.asarray(path, float), both, tuple(owners), np.asarray(side, float), self.blend)
        )

    def blob(
        self, centre: ArrayLike, axis: ArrayLike, radii: tuple[float, float], owner: int, side: ArrayLike
    ) -> None:
        """An ellipsoid: `axis` is its half axis along its length, radii the ones across (side, other)."""
        self.tubes.append(
            ellipsoid(
                np.asarray(centre, float), np.asarray(axis, float), radii, owner, np.asarray(side, float)
            )
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
        radii (n,): at the points.
        """
        positions = np.asarray(points, dtype=np.float64)
        made = self.chain(name, positions[:-1], parent)
        start = self.joints[parent] + inset * (positions[0] - self.joints[parent])
        path = np.concatenate([start[None], positions])
        across = np.asarray(radii, dtype=np.float64)
        across = np.concatenate([across[:1], across])
        self.tube(path, across, [parent, *made], side)
        return made


_X, _Y, _Z = np.eye(3)


def _v(x: float, y: float, z: float) -> Vector:
    return np.array([x, y, z])


def _mirror(points: ArrayLike, sign: int) -> Vector:
    return np.asarray(points, dtype=np.float64) * np.array([sign, 1.0, 1.0])


def _biped(body: _Body) -> None:
    u = body.uniform
    thick = u(0.75, 1.5)
    leg, torso, arm = u(0.6, 1.1), u(0.5, 0.8), u(0.5, 0.9)
    hip_width, shoulder_width = u(0.1, 0.17) * thick, u(0.16, 0.25) * thick
    depth = u(0.6, 0.9)
    lean = u(-0.05, 0.12)
    waist, chest_radius, pelvis_radius = u(0.09, 0.14) * thick, u(0.13, 0.19) * thick, u(0.12, 0.17) * thick

    def spine_at(t: float) -> Vector:
        return np.array([0, leg + t * torso, lean * t * t])

    pelvis = body.joint("pelvis", spine_at(0.1), -1)
    spine = pelvis
    inner = [0.5] if body.chance(0.6) else [0.38, 0.58]
    spines = body.chain("spine", [spine_at(t) for t in inner], pelvis)
    spine = spines[-1]
    chest = body.joint("chest", spine_at(0.78), spine)
    path = [spine_at(-0.08), spine_at(0.1), *(spine_at(t) for t in inner), spine_at(0.78), spine_at(0.98)]
    wide = np.array(
        [pelvis_radius * 0.9, pelvis_radius, *([waist] * len(inner)), chest_radius, chest_radius * 0.7]
    )
    body.tube(path, np.stack([wide, wide * depth], axis=1), [pelvis, pelvis, *spines, chest], _X)

    head_size = u(0.1, 0.2)
    neck_length = u(0.04, 0.16)
    neck_base, head_base = spine_at(1.0), spine_at(1.0) + _v(0, neck_length, u(0, 0.05))
    head_centre = head_base + _v(0, head_size * 0.75, head_size * 0.1)
    neck_radius = u(0.045, 0.07) * thick
    if neck_length > 0.09 and body.chance(0.6):
        neck = body.joint("neck", neck_base, chest)
        head = body.joint("head", head_base, neck)
        body.tube(
            [spine_at(0.85), neck_base, head_base, head_centre],
            neck_radius * np.array([1.1, 1.1, 1.0, 1.0]),
            [chest, neck, head],
            _X,
        )
    else:
        head = body.joint("head", head_base, chest)
        body.tube(
            [spine_at(0.85), head_base, head_centre],
            [neck_radius * 1.2, neck_radius, neck_radius],
            [chest, head],
            _X,
        )
    body.blob(head_centre, [0, head_size, 0], (head_size * u(0.7, 1.0), head_size * u(0.75, 1.0)), head, _X)
    if body.chance(0.5):
        body.blob(
            head_centre + _v(0, -head_size * 0.15, head_size * 0.8),
            [0, 0, head_size * u(0.3, 0.7)],
            (head_size * 0.3, head_size * 0.3),
            head,
            _X,
        )
    ears = body.pick(0, 2)
    for sign in (1, -1) if ears else ():
        ear = head_centre + _mirror([head_size * 0.6, head_size * 0.75, 0], sign)
        long = head_size * (0.4 if ears == 1 else u(0.7, 1.3))
        body.blob(
            ear + _v(sign * long * 0.3, long * 0.5, 0),
            [sign * long * 0.4, long, 0],
            (head_size * 0.25, head_size * 0.15),
            head,
            _Z,
        )

    droop = u(-0.1, 1.25)  # 0: T-pose, about 0.7: A-pose
    bend = u(0, 0.35)
    swing = u(-0.5, 0.5) if body.chance(0.4) else 0.0
    stride = u(-0.35, 0.35) if body.chance(0.4) else 0.0
    arm_radius, hand = u(0.04, 0.065) * thick, u(0.05, 0.1) * thick
    clavicle, toes, wrists = body.chance(0.3), body.chance(0.35), body.chance(0.75)
    knee_bend, foot_length = u(0, 0.12), u(0.14, 0.26)
    leg_radius = u(0.06, 0.1) * thick
    boot = u(0.8, 1.3)
    for sign, side in ((1, "left"), (-1, "right")):
        shoulder = spine_at(0.9) + _v(sign * shoulder_width, -0.02, 0)
        parent = chest
        if clavicle:
            parent = body.joint(
                f"{side}_clavicle", spine_at(0.9) + _v(sign * shoulder_width * 0.35, 0, 0), chest
            )
        down = np.array([sign * np.cos(droop), -np.sin(droop), sign * swing * np.sin(droop)])
        fore = np.array(
            [
                sign * np.cos(droop + bend * 0.5),
                -np.sin(droop + bend * 0.5),
                sign * swing * np.sin(droop) + bend,
            ]
        )
        elbow = shoulder + down / np.linalg.norm(down) * arm * 0.5
        wrist = elbow + fore / np.linalg.norm(fore) * arm * 0.45
        tip = wrist + fore / np.linalg.norm(fore) * arm * 0.13
        points = [shoulder, elbow, wrist, tip] if wrists else [shoulder, elbow, tip]
        scales = [1.25, 1.0, 0.8] if wrists else [1.25, 1.0]
        body.limb(f"{side}_arm", points, np.append(arm_radius * np.array(scales), hand * 0.7), parent, _Z)
        hip = _v(sign * hip_width, leg, 0)
        step = sign * stride
        knee = hip + _v(sign * 0.02, -leg * 0.48, step * leg * 0.45 + knee_bend)
        ankle = np.array([knee[0], leg * 0.09, hip[2] + step * leg * 0.9 - knee_bend * 0.3])
        sole = ankle + _v(0, -leg * 0.05, 0)
        made = body.limb(
            f"{side}_leg",
            [hip, knee, ankle, sole],
            [leg_radius * 1.2, leg_radius * 0.9, leg_radius * 0.7, leg_radius * 0.7],
            pelvis,
            _Z,
            inset=0.7,
        )
        front = sole + _v(sign * 0.02, 0, foot_length)
        middle = sole + _v(sign * 0.01, 0, foot_length * 0.55)
        heel = sole + _v(0, 0, -foot_length * 0.15)
        foot_radii = np.array([0.8, 1.0, 0.8]) * leg_radius * boot
        owners = [made[-1], made[-1]]
        if toes:
            owners[1] = body.joint(f"{side}_toe", middle, made[-1])
        body.tube([heel, middle, front], np.stack([foot_radii, foot_radii * 0.7], axis=1), owners, _X)
    if body.chance(0.25):
        _tail(
            body,
            pelvis,
            spine_at(0.02) + _v(0, 0, -pelvis_radius * depth * 0.6),
            [0, -0.3, -1.0],
            u(0.4, 0.8),
            leg_radius * 0.7,
            body.pick(2, 3),
        )


def _tail(
    body: _Body, parent: int, start: Vector, direction: ArrayLike, length: float, radius: float, count: int
) -> None:
    """A tapering tail of `count` joints that leaves in `direction` and curls up or down."""
    heading = np.asarray(direction, dtype=np.float64)
    heading = heading / np.linalg.norm(heading)
    curl = body.uniform(-0.5, 0.9) / count
    points = [start]
    for _ in range(count):
        points.append(points[-1] + heading * length / count)
        heading = heading + _v(0, curl, 0)
        heading = heading / np.linalg.norm(heading)
    taper = np.linspace(1.0, body.uniform(0.25, 0.7), count + 1)
    body.limb("tail", points, radius * taper, parent, _X, inset=0.6)


def _quadruped(body: _Body) -> None:
    u = body.uniform
    length, thick = u(0.8, 1.5), u(0.75, 1.35)
    leg = u(0.45, 1.0)
    rear_radius, front_radius = u(0.15, 0.22) * thick, u(0.16, 0.25) * thick
    belly = u(0.8, 1.2) * 0.5 * (rear_radius + front_radius)
    narrow = u(0.7, 0.95)
    slope = u(-0.1, 0.12)
    back = leg + rear_radius * 0.6

    def spine_at(t: float) -> Vector:
        return np.array([0, back + slope * t, (t - 0.5) * length])

    pelvis = body.joint("pelvis", spine_at(0.12), -1)
    inner = [0.48] if length < 1.2 or body.chance(0.5) else [0.36, 0.6]
    spines = body.chain("spine", [spine_at(t) for t in inner], pelvis)
    chest = body.joint("chest", spine_at(0.82), spines[-1])
    path = [spine_at(0), spine_at(0.12), *(spine_at(t) for t in inner), spine_at(0.82), spine_at(1)]
    high = np.array(
        [rear_radius * 0.8, rear_radius, *([belly] * len(inner)), front_radius, front_radius * 0.75]
    )
    body.tube(path, np.stack([high * narrow, high], axis=1), [pelvis, pelvis, *spines, chest], _X)

    rise, reach = u(0.1, 0.8), u(0.12, 0.4)
    head_size = u(0.11, 0.18) * np.sqrt(thick)
    neck_base = spine_at(0.95) + _v(0, front_radius * 0.35, 0)
    head_base = neck_base + _v(0, rise, reach)
    neck_radius = u(0.45, 0.65) * front_radius
    joints_in_neck = 2 if rise > 0.5 else 1
    stations = [neck_base + (head_base - neck_base) * k / joints_in_neck for k in range(joints_in_neck)]
    necks = body.chain("neck", stations, chest)
    head = body.joint("head", head_base, necks[-1])
    tip = head_base + _v(0, head_size * 0.1, head_size * 0.5)
    taper = np.linspace(1.0, 0.7, joints_in_neck + 3) * neck_radius
    body.tube([spine_at(0.85), *stations, head_base, tip], taper, [chest, *necks, head], _X)
    centre = head_base + _v(0, head_size * 0.15, head_size * 0.45)
    body.blob(
        centre,
        [0, -head_size * 0.15, head_size * 1.1],
        (head_size * u(0.6, 0.85), head_size * 0.75),
        head,
        _X,
    )
    snout = head_size * u(0.3, 1.0)
    body.blob(
        centre + _v(0, -head_size * 0.3, head_size * 0.7 + snout * 0.4),
        [0, -snout * 0.25, snout],
        (head_size * 0.42, head_size * 0.38),
        head,
        _X,
    )
    ear, ear_width = head_size * u(0.4, 1.2), head_size * u(0.15, 0.3)
    spread = u(0.1, 0.8)
    for sign in (1, -1):
        root = centre + _mirror([head_size * 0.45, head_size * 0.55, -head_size * 0.35], sign)
        axis = np.array([sign * spread, 1.0, -0.2]) * ear * 0.7
        body.blob(root + axis * 0.7, axis, (ear_width, ear_width * 0.6), head, _Z)

    leg_radius = u(0.05, 0.085) * thick
    three = body.chance(0.55)  # thigh, shin and foot, or thigh and foot only
    step = u(0.05, 0.25) if body.chance(0.4) else 0.0
    knee_out = u(0.03, 0.13) * leg
    paw = leg_radius * u(1.0, 1.5)
    for parent, t, radius, place in (
        (chest, 0.82, front_radius, "front"),
        (pelvis, 0.12, rear_radius, "rear"),
    ):
        for sign, side in ((1, "left"), (-1, "right")):
            forward = step * sign * (1 if place == "front" else -1)
            hip = spine_at(t) + _v(sign * radius * narrow * 0.6, -radius * 0.35, 0)
            bend = -knee_out if place == "front" else knee_out
            top = hip[1]
            knee = np.array([hip[0] + sign * 0.01, top * 0.55, hip[2] + bend + forward * 0.5])
            ankle = np.array([knee[0], top * 0.16, hip[2] - bend * 0.6 + forward])
            sole = np.array([knee[0], leg_radius * 0.7, ankle[2] + leg_radius * 0.3])
            if three:
                points, scales = [hip, knee, ankle, sole], [1.7, 1.1, 0.8, 0.9]
            else:
                points, scales = [hip, knee, sole], [1.6, 1.0, 0.9]
            made = body.limb(f"{place}_{side}_leg", points, leg_radius * np.array(scales), parent, _Z)
            body.blob(sole + _v(0, 0, paw * 0.5), [0, 0, paw * 1.3], (paw, leg_radius * 0.75), made[-1], _X)
    tail = body.pick(0, 3)
    if tail:
        _tail(
            body,
            pelvis,
            spine_at(0) + _v(0, rear_radius * 0.2, -rear_radius * 0.3),
            [0, u(-0.8, 0.8), -1.0],
            u(0.25, 0.45) * tail,
            leg_radius * u(0.5, 1.1),
            tail,
        )


def _snake(body: _Body) -> None:
    u = body.uniform
    count = body.pick(4, 13)
    radius = u(0.05, 0.12)
    waves, amplitude, climb = u(0.4, 1.8), u(0.05, 0.3), u(0.0, 0.45) if body.chance(0.5) else 0.0
    phase = u(0, 2 * np.pi)
    coil = u(-1.2, 1.2)
    # Heading along the body, from the head (t = 0, facing +z) to the tail tip (t = 1).
    t = np.linspace(0, 1, 8 * (count + 1) + 1)
    angle = coil * t * 2 + 2 * amplitude * np.pi * waves * (
        np.sin(2 * np.pi * waves * t + phase) - np.sin(phase)
    )
    angle = np.clip(angle, -2.2, 2.2)
    steps = np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)], axis=1)
    line = np.cumsum(steps, axis=0) / len(t) * 2.2
    line[:, 1] = climb * np.clip(1 - t / 0.45, 0, 1) ** 2 + 0.02 * np.sin(2 * np.pi * waves * t)
    stations = line[::8]
    made = body.chain("body", stations[:-1], -1)
    shape = np.clip(np.linspace(1.25, 0.15, count + 2), None, 1.0)
    shape[0] = u(0.65, 0.9)
    fat = radius * shape
    flat = u(0.9, 1.3)
    body.tube(stations, np.stack([fat, fat * flat], axis=1), made, _Y)
    head = radius * u(1.1, 1.6)
    centre = stations[0] + _v(0, 0, head * 0.8)
    body.blob(centre, [0, -head * 0.1, head * u(1.2, 1.9)], (head * u(0.7, 1.0), head * 0.65), made[0], _X)
    if body.chance(0.35):
        horn = head * u(0.5, 1.0)
        for sign in (1, -1):
            body.blob(
                centre + _mirror([head * 0.45, head * 0.6, -head * 0.3], sign),
                [sign * horn * 0.2, horn, -horn * 0.6],
                (head * 0.18, head * 0.18),
                made[0],
                _X,
            )
    if body.chance(0.3):
        middle = stations[len(stations) // 3]
        body.blob(
            middle + _v(0, radius * 0.9, 0),
            [0, 0, radius * 2.0],
            (radius * 0.2, radius * 0.9),
            made[len(stations) // 3],
            _X,
        )


def _winged(body: _Body) -> None:
    u = body.uniform
    length, thick = u(0.5, 0.95), u(0.8, 1.4)
    radius = u(0.11, 0.17) * thick
    pitch = u(0.0, 0.8)
    axis = np.array([0, np.sin(pitch), np.cos(pitch)])
    leg = u(0.15, 0.4)
    middle = np.array([0, leg + radius + 0.3 * length * np.sin(pitch), 0])

    def spine_at(t: float) -> Vector:
        return middle + axis * (t - 0.5) * length

    pelvis = body.joint("pelvis", spine_at(0.2), -1)
    chest = body.joint("chest", spine_at(0.68), pelvis)
    body.tube(
        [spine_at(-0.05), spine_at(0.2), spine_at(0.68), spine_at(1.0)],
        radius * np.array([0.55, 0.9, 1.0, 0.65]),
        [pelvis, pelvis, chest],
        _X,
    )
    head_size = u(0.08, 0.13) * thick
    neck_length = u(0.08, 0.45)
    neck_way = np.array([0, u(0.3, 1.2), 1.0])
    neck_way /= np.linalg.norm(neck_way)
    head_base = spine_at(0.98) + neck_way * neck_length
    taper = np.linspace(0.55, 0.38, 4) * radius
    end = head_base + neck_way * head_size * 0.5
    if neck_length > 0.2:
        neck = body.joint("neck", spine_at(0.98), chest)
        head = body.joint("head", head_base, neck)
        body.tube([spine_at(0.8), spine_at(0.98), head_base, end], taper, [chest, neck, head], _X)
    else:
        head = body.joint("head", head_base, chest)
        body.tube([spine_at(0.8), head_base, end], taper[1:], [chest, head], _X)
    centre = head_base + neck_way * head_size * 0.5
    body.blob(centre, [0, 0, head_size * 1.15], (head_size * 0.85, head_size * 0.9), head, _X)
    beak = head_size * u(0.5, 1.6)
    body.blob(
        centre + _v(0, -head_size * 0.1, head_size + beak * 0.4),
        [0, -beak * 0.15, beak],
        (head_size * 0.3, head_size * 0.35),
        head,
        _X,
    )

    span, sweep, lift, dihedral = u(0.7, 1.4), u(-0.1, 0.45), u(-0.15, 0.45), u(-0.5, 0.3)
    chord = u(0.13, 0.28)
    bones = body.pick(2, 3)
    wing_pairs = 2 if body.chance(0.2) else 1
    for pair in range(wing_pairs):
        scale = 1.0 if pair == 0 else u(0.55, 0.85)
        root_t = 0.78 - 0.35 * pair
        for sign, side in ((1, "left"), (-1, "right")):
            root = spine_at(root_t) + _v(sign * radius * 0.6, radius * 0.35, 0)
            fractions = np.linspace(0, 1, bones + 1)
            away = fractions * span * scale
            points = root + np.stack(
                [
                    sign * away,
                    lift * away + dihedral * away * fractions,
                    -sweep * away * fractions - pair * 0.3 * away,
                ],
                axis=1,
            )
            widths = chord * scale * np.interp(fractions, [0, 0.35, 1], [0.75, 1.0, 0.45])
            made = body.chain(f"wing{pair}_{side}", points[:-1], chest if pair == 0 else pelvis)
            parent = chest if pair == 0 else pelvis
            # Straight inwards, whatever the parent's place: the tube must not run along its own chord.
            start = root - _v(sign * radius * 0.4, radius * 0.2, 0)
            radii = np.concatenate([widths[:1] * 0.7, widths])
            body.tube(
                np.concatenate([start[None], points]),
                np.stack([radii, np.maximum(radii * u(0.14, 0.2), 0.022)], axis=1),
                [parent, *made],
                _Z,
            )
    leg_pairs = 2 if wing_pairs == 1 and pitch < 0.35 and body.chance(0.35) else 1
    leg_radius = u(0.025, 0.045) * thick
    for pair in range(leg_pairs):
        owner, at = (pelvis, 0.25) if pair == 0 else (chest, 0.72)
        for sign, side in ((1, "left"), (-1, "right")):
            hip = spine_at(at) + _v(sign * radius * 0.5, -radius * 0.45, 0)
            drop = leg + (hip[1] - spine_at(0.25)[1] if pair else 0.0)
            knee = hip + _v(sign * 0.03, -drop * 0.5, -0.05)
            sole = hip + _v(sign * 0.03, -drop, 0.03)
            made = body.limb(
                f"leg{pair}_{side}", [hip, knee, sole], leg_radius * np.array([1.7, 1.0, 0.9]), owner, _Z
            )
            body.blob(
                sole + _v(0, 0, leg_radius),
                [0, 0, leg_radius * 2.2],
                (leg_radius * 1.3, leg_radius * 0.7),
                made[-1],
                _X,
            )
    tail_length = u(0.2, 0.8)
    start = spine_at(0.0)
    if tail_length < 0.45:
        tail = body.joint("tail", start, pelvis)
        end = start + np.array([0, -np.sin(pitch) * 0.6, -1.0]) * tail_length
        fan = u(0.6, 1.2) * radius
        body.tube(
            [spine_at(0.12), start, end],
            np.array([[0.5 * radius, 0.4 * radius], [0.6 * fan, 0.25 * radius], [fan, 0.12 * radius]]),
            [pelvis, tail],
            _X,
        )
    else:
        _tail(
            body, pelvis, start, [0, -np.sin(pitch) * 0.5, -1.0], tail_length, radius * 0.45, body.pick(2, 3)
        )


def _many_limbed(body: _Body) -> None:
    form = body.pick(0, 2)
    (_octopus, _spider, _starfish)[form](body)


def _octopus(body: _Body) -> None:
    u = body.uniform
    arms = body.pick(5, 8)
    bones = 2 if arms > 6 else body.pick(2, 3)
    size = u(0.2, 0.3)
    tall = u(1.0, 1.7)
    height = u(0.35, 0.6)
    root = body.joint("mantle", [0, height, 0], -1)
    head = body.joint("head", [0, height + size * 0.8 * tall, -size * 0.2], root)
    path = np.array(
        [
            _v(0, height - size * 0.2, 0),
            body.joints[root],
            body.joints[head],
            _v(0, height + size * 1.5 * tall, -size * 0.5),
        ]
    )
    body.tube(path, size * np.array([0.6, 0.75, 1.0, 0.75]), [root, root, head], _X)
    if body.chance(0.7):
        for sign in (1, -1):
            body.blob(
                [sign * size * 0.5, height + size * 0.5, size * 0.6],
                [0, size * 0.22, 0],
                (size * 0.2, size * 0.2),
                root,
                _X,
            )
    _ring_of_limbs(
        body,
        root,
        arms,
        bones,
        base=size * 0.45,
        reach=u(0.7, 1.2),
        radius=u(0.05, 0.085),
        arch=u(0.0, 0.25),
        floor=height,
        curl=u(-0.1, 0.35),
        taper=0.3,
    )


def _spider(body: _Body) -> None:
    u = body.uniform
    pairs = body.pick(3, 4)
    height, size = u(0.25, 0.55), u(0.14, 0.22)
    thorax = body.joint("thorax", [0, height, 0], -1)
    head = body.joint("head", [0, height + size * 0.1, size * 1.2], thorax)
    abdomen = body.joint("abdomen", [0, height + size * 0.15, -size * 1.1], thorax)
    body.tube(
        [
            body.joints[abdomen] * 0.8 + body.joints[thorax] * 0.2,
            body.joints[thorax],
            body.joints[head] * 0.8 + body.joints[thorax] * 0.2,
        ],
        np.array([[0.7, 0.5], [1.0, 0.7], [0.65, 0.5]]) * size,
        [thorax, thorax],
        _X,
    )
    fat = size * u(1.0, 1.6)
    long = size * u(1.2, 2.0)
    body.blob(
        body.joints[abdomen] + _v(0, fat * 0.1, -long * 0.75),
        [0, u(0, 0.3) * long, -long],
        (fat, fat * 0.85),
        abdomen,
        _X,
    )
    head_size = size * u(0.6, 0.9)
    body.blob(
        body.joints[head] + _v(0, 0, head_size * 0.3),
        [0, 0, head_size],
        (head_size, head_size * 0.8),
        head,
        _X,
    )
    if body.chance(0.5):
        for sign in (1, -1):
            jaw = head_size * u(0.5, 0.9)
            body.blob(
                body.joints[head] + _v(sign * head_size * 0.4, -head_size * 0.3, head_size * 1.3),
                [sign * -0.1 * jaw, -jaw * 0.4, jaw],
                (head_size * 0.2, head_size * 0.2),
                head,
                _X,
            )
    reach, radius, arch = u(0.7, 1.2), u(0.03, 0.05), u(0.15, 0.6)
    for pair in range(pairs):
        for sign, side in ((1, "left"), (-1, "right")):
            fan = (pair / (pairs - 1) - 0.5) * u(1.6, 1.7)
            out = np.array([sign * np.cos(fan), 0, -np.sin(fan)])
            hip = body.joints[thorax] + out * size * 0.75 + _v(0, 0, (0.5 - pair / (pairs - 1)) * size * 0.8)
            knee = hip + out * reach * 0.42 + _v(0, arch, 0)
            foot = hip + out * reach + _v(0, radius - height, 0)
            body.limb(
                f"leg{pair}_{side}",
                [hip, knee, foot],
                radius * np.array([1.4, 1.1, 0.5]),
                thorax,
                np.cross(out, _Y),
                inset=0.3,
            )


def _starfish(body: _Body) -> None:
    u = body.uniform
    arms = body.pick(5, 7)
    bones = body.pick(2, 3)
    size = u(0.16, 0.28)
    root = body.joint("core", [0, size * 0.5, 0], -1)
    body.blob([0, size * 0.5, 0], [0, size * u(0.4, 0.8), 0], (size, size), root, _X)
    _ring_of_limbs(
        body,
        root,
        arms,
        bones,
        base=size * 0.55,
        reach=u(0.6, 1.0),
        radius=u(0.09, 0.14),
        arch=u(-0.02, 0.2),
        floor=size * 0.4,
        curl=u(-0.2, 0.4),
        taper=u(0.35, 0.7),
    )


def _ring_of_limbs(
    body: _Body,
    root: int,
    count: int,
    bones: int,
    base: float,
    reach: float,
    radius: float,
    arch: float,
    floor: float,
    curl: float,
    taper: float,
) -> None:
    """`count` limbs of `bones` joints around the root joint, arching over to the floor."""
    centre = body.joints[root]
    turn = np.pi / count
    wave = body.uniform(-0.5, 0.5)
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


_BUILDERS: dict[str, Callable[[_Body], Any]] = {
    "biped": _biped,
    "quadruped": _quadruped,
    "snake": _snake,
    "winged": _winged,
    "many_limbed": _many_limbed,
}
CREATURE_KINDS: tuple[str, ...] = tuple(_BUILDERS)
