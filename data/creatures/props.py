"""Props that creatures wear or hold: weapons, shields, hats, clothes, spikes."""

from itertools import pairwise

import numpy as np

from data.creatures.body import Body, Vector, X, Y, Z, unit, v
from data.creatures.swept_surfaces import GridPatch


def weapon(body: Body, hand: int, grip: Vector, fore: Vector, size: float) -> None:
    """A sword, axe, hammer, spear or staff held in `grip`; `fore` is the direction of the forearm."""
    form = body.pick(0, 3)
    # Held across the hand: at right angles to the forearm, forward and up.
    ahead = unit(v(0, body.uniform(-0.2, 1.2), 1.0))
    ahead = unit(ahead - 0.8 * (ahead @ fore) * fore)
    across = unit(np.cross(ahead, fore))
    thin = size * body.uniform(0.022, 0.035)
    if form == 0:
        blade, handle = size * body.uniform(0.5, 1.1), size * 0.18
        guard = grip + ahead * handle * 0.6
        body.prop([grip - ahead * handle * 0.7, guard], [thin, thin], hand, across)
        wide = thin * body.uniform(1.4, 2.8)
        body.prop([guard - across * 0.1 * size, guard + across * 0.1 * size], [thin, thin], hand, ahead)
        body.prop(
            [guard, guard + ahead * blade * 0.85, guard + ahead * blade],
            [[wide, thin * 0.5], [wide * 0.9, thin * 0.5], [wide * 0.15, thin * 0.3]],
            hand,
            across,
            corners=4,
        )
        return
    low, high = size * body.uniform(0.15, 0.8), size * body.uniform(0.4, 1.0)
    top = grip + ahead * high
    body.prop([grip - ahead * low, top], [thin, thin], hand, across, corners=None if form == 3 else 6)
    if form == 1:
        head = size * body.uniform(0.12, 0.22)
        middle = top - ahead * head
        body.prop(
            [middle, middle + across * head * 1.2],
            [[head * 0.5, thin * 1.2], [head, thin * 0.3]],
            hand,
            ahead,
            corners=4,
        )
    elif form == 2:
        head = size * body.uniform(0.1, 0.2)
        body.prop(
            [top - across * head, top + across * head], [head * 0.6, head * 0.6], hand, ahead, corners=4
        )
    else:
        knob = size * body.uniform(0.05, 0.12)
        body.ellipsoid(top, ahead * knob, (knob, knob), hand, across, prop=True)


def shield(body: Body, joint: int, at: Vector, outward: Vector, size: float) -> None:
    """A round or long plate that faces `outward`."""
    wide, thick = size * body.uniform(0.2, 0.4), size * 0.03
    tall = wide * body.uniform(1.0, 1.6)
    up = Y - 0.9 * (Y @ outward) * outward
    if body.chance(0.5):
        body.ellipsoid(at, outward * thick, (tall, wide), joint, up, prop=True)
    else:
        body.prop([at - outward * thick, at + outward * thick], [[tall, wide]] * 2, joint, up, corners=4)


def hat(body: Body, head: int, centre: Vector, size: float) -> None:
    """A helmet, a wide-brimmed hat or a pointed hat."""
    form = body.pick(0, 2)
    if form == 0:
        body.ellipsoid(
            centre + v(0, size * 0.15, 0), [0, size * 1.05, 0], (size * 1.12, size * 1.12), head, X, prop=True
        )
        if body.chance(0.5):
            body.ellipsoid(
                centre + v(0, size * 1.2, -size * 0.2),
                [0, -size * 0.1, size * 0.9],
                (size * 0.1, size * 0.35),
                head,
                X,
                prop=True,
            )
        return
    brim = centre + v(0, size * 0.55, 0)
    wide = size * body.uniform(1.1, 1.9)
    body.prop([brim, brim + v(0, size * 0.1, 0)], [wide, wide * 0.95], head, X)
    tall = size * (body.uniform(0.6, 1.0) if form == 1 else body.uniform(1.2, 2.2))
    tip = 0.8 if form == 1 else 0.12
    body.prop([brim, brim + v(0, tall, -tall * 0.1)], [size * 0.9, size * 0.9 * tip], head, X)


