"""Four-legged animals and dinosaurs, built and rigged as in game packs: from pug to horse to tyrannosaur."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.creatures.body import SIDES, Vector, X, Y, Z, unit, v
from data.creatures.lifelike.figure import Figure


@dataclass(frozen=True)
class _Form:
    """Proportions in units of the trunk's length, from hip to shoulder. Radii are half heights."""

    leg: float
    front_leg: float
    rear: float
    chest: float
    belly: float
    narrow: float
    neck: float
    neck_angle: float
    head: float
    snout: float
    tail: float
    tail_angle: float
    thick: float


@dataclass(frozen=True)
class _Custom:
    """Choices of the rigger.

    `scheme`: "back" (a root below the belly, the spine starts at the hips), "middle" (a root on the ground,
    two chains from the trunk's middle) or "hips" (the root is at the hips). `feet`: the feet are children of
    the root. `inner`: legs start with a joint near the middle plane. `leg_bones`: visible joints of a leg.
    """

    scheme: str
    feet: bool
    inner: bool
    leg_bones: int
    spines: int
    necks: int
    ears: int
    tails: int


@dataclass(frozen=True, eq=False)
class _Trunk:
    root: int
    hips: int
    shoulders: int
    neck_parent: int
    tail_parent: int
    hip: Vector
    shoulder: Vector


def pack_quadruped(body: Figure) -> None:
    """A four-legged animal, or a dinosaur on its hind legs."""
    body.rounded()
    upright = body.chance(0.12)  # walks on its hind legs, as a tyrannosaur does
    form, custom = _form(body, upright), _custom(body)
    trunk = _trunk(body, form, custom, upright)
    _legs(body, form, custom, trunk, upright)
    _front(body, form, custom, trunk)
    _tail(body, form, custom, trunk)


def _form(body: Figure, upright: bool) -> _Form:
    u = body.uniform
    bulk = u(0.75, 1.35)
    stocky = body.chance(0.3)
    long_neck = body.chance(0.3)
    leg = u(0.75, 1.1) if upright else u(0.35, 0.65) if stocky else u(0.6, 1.15)
    rear = u(0.2, 0.3) * bulk
    return _Form(
        leg=leg,
        front_leg=leg * u(0.35, 0.6) if upright else leg,
        rear=rear,
        chest=rear * u(0.9, 1.35),
        belly=rear * u(0.85, 1.4),
        narrow=u(0.6, 1.0),
        neck=u(0.5, 1.1) if long_neck else u(0.12, 0.5),
        neck_angle=u(0.4, 1.35) if long_neck else u(0.0, 1.1),
        head=rear * (u(0.7, 1.1) if stocky or upright else u(0.45, 0.75)),
        snout=u(0.6, 2.2),
        tail=u(0.7, 1.4) if upright else u(0.08, 1.1),
        tail_angle=u(-0.2, 0.35) if upright else u(-1.3, 1.2),
        thick=u(0.26, 0.48),
    )


def _custom(body: Figure) -> _Custom:
    scheme = ("back", "middle", "hips")[int(np.searchsorted([0.38, 0.66], body.rng.random()))]
    feet = scheme != "hips" and body.chance(0.75)
    return _Custom(
        scheme=scheme,
        feet=feet,
        inner=body.chance(0.65 if scheme != "hips" else 0.25),
        leg_bones=body.pick(3, 4) if feet else body.pick(2, 4),
        spines=body.pick(1, 4),
        necks=body.pick(1, 3),
        ears=0 if body.chance(0.45) else body.pick(1, 4),
        tails=body.pick(1, 8) if body.chance(0.9) else 0,
    )


