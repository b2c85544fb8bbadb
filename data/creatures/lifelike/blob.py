"""Monsters that are one round or boxy body with few joints: slimes, mushrooms, bees, crabs, skulls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.creatures.body import SIDES, Vector, X, Y, Z, unit, v
from data.creatures.lifelike.figure import Figure


@dataclass(frozen=True)
class _Trunk:
    """The body: its main joint, the highest and the lowest on its axis, its middle and half extents.

    The middle and the extents are those of the stalk if there is a cap; `crown` is the point on top, and
    `crown_width` how wide it is there.
    """

    main: int
    top: int
    low: int
    middle: Vector
    size: tuple[float, float, float]
    crown: Vector
    crown_width: float


def blob(body: Figure) -> None:
    """3 to about 16 joints: stacked along the vertical axis, and a few limbs."""
    body.rounded()
    trunk = _trunk(body)
    _face(body, trunk)
    limbs = body.rng.random()
    if limbs < 0.3:
        _wings(body, trunk)
    elif limbs < 0.55:
        _arms(body, trunk)
    if body.chance(0.5):
        _feet(body, trunk)
    elif body.chance(0.15):
        _tentacles(body, trunk)
    _crown(body, trunk)


def _trunk(body: Figure) -> _Trunk:
    u = body.uniform
    high, wide = 0.5 * u(0.75, 1.0), 0.5 * u(0.65, 1.2)
    deep = wide * u(0.75, 1.05)
    lift = u(0.0, 0.25) if body.chance(0.5) else 0.0
    middle = v(0, lift + high, 0)
    bottom = v(0, lift, 0)
    main_at, z = u(0.2, 0.55), u(-0.15, 0.05) * deep
    way = v(0, 2 * high, 0)
    parent = -1
    order = body.rng.random()
    if body.chance(0.3):
        parent = body.joint("root", v(0, u(0.6, 1.0) * lift, u(-0.02, 0.02)), -1)
    if order < 0.5:
        # The root in the lower third, a joint below it and one or two above.
        main = body.joint("body", bottom + main_at * way + v(0, 0, z), parent)
        low = body.joint("base", bottom + u(0.0, 0.06) * way + v(0, 0, z), main)
        count = body.pick(1, 2)
        tops = body.chain(
            "top",
            [
                bottom + t * way + v(0, 0, z)
                for t in np.linspace(main_at + 0.25, u(0.82, 0.94), count + 1)[1:]
            ],
            main,
        )
    else:
        # A chain from the bottom to the top.
        count = body.pick(3 if parent < 0 else 2, 4)
        heights = np.linspace(u(0.0, 0.15), u(0.55, 0.9), count)
        chain = body.chain("body", [bottom + t * way + v(0, 0, z) for t in heights], parent)
        main, low, tops = chain[(len(chain) - 1) // 2], chain[0], chain[1:]
    form = body.pick(0, 5)
    square = body.pick(1, 2) if body.chance(0.55) else 0
    taper = u(0.75, 1.25)
    # Stacked slabs along the axis: one for each joint, so that weights change with the height.
    owners = sorted({main, low, *tops}, key=lambda j: body.joints[j][1])
    ys = [body.joints[j][1] for j in owners]
    cuts = [bottom[1], *(0.5 * (a + b) for a, b in pairwise(ys)), bottom[1] + 2 * high]
    crown, crown_width = v(0, bottom[1] + 2 * high, 0), wide
    if form == 0:  # a stalk with a cap or a body with a large head
        cut = bottom[1] + u(0.45, 0.65) * 2 * high
        stalk = wide * u(0.45, 0.8)
        _slabs(body, owners, cuts, bottom[1], cut, (stalk * taper, stalk), (1.0, deep / wide), square)
        height = 0.5 * (bottom[1] + 2 * high - cut)
        body.ball(
            "cap", v(0, cut + 0.9 * height, 0), (wide, 1.1 * height, wide * u(0.85, 1.0)), owners[-1], square
        )
        wide, deep = stalk, stalk * deep / wide
        middle, high = v(0, 0.5 * (bottom[1] + cut), 0), 0.5 * (cut - bottom[1])
    else:
        _slabs(
            body,
            owners,
            cuts,
            bottom[1],
            bottom[1] + 2 * high,
            (wide, wide * taper),
            (1.0, deep / wide),
            square,
        )
    return _Trunk(main, owners[-1], owners[0], middle, (wide, high, deep), crown, crown_width)


def _slabs(
    body: Figure,
    owners: list[int],
    cuts: list[float],
    low: float,
    high: float,
    radii: tuple[float, float],
    wide: tuple[float, float],
    square: int,
) -> None:
    """A body of revolution from `low` to `high` in slabs, each bound to the joint at its height."""
    half = 0.5 * (high - low)
    edge = 0.55 if square else 1.0
    levels = sorted({*np.linspace(low, high, 8).tolist(), *(cut for cut in cuts if low < cut < high)})
    for a, b in pairwise(levels):
        if b - a < 0.01:
            continue
        owner = owners[int(np.searchsorted(cuts[1:-1], 0.5 * (a + b)))]
        ends = []
        for y in (a, b):
            t = (y - low) / (high - low)
            away = min(abs(2 * t - 1), 0.98)
            round_off = float((1 - away ** (2 / edge)) ** (0.5 * edge))
            ends.append((radii[0] + (radii[1] - radii[0]) * t) * max(round_off, 0.3))
        mean = 0.5 * (ends[0] + ends[1])
        cap = min(0.12 * half / mean, 0.5)
        body.flesh(
            "body",
            v(0, a, 0),
            v(0, b, 0),
            (ends[0], ends[1]),
            owner,
            X,
            wide,
            cap=cap,
            square=min(square, 1),
            flush=True,
        )


def _face(body: Figure, trunk: _Trunk) -> None:
    u = body.uniform
    wide, high, deep = trunk.size
    y = trunk.middle[1] + u(-0.1, 0.35) * high
    size = wide * u(0.12, 0.33)
    form = body.pick(0, 3)
    if form == 0:  # one eye
        at = v(0, y, 0.9 * deep)
        owner = body.joint("eye", at, trunk.main) if body.chance(0.3) else trunk.main
        body.ball("eye", at, (size * 1.2, size * 1.2, size), owner, worn=True)
    elif form < 3:
        apart, jointed = wide * u(0.35, 0.75), body.chance(0.1)
        ahead = deep * float(np.sqrt(max(1 - (apart / wide) ** 2, 0.15)))
        brow = body.chance(0.3)
        for sign, side in SIDES:
            at = v(sign * apart, y, ahead * 0.95)
            owner = body.joint(f"{side}_eye", at, trunk.main) if jointed else trunk.main
            body.ball(f"{side}_eye", at, (size, size, size), owner, worn=True)
            if brow:
                over = at + v(0, size * 1.2, 0.3 * size)
                joint = body.joint(f"{side}_brow", over, trunk.main)
                tilt = v(sign * 1.0, u(0.0, 0.4), 0)
                body.flesh(
                    f"{side}_brow",
                    over - 0.7 * size * tilt,
                    over + 0.7 * size * tilt,
                    (0.3 * size, 0.3 * size),
                    joint,
                    Z,
                    worn=True,
                )
    if body.chance(0.45):
        at = v(0, trunk.middle[1] - u(0.35, 0.7) * high, 0.75 * deep)
        parent = trunk.low if body.chance(0.7) else trunk.main
        owner = body.joint("mouth", at, parent) if body.chance(0.7) else parent
        body.ball("mouth", at, (0.4 * wide, 0.16 * high, 0.4 * deep), owner, body.pick(0, 1), worn=True)
        for k in range(body.pick(0, 4)):
            tooth = at + v((k - 1.5) * 0.18 * wide, 0.14 * high, 0.25 * deep)
            body.ball(f"tooth{k}", tooth, (0.06 * wide, 0.1 * high, 0.06 * wide), owner, worn=True)


def _wings(body: Figure, trunk: _Trunk) -> None:
    u = body.uniform
    wide, high, deep = trunk.size
    span, chord, count = wide * u(0.7, 1.6), high * u(0.2, 0.5), body.pick(1, 5)
    lift, z, drop = u(-0.1, 0.9), -u(0.0, 0.5) * deep, u(0, 0.5)
    y = trunk.middle[1] + u(-0.3, 0.4) * high
    inner = u(0.45, 0.95)
    bat = body.chance(0.5)
    for sign, side in SIDES:
        start = v(sign * inner * wide, y, z)
        t = np.linspace(0, 1, count + 1)[:, None]
        line = start + t * span * unit([sign, lift, 0]) + v(0, drop * span, 0) * t * (1 - t) * 2
        joints = body.chain(f"{side}_wing", line[:-1], trunk.main)
        shape = np.interp(t[:, 0], [0, 0.5, 1], [0.5, 1.0, 0.35 if bat else 0.7]) * chord
        thin = 0.035
        for k, joint in enumerate(joints):
            body.flesh(
                f"{side}_wing",
                line[k],
                line[k + 1],
                (thin, thin),
                joint,
                Y,
                (0.5 * (shape[k] + shape[k + 1]) / thin, 1.0),
                worn=body.finish.build != "one",
            )


def _arms(body: Figure, trunk: _Trunk) -> None:
    u = body.uniform
    wide, high, _ = trunk.size
    length, thick, count = wide * u(0.5, 1.3), wide * u(0.1, 0.2), body.pick(1, 3)
    y, inner, droop, ahead = trunk.middle[1] + u(-0.4, 0.2) * high, u(0.7, 0.95), u(-0.4, 1.0), u(0, 0.6)
    fist = thick * u(1.1, 2.2)
    owner = trunk.main if body.chance(0.75) else trunk.top
    for sign, side in SIDES:
        way = unit([sign * np.cos(droop), -np.sin(droop), ahead])
        line = v(sign * inner * wide, y, 0) + np.linspace(0, 1, count + 1)[:, None] * length * way
        joints = body.chain(f"{side}_arm", line[:-1], owner)
        for k, joint in enumerate(joints):
            body.flesh(f"{side}_arm", line[k], line[k + 1], (thick, thick * 0.85), joint, Z)
        body.ball(f"{side}_fist", line[-1], (fist, fist, fist), joints[-1])


def _feet(body: Figure, trunk: _Trunk) -> None:
    u = body.uniform
    wide, high, deep = trunk.size
    y = trunk.middle[1] - high
    leg = y + u(0.04, 0.15) * high if y > 0.03 else 0.08
    pairs = body.pick(1, 3) if body.chance(0.25) and len(body.joints) < 9 else 1
    thick = wide * u(0.12, 0.25)
    long, jointed, two = thick * u(1.0, 2.2), body.chance(0.85), pairs == 1 and body.chance(0.3)
    parent = body.parents[trunk.main] if body.parents[trunk.main] >= 0 and body.chance(0.5) else trunk.main
    for pair in range(pairs):
        z = (0.0, 0.5, -0.5)[pair] * deep
        for sign, side in SIDES:
            hip = v(sign * wide * 0.45, y + 0.12 * high, z)
            sole = v(hip[0], min(y, leg) - leg + 0.3 * thick, z)
            joint = body.joint(f"{side}_leg{pair}", hip, parent) if jointed else trunk.low
            foot = joint
            if jointed and two:
                foot = body.joint(f"{side}_foot{pair}", sole, joint)
            body.flesh(f"{side}_leg{pair}", hip, sole, (thick * 0.8, thick * 0.7), joint, Z)
            body.flesh(
                f"{side}_leg{pair}",
                sole,
                sole + v(0, 0, long),
                (0.6 * thick, 0.5 * thick),
                foot,
                X,
                (1.4, 1.0),
            )


def _tentacles(body: Figure, trunk: _Trunk) -> None:
    u = body.uniform
    wide, high, _ = trunk.size
    number, count = body.pick(4, 8), 2 if len(body.joints) < 6 and body.chance(0.3) else 1
    long, thick, out = u(0.3, 0.6), wide * u(0.1, 0.16), u(0.2, 1.2)
    for index in range(number):
        angle = 2 * np.pi * (index + 0.5) / number
        side = v(np.sin(angle), 0, np.cos(angle))
        start = v(0, trunk.middle[1] - 0.75 * high, 0) + 0.55 * wide * side
        t = np.linspace(0, 1, count + 1)[:, None]
        line = start + t * long * unit(out * side - Y)
        joints = body.chain(f"tentacle{index}", line[:-1], trunk.low)
        for k, joint in enumerate(joints):
            body.flesh(
                f"tentacle{index}",
                line[k],
                line[k + 1],
                (thick * (1 - 0.3 * k), thick * (0.7 - 0.3 * k)),
                joint,
                v(0.3, 0.2, 1),
            )


def _crown(body: Figure, trunk: _Trunk) -> None:
    """Antennae, horns, ears, spikes or a crest on top."""
    u = body.uniform
    wide, high, deep = trunk.size
    top, width = trunk.crown, trunk.crown_width
    form = body.pick(0, 5)
    if form in (0, 1, 2):
        long, apart = high * u(0.3, 0.9), width * u(0.25, 0.7)
        jointed = body.chance(0.25 if form == 0 else 0.1)
        thick = wide * (0.05 if form == 0 else u(0.12, 0.22))
        tilt = u(-0.2, 0.9)
        for sign, side in SIDES:
            root = top + v(sign * apart, -0.1 * high - 0.35 * high * (apart / width) ** 2, 0)
            tip = root + unit([sign * tilt, 1.0, 0.1]) * long
            owner = body.joint(f"{side}_horn", root, trunk.top) if jointed else trunk.top
            body.flesh(
                f"{side}_horn",
                root,
                tip,
                (thick, thick * (1.0 if form == 0 else 0.3)),
                owner,
                Z,
                (1.0, 1.0),
                worn=True,
            )
            if form == 0:
                body.ball(f"{side}_knob", tip, (2 * thick, 2 * thick, 2 * thick), owner, worn=True)
            elif form == 2:
                body.ball(f"{side}_knob", root, (1.5 * thick, 1.2 * thick, thick), owner, worn=True)
    elif form == 3:
        for k in range(body.pick(3, 9)):
            angle = 2.4 * k
            way = unit([np.sin(angle), u(0.2, 1.0), np.cos(angle) - 0.3])
            at = trunk.middle + way * [wide, high, deep] * 0.85
            body.flesh(f"spike{k}", at, at + way * 0.18, (0.06, 0.012), trunk.main, [0.2, 0.1, 1], worn=True)
    elif form == 4:
        body.flesh(
            "crest",
            top - v(0, 0.1 * high, 0),
            top + v(0, u(0.2, 0.8) * high, -u(0, 0.3)),
            (0.3 * wide, 0.2 * wide),
            trunk.top,
            X,
            (0.4, 1.0),
            worn=True,
        )