def pads(body: Body, joints: list[int], places: list[Vector], size: float) -> None:
    """Shoulder pads; they may float above the shoulders."""
    lift = body.uniform(0.4, 1.3)
    flat = body.uniform(0.4, 0.8)
    for joint, place in zip(joints, places, strict=True):
        sign = np.sign(place[0])
        body.ellipsoid(
            place + v(sign * size * 0.3, size * lift, 0),
            [sign * size * 0.35, size * flat, 0],
            (size, size * 1.1),
            joint,
            Z,
            prop=True,
        )


def backpack(body: Body, chest: int, at: Vector, size: float) -> None:
    deep = size * body.uniform(0.4, 0.8)
    body.prop(
        [at + v(0, -size, -deep * 0.8), at + v(0, size * 0.8, -deep * 0.8)],
        [[size * 0.9, deep], [size * 0.75, deep * 0.9]],
        chest,
        X,
        corners=4,
    )


def belt(body: Body, pelvis: int, at: Vector, wide: float, deep: float) -> None:
    high = body.uniform(0.03, 0.06)
    body.prop([at - v(0, high, 0), at + v(0, high, 0)], [[wide, deep]] * 2, pelvis, X)


def cape(
    body: Body, joints: list[int], top: Vector, wide: float, length: float, flare: float, rows: int = 8
) -> None:
    """An open patch hanging down the back from `top`; each row follows the one of `joints` at its height.

    `joints` are ordered from the lowest to the highest.
    """
    columns = 7
    down = np.linspace(0, 1, rows + 1)[:, None]
    across = np.linspace(-1, 1, columns)[None]
    half = wide * (1 + flare * down)
    wave = body.uniform(0, 0.04) * np.sin(across * body.uniform(4, 9)) * down
    # At the top the edges wrap forward around the shoulders.
    points = np.stack(
        [
            half * across,
            top[1] - length * down + 0 * across,
            top[2] - 0.15 * length * down + wave + 0.25 * wide * across**2 * (1 - down),
        ],
        axis=-1,
    )
    heights = np.array([body.joints[joint][1] for joint in joints])
    y = points[..., 1]
    steps = [np.ones_like(y)]
    for low, high in pairwise(heights.tolist()):
        s = np.clip((y - low) / (high - low), 0, 1)
        steps.append(np.minimum(steps[-1], s * s * (3 - 2 * s)))
    steps.append(np.zeros_like(y))
    weights = np.stack([steps[i] - steps[i + 1] for i in range(len(joints))], axis=-1)
    body.patches.append(GridPatch(points[:, ::-1], tuple(joints), weights[:, ::-1]))


def skirt(
    body: Body, pelvis: int, thighs: tuple[int, int], waist: Vector, radii: tuple[float, float], length: float
) -> None:
    """An open cone around the hips; its lower part follows the `thighs` (left, right)."""
    rows, columns = 6, 20
    flare = body.uniform(0.3, 1.1)
    angle = np.arange(columns) * (2 * np.pi / columns)
    down = np.linspace(0, 1, rows + 1)[:, None]
    widen = 1 + flare * down
    points = np.stack(
        [
            waist[0] + radii[0] * widen * np.cos(angle),
            waist[1] - length * down + 0 * angle,
            waist[2] + radii[1] * widen * np.sin(angle),
        ],
        axis=-1,
    )
    hip = body.joints[thighs[0]][1]
    low = np.clip((hip + 0.05 - points[..., 1]) / (0.6 * length + 0.05), 0, 1)
    follow = 0.8 * low * low * (3 - 2 * low)
    s = np.clip(points[..., 0] / (2.4 * radii[0]) + 0.5, 0, 1)
    left = s * s * (3 - 2 * s)
    weights = np.stack([1 - follow, follow * left, follow * (1 - left)], axis=-1)
    body.patches.append(GridPatch(points, (pelvis, *thighs), weights, closed=True))


def spikes(
    body: Body, joints: list[int], up: Vector, height: float, radius: float, lift: list[float]
) -> None:
    """A row of spikes along the back: one for each joint, `lift` above it and bound to it."""
    for joint, rise in zip(joints, lift, strict=True):
        foot = body.joints[joint] + up * rise
        body.prop(
            [foot - up * height * 0.3, foot + up * height * 0.5, foot + up * height],
            [radius, radius * 0.5, radius * 0.1],
            joint,
            X,
            corners=4,
        )