def _trunk(body: Figure, form: _Form, custom: _Custom, upright: bool) -> _Trunk:
    u = body.uniform
    slope = u(0.0, 0.25) if upright else u(-0.1, 0.1)
    line_height = u(-0.2, 0.6)
    height = form.leg + 0.35 * form.rear

    def at(t: float) -> Vector:
        """A point of the spine: 0 at the hips, 1 at the shoulders."""
        return v(0, height + slope * t, t - 0.5)

    def joint_at(t: float) -> Vector:
        thick = np.interp(t, [0, 0.5, 1], [form.rear, form.belly, form.chest])
        return at(t) + v(0, line_height * thick, 0)

    if custom.scheme == "middle":
        root = body.joint("root", v(0, 0, u(-0.15, 0.15)), -1)
        middle = body.joint("body", joint_at(u(0.4, 0.6)) - v(0, u(0.0, 0.8) * form.belly, 0), root)
        front = [body.joint("shoulders", joint_at(u(0.6, 0.8)), middle)]
        hips = middle
        owners_front = front
        tail_parent = body.joint("back", joint_at(u(-0.1, 0.15)), middle)
        rears = [tail_parent]
        if body.chance(0.7):
            rear = body.joint("hips", joint_at(u(0.1, 0.3)), middle)
            rears = [tail_parent, rear]
            if body.chance(0.5):
                body.joint("torso", joint_at(u(0.45, 0.6)), rear)
        chain = [*rears, middle, *owners_front]
        shoulders, neck_parent = middle, front[-1]
    else:
        root = -1
        if custom.scheme == "back":
            root = body.joint("root", v(0, height * u(0.2, 0.5), u(-0.1, 0.1)), -1)
        elif body.chance(0.2):
            root = body.joint("root", v(0, 0, u(-0.5, 0.1)), -1)
        hips = body.joint("hips", joint_at(u(-0.05, 0.15)), root)
        first = 0.25 if custom.spines > 1 else 0.45
        spines = body.chain(
            "spine", [joint_at(t) for t in np.linspace(first, u(0.7, 0.95), custom.spines)], hips
        )
        chain = [hips, *spines]
        tail_parent, shoulders, neck_parent = hips, spines[-1], spines[-1]
        root = max(root, 0)
    # The trunk in slabs between the chain's joints.
    chain.sort(key=lambda j: body.joints[j][2])
    z = np.array([body.joints[j][2] + 0.5 for j in chain])
    cuts = np.concatenate([[-0.08], 0.5 * (z[1:] + z[:-1]) if custom.scheme == "middle" else z[1:], [1.05]])
    curve = (
        np.array([-0.1, 0.1, 0.5, 0.9, 1.1]),
        np.array([0.75, 1.0, form.belly / form.rear, form.chest / form.rear, 0.75 * form.chest / form.rear])
        * form.rear,
    )
    sag = u(-0.25, 0.1) * form.belly
    for owner, low, high in zip(chain, cuts[:-1], cuts[1:], strict=True):
        pieces = max(int(np.ceil((high - low) / 0.25)), 1)
        levels = np.linspace(low, high, pieces + 1)
        for a, b in pairwise(levels.tolist()):
            if b - a < 0.01:
                continue
            ends = [at(t) + v(0, sag * np.sin(np.pi * np.clip(t, 0, 1)), 0) for t in (a, b)]
            radii = np.interp([a, b], *curve)
            body.flesh(
                "trunk",
                ends[0],
                ends[1],
                (radii[0], radii[1]),
                owner,
                X,
                (form.narrow, 1.0),
                cap=0.45,
                flush=True,
            )
    return _Trunk(root, hips, shoulders, neck_parent, tail_parent, at(0.05), at(0.92))


def _legs(body: Figure, form: _Form, custom: _Custom, trunk: _Trunk, upright: bool) -> None:
    u = body.uniform
    paw = body.chance(0.5)
    r = form.thick * form.rear * 0.75
    for place, parent, top, reach, radius in (
        ("rear", trunk.hips, trunk.hip, form.leg, form.rear),
        ("front", trunk.shoulders, trunk.shoulder, form.front_leg, form.chest),
    ):
        hind = place == "rear"
        drop, out = u(-0.5, 0.1), u(0.5, 0.8) * form.narrow * radius
        start = top + v(0, drop * radius, 0.0)
        floor = 0.0 if hind or not upright else start[1] - reach
        # Knee and hock of a hind leg, elbow and wrist of a foreleg.
        bend = u(0.05, 0.2) * (1.3 if hind else -0.7)
        knee_y, hock_y = u(0.5, 0.68), u(0.14, 0.34) if hind else u(0.1, 0.36)
        if custom.leg_bones == 2:
            hock_y = u(0.1, 0.18)
        inner_x = u(0.05, 0.5)
        length = start[1] - floor
        ahead = u(0.0, 0.5) * form.front_leg if upright and not hind else 0.0
        toe_long = r * (u(1.2, 2.4) if paw else u(0.4, 1.0))
        thick_top = u(1.4, 2.3)
        for sign, side in SIDES:
            hip = start + v(sign * out, 0, 0)
            knee = v(hip[0], floor + length * knee_y, hip[2] + bend * length + 0.4 * ahead)
            hock = v(hip[0], floor + length * hock_y, hip[2] - (0.7 * bend * length if hind else 0.0) + ahead)
            foot = v(
                hip[0],
                floor + max(0.5 * r, 0.06 * length),
                hock[2] + (0.25 * bend * length if hind else 0.02),
            )
            owner = parent
            name = f"{place}_{side}"
            if custom.inner:
                owner = body.joint(f"{name}_shoulder", v(hip[0] * inner_x, hip[1], hip[2]), owner)
                near = body.joints[owner]
                body.flesh(f"{name}_leg", near, hip, (r * 1.6, r * 1.8), owner, Y)
            thigh = body.joint(f"{name}_upper", hip, owner)
            shin = body.joint(f"{name}_lower", knee, thigh)
            cannon = body.joint(f"{name}_cannon", hock, shin) if custom.leg_bones == 4 else shin
            end = cannon
            if custom.leg_bones > 2:
                place_of_end = foot if custom.leg_bones > 3 else 0.6 * hock + 0.4 * foot
                end = body.joint(f"{name}_foot", place_of_end, trunk.root if custom.feet else cannon)
            toe = end
            if custom.feet and custom.spines > 2 and paw:
                toe = body.joint(f"{name}_toe", foot + v(0, -0.2 * r, 0.7 * toe_long), end)
            part = f"{name}_leg"
            body.flesh(part, hip, knee, (r * thick_top, r * 1.1), thigh, X, (0.75, 1.0))
            body.flesh(part, knee, hock, (r * 1.05, r * 0.75), shin)
            body.flesh(part, hock, foot, (r * 0.75, r * 0.7), end if custom.leg_bones == 3 else cannon)
            body.flesh(
                part,
                foot,
                foot + v(0, -0.25 * r, toe_long),
                (r * (1.0 if paw else 0.85), r * 0.7),
                toe,
                X,
                (1.1, 0.8),
            )
            if toe != end:
                body.ball(part, foot, (r, r * 0.9, r), end)


def _front(body: Figure, form: _Form, custom: _Custom, trunk: _Trunk) -> None:
    """Neck, head, muzzle, ears, horns."""
    u = body.uniform
    base = trunk.shoulder + v(0, u(0.1, 0.5) * form.chest, u(0.2, 0.5) * form.chest)
    way = v(0, np.sin(form.neck_angle), np.cos(form.neck_angle))
    count = custom.necks if form.neck > 0.2 else 1
    bow = u(-0.1, 0.25)
    t = np.linspace(0, 1, count + 1)[:, None]
    line = base + t * form.neck * way + np.sin(np.pi * t) * bow * form.neck * v(0, -way[2], way[1])
    joints = body.chain("neck", line[:-1], trunk.neck_parent)
    thick = np.linspace(u(0.55, 0.85) * form.chest, max(0.62 * form.head, 0.3 * form.chest), count + 1)
    for k, joint in enumerate(joints):
        body.flesh("neck", line[k], line[k + 1], (thick[k], thick[k + 1]), joint, X, (0.75, 1.0))
    size = form.head
    head_base = line[-1]
    head = body.joint("head", head_base, joints[-1])
    pitch = u(-0.75, 0.1)
    ahead = v(0, np.sin(pitch), np.cos(pitch))
    up = v(0, np.cos(pitch), -np.sin(pitch))
    skull = head_base + 0.45 * size * ahead + 0.25 * size * up
    wide = size * u(0.65, 1.0)
    body.ball("head", skull, (wide, size * 0.85, size * 0.95), head)
    long = size * form.snout
    nose = skull + ahead * (0.4 * size + long) - up * 0.25 * size
    body.flesh(
        "head", skull - up * 0.15 * size, nose, (size * 0.62, size * u(0.25, 0.5)), head, X, (0.8, 1.0)
    )
    if body.chance(0.15):
        chin = skull - up * 0.6 * size
        jaw = body.joint("jaw", chin + 0.1 * size * ahead, head)
        body.flesh("jaw", chin, nose - up * 0.3 * size, (size * 0.25, size * 0.18), jaw, X)
    if body.chance(0.3):
        for sign, side in SIDES:
            place = skull + 0.45 * size * ahead + 0.35 * size * up + sign * 0.75 * wide * X
            body.ball(f"{side}_eye", place, (0.17 * size,) * 3, head, worn=True)
    ear = size * u(0.4, 1.3)
    tilt, flat = u(0.1, 1.4), u(0.2, 0.4)
    if body.chance(0.85):
        bones = custom.ears
        for sign, side in SIDES:
            root = skull + sign * 0.6 * wide * X + 0.6 * size * up - 0.25 * size * ahead
            points = root + np.linspace(0, 1, max(bones, 1) + 1)[:, None] * ear * unit(sign * tilt * X + up)
            owners = body.chain(f"{side}_ear", points[:-1], head) if bones else [head]
            widths = ear * flat * np.linspace(1.0, 0.3, len(points))
            for k, owner in enumerate(owners):
                body.flesh(
                    f"{side}_ear", points[k], points[k + 1], (widths[k], widths[k + 1]), owner, Z, (0.6, 1.0)
                )
    if body.chance(0.2):
        horn, bend = size * u(0.6, 2.4), u(-0.8, 0.8)
        for sign, side in SIDES:
            root = skull + sign * 0.4 * wide * X + 0.65 * size * up
            middle = root + unit(sign * 0.3 * X + up - 0.2 * ahead) * 0.5 * horn
            tip = middle + unit(sign * 0.6 * X + up + bend * ahead) * 0.5 * horn
            body.flesh(f"{side}_horn", root, middle, (0.13 * size, 0.1 * size), head, Z, worn=True)
            body.flesh(f"{side}_horn", middle, tip, (0.1 * size, 0.03 * size), head, Z, worn=True)
            if horn > 1.4 * size:
                body.flesh(
                    f"{side}_horn",
                    middle,
                    middle + 0.4 * horn * unit(ahead + 0.4 * up),
                    (0.08 * size, 0.03 * size),
                    head,
                    X,
                    worn=True,
                )
    if body.chance(0.15):  # a mane
        body.flesh(
            "mane",
            base + v(0, 0.4 * form.chest, 0),
            skull + 0.8 * size * up,
            (0.3 * form.chest, 0.2 * size),
            joints[0],
            X,
            (0.35, 1.0),
            worn=True,
        )


def _tail(body: Figure, form: _Form, custom: _Custom, trunk: _Trunk) -> None:
    u = body.uniform
    if not custom.tails:
        return
    count = min(custom.tails, max(int(form.tail / 0.09), 1))
    start = trunk.hip + v(0, 0.45 * form.rear, -0.75 * form.rear)
    heading, turn = v(0, np.sin(form.tail_angle), -np.cos(form.tail_angle)), u(-1.3, 1.6)
    points = [start]
    for _ in range(count):
        points.append(points[-1] + heading * form.tail / count)
        heading = unit(heading + turn / count * v(0, -heading[2], heading[1]) * -1)
    line = np.array(points)
    joints = body.chain("tail", line[:-1], trunk.tail_parent)
    base, end = form.rear * u(0.15, 0.4), u(0.2, 1.1)
    if form.tail > 0.7 and body.chance(0.5):
        base = form.rear * u(0.4, 0.65)
    bushy = u(1.2, 2.0) if body.chance(0.3) else 1.0
    t = np.linspace(0, 1, count + 1)
    radii = base * (1 + (end - 1) * t) * (1 + (bushy - 1) * np.sin(np.pi * t))
    for k, joint in enumerate(joints):
        body.flesh("tail", line[k], line[k + 1], (radii[k], radii[k + 1]), joint)
    if body.chance(0.1):
        for k, joint in enumerate(joints):
            body.flesh(
                f"plate{k}",
                line[k],
                line[k] + 1.8 * radii[k] * Y,
                (0.6 * radii[k], 0.1 * radii[k]),
                joint,
                X,
                (0.3, 1.0),
                worn=True,
            )
