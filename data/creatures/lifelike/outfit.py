"""What characters wear and hold: hair, hats, clothes, capes, packs, weapons and shields."""

from __future__ import annotations

import numpy as np

from data.creatures import props
from data.creatures.body import SIDES, X, Y, Z, unit, v
from data.creatures.lifelike.figure import Figure
from data.creatures.lifelike.landmarks import Landmarks
from data.creatures.swept_surfaces import GridPatch


def dress(body: Figure, marks: Landmarks) -> None:
    """A random selection of clothes and things."""
    top = body.rng.random()
    if top < 0.35:
        _hair(body, marks)
    elif top < 0.52:
        props.hat(body, marks.head, marks.head_centre, max(marks.head_size) * 0.95)
    elif top < 0.66:
        _hood(body, marks)
    elif top < 0.72:
        _helmet(body, marks)
    if body.chance(0.12):
        _horns(body, marks)
    if body.chance(0.35):
        _tunic(body, marks)
    if body.chance(0.3):
        _belt(body, marks)
    if body.chance(0.35):
        _boots(body, marks)
    if body.chance(0.3):
        _cuffs(body, marks)
    if body.chance(0.22):
        _pads(body, marks)
    if body.chance(0.2):
        _collar(body, marks)
    back = body.rng.random()
    if back < 0.17:
        _cape(body, marks)
    elif back < 0.3:
        _pack(body, marks)
    if body.chance(0.08) and not body.crowded:
        _tail(body, marks)
    if body.chance(0.35):
        _hold(body, marks)


def _hair(body: Figure, marks: Landmarks) -> None:
    u = body.uniform
    c, (a, h, d) = marks.head_centre, marks.head_size
    body.ball("hair", c + v(0, 0.28 * h, -0.18 * d), (1.08 * a, 0.85 * h, 1.02 * d), marks.head, worn=True)
    form = body.pick(0, 4)
    if form == 0:  # long, over the neck
        body.ball(
            "hair", c + v(0, -0.5 * h, -0.65 * d), (0.95 * a, u(0.7, 1.3) * h, 0.5 * d), marks.head, worn=True
        )
    elif form == 1:  # a ponytail, at times with joints
        root, way = c + v(0, 0.5 * h, -1.05 * d), unit([0, -1.0, -u(0.2, 1.2)])
        count = body.pick(1, 3)
        line = root + np.linspace(0, 1, count + 1)[:, None] * way * h * u(1.0, 1.8)
        joints = (
            body.chain("ponytail", line[:-1], marks.head)
            if body.chance(0.5) and not body.crowded
            else [marks.head] * count
        )
        for k, joint in enumerate(joints):
            body.flesh("ponytail", line[k], line[k + 1], (0.25 * h, 0.2 * h), joint, worn=True)
    elif form == 2:  # spikes
        for k in range(body.pick(3, 7)):
            angle = np.pi * (k + 0.5) / 7
            way = unit([0.4 * np.sin(5.0 * k), np.sin(angle), np.cos(angle) - 0.4])
            root = c + way * [a, h, d] * 0.8
            body.flesh(
                f"spike{k}",
                root,
                root + way * h * 0.6,
                (0.22 * h, 0.05 * h),
                marks.head,
                [1, 0.1, 0.2],
                worn=True,
            )
    elif form == 3:  # a bun
        body.ball("bun", c + v(0, 0.9 * h, -0.7 * d), (0.4 * a, 0.4 * h, 0.4 * a), marks.head, worn=True)
    if body.chance(0.12):  # a beard
        body.ball("beard", c + v(0, -0.85 * h, 0.6 * d), (0.7 * a, 0.6 * h, 0.5 * d), marks.head, worn=True)


def _hood(body: Figure, marks: Landmarks) -> None:
    c, (a, h, d) = marks.head_centre, marks.head_size
    body.ball("hood", c + v(0, 0.1 * h, -0.22 * d), (1.15 * a, 1.05 * h, 1.02 * d), marks.head, worn=True)
    if body.chance(0.6):
        body.flesh(
            "hood",
            c + v(0, 0.7 * h, -0.7 * d),
            c + v(0, 0.7 * h, -1.5 * d),
            (0.5 * h, 0.1 * h),
            marks.head,
            worn=True,
        )


def _helmet(body: Figure, marks: Landmarks) -> None:
    c, (a, h, d) = marks.head_centre, marks.head_size
    size = max(a, h, d) * body.uniform(1.1, 1.3)
    body.ball("helmet", c, (size, size, size), marks.head, body.pick(0, 1), worn=True)


def _horns(body: Figure, marks: Landmarks) -> None:
    c, (a, h, d) = marks.head_centre, marks.head_size
    long, bend = h * body.uniform(0.5, 1.2), body.uniform(0.2, 1.5)
    for sign, side in SIDES:
        root = c + v(sign * 0.75 * a, 0.55 * h, 0.1 * d)
        middle = root + unit([sign, 0.6, 0.1]) * 0.5 * long
        tip = middle + unit([sign * 0.4, bend, 0.1]) * 0.5 * long
        body.flesh(f"{side}_horn", root, middle, (0.2 * h, 0.15 * h), marks.head, Z, worn=True)
        body.flesh(f"{side}_horn", middle, tip, (0.15 * h, 0.03 * h), marks.head, Z, worn=True)


def _tunic(body: Figure, marks: Landmarks) -> None:
    """A shell around the hips that hangs over the thighs: a tunic, coat, robe or skirt."""
    u = body.uniform
    length = marks.leg * (u(0.2, 0.5) if body.chance(0.7) else u(0.5, 0.85))
    wide, deep = (1.08 * max(p, w) for p, w in zip(marks.pelvis_size, marks.waist_size, strict=True))
    top, hem = marks.leg + u(0.1, 0.3) * marks.torso, marks.leg - length
    flare = u(1.0, 1.5)
    form = body.rng.random()
    z = 0.0
    if form < 0.4:  # rigid on the pelvis
        body.flesh(
            "tunic",
            v(0, top, z),
            v(0, hem + 0.04, z),
            (deep, deep * flare),
            marks.pelvis,
            X,
            (wide / deep, 1.0),
            0.3,
            worn=True,
        )
    elif form < 0.75:  # two panels that follow the thighs
        body.flesh(
            "tunic",
            v(0, top, z),
            v(0, marks.leg, z),
            (deep, deep),
            marks.pelvis,
            X,
            (wide / deep, 1.0),
            0.3,
            worn=True,
        )
        for sign, thigh in zip((1, -1), marks.thighs, strict=True):
            middle = v(sign * 0.45 * wide, marks.leg, z)
            body.flesh(
                "tunic",
                middle,
                v(sign * 0.5 * wide * flare, hem, z),
                (deep, deep * flare),
                thigh,
                X,
                (0.62 * wide / deep, 1.0),
                0.2,
                worn=True,
            )
    elif form < 0.9 or body.crowded:
        props.skirt(
            body, marks.pelvis, (marks.thighs[0], marks.thighs[1]), v(0, top, z), (wide, deep), top - hem
        )
    else:  # flaps with joints of their own
        count = body.pick(1, 2)
        for name, z0 in (("front", deep), ("back", -deep)):
            line = [
                v(0, top, 0.75 * z0),
                *(v(0, top + (hem - top) * (k + 1) / count, z0 * 1.1) for k in range(count)),
            ]
            joints = body.chain(f"skirt_{name}", line[:-1], marks.pelvis)
            for k, joint in enumerate(joints):
                body.flesh(
                    f"flap_{name}",
                    line[k],
                    line[k + 1],
                    (0.02, 0.02),
                    joint,
                    X,
                    (0.7 * wide / 0.02, 1.0),
                    worn=True,
                )


def _belt(body: Figure, marks: Landmarks) -> None:
    high, y = body.uniform(0.012, 0.025), marks.leg + body.uniform(0.05, 0.25) * marks.torso
    wide, deep = (1.12 * max(p, w) for p, w in zip(marks.pelvis_size, marks.waist_size, strict=True))
    body.ball("belt", v(0, y, 0), (wide, high, deep), marks.pelvis, square=1, worn=True)
    for k in range(body.pick(0, 2)):
        size = body.uniform(0.02, 0.04)
        place = v((-0.8, 0.8)[k] * wide, y - size * 0.5, 0.55 * deep)
        body.ball(f"pouch{k}", place, (size, size, size * 0.7), marks.pelvis, square=2, worn=True)


def _boots(body: Figure, marks: Landmarks) -> None:
    thick, top, rim = body.uniform(1.15, 1.5), body.uniform(0.25, 0.85), body.chance(0.5)
    for (_, side), shin, (_, knee, ankle) in zip(SIDES, marks.shins, marks.leg_points, strict=True):
        r = marks.leg_radius * 0.75 * thick
        high = ankle + (knee - ankle) * top
        body.flesh(f"{side}_boot", high, ankle, (r * 1.1, r * 0.95), shin, cap=0.3, worn=True)
        if rim:
            step = 0.06 * (knee - ankle)
            body.flesh(f"{side}_rim", high - step, high + step, (r * 1.3, r * 1.3), shin, cap=0.3, worn=True)


def _cuffs(body: Figure, marks: Landmarks) -> None:
    """Gauntlets, bracers or rolled sleeves."""
    start, stop, thick = body.uniform(0.1, 0.5), body.uniform(0.75, 1.0), body.uniform(1.15, 1.6)
    for (_, side), joint, (_, elbow, wrist) in zip(SIDES, marks.forearms, marks.arm_points, strict=True):
        along = wrist - elbow
        r = marks.arm_radius * thick
        body.flesh(
            f"{side}_cuff",
            elbow + start * along,
            elbow + stop * along,
            (r * 0.9, r),
            joint,
            Z,
            cap=0.3,
            worn=True,
        )


def _pads(body: Figure, marks: Landmarks) -> None:
    size, lift, flat = (
        marks.arm_radius * body.uniform(1.5, 2.4),
        body.uniform(0.1, 0.8),
        body.uniform(0.5, 0.9),
    )
    square = body.pick(0, 1)
    for (_, side), joint, (shoulder, elbow, _) in zip(SIDES, marks.arms, marks.arm_points, strict=True):
        place = shoulder + 0.15 * (elbow - shoulder) + v(0, lift * size, 0)
        body.ball(f"{side}_pad", place, (size, size * flat, size), joint, square, worn=True)


def _collar(body: Figure, marks: Landmarks) -> None:
    """A scarf or collar."""
    wide = marks.chest_size[0] * body.uniform(0.6, 0.95)
    place = marks.neck_base + v(0, -0.01, 0)
    body.ball("collar", place, (wide, body.uniform(0.02, 0.04), wide * 0.8), marks.chest, worn=True)


def _cape(body: Figure, marks: Landmarks) -> None:
    u = body.uniform
    top = marks.neck_base - v(0, 0.03, marks.chest_size[1] * 1.25 + marks.neck_base[2])
    wide, length = marks.chest_size[0] * u(0.8, 1.1), u(0.55, 0.95) * top[1]
    torso = [marks.pelvis, *marks.spines]
    form = body.rng.random()
    if form < 0.45:  # rigid on the chest
        props.cape(body, [marks.chest], top, wide, length, u(0.0, 0.6))
    elif form < 0.75 or body.crowded:
        props.cape(body, torso, top, wide, length, u(0.0, 0.6))
    else:  # a chain of its own
        count = body.pick(2, 4)
        rows = 2 * count
        line = [top - v(0, length * k / count, 0.1 * length * k / count) for k in range(count + 1)]
        joints = body.chain("cape", line[:-1], marks.chest)
        down = np.linspace(0, 1, rows + 1)[:, None]
        across = np.linspace(-1, 1, 7)[None]
        points = np.stack(
            [
                wide * (1 + 0.3 * down) * across,
                top[1] - length * down + 0 * across,
                top[2] - 0.1 * length * down + 0 * across,
            ],
            axis=-1,
        )
        steps = np.clip(count * down - np.arange(count)[None] + 0.5, 0, 1)
        steps[:, 0] = 1
        shares = np.concatenate([steps[:, :-1] - steps[:, 1:], steps[:, -1:]], axis=1)
        weights = np.broadcast_to(shares[:, None], (rows + 1, 7, count))
        body.patches.append(GridPatch(points[:, ::-1], tuple(joints), weights))


def _pack(body: Figure, marks: Landmarks) -> None:
    """A backpack, jet pack or quiver."""
    u = body.uniform
    wide, deep = marks.chest_size[0] * u(0.5, 1.0), marks.chest_size[1] * u(0.5, 1.2)
    high = marks.torso * u(0.25, 0.5)
    place = v(0, marks.leg + 0.62 * marks.torso, -marks.chest_size[1] - 0.8 * deep)
    body.ball("pack", place, (wide, high, deep), marks.chest, square=body.pick(0, 2), worn=True)
    if body.chance(0.4):
        body.flesh(
            "roll",
            place + v(-wide, high, 0),
            place + v(wide, high, 0),
            (0.3 * high, 0.3 * high),
            marks.chest,
            Y,
            worn=True,
        )


def _tail(body: Figure, marks: Landmarks) -> None:
    count, length, lift = body.pick(2, 5), body.uniform(0.2, 0.5), body.uniform(-0.5, 0.6)
    start = v(0, marks.leg + 0.08 * marks.torso, -marks.pelvis_size[1] * 0.8)
    t = np.linspace(0, 1, count + 1)[:, None]
    line = start + t * length * unit([0, lift, -1]) + t**2 * v(0, 0.4 * length * body.uniform(-0.5, 1), 0)
    joints = body.chain("tail", line[:-1], marks.pelvis)
    radii = marks.leg_radius * np.linspace(0.8, body.uniform(0.3, 0.9), count + 1)
    for k, joint in enumerate(joints):
        body.flesh("tail", line[k], line[k + 1], (radii[k], radii[k + 1]), joint)


def _hold(body: Figure, marks: Landmarks) -> None:
    """A weapon or tool, at times with a joint of its own, and at times a shield or a second one."""
    right = body.pick(0, 1)
    size = body.uniform(0.35, 0.7)
    slots = body.chance(0.4)
    for index in (right, 1 - right) if body.chance(0.35) else (right,):
        joint, grip, fore = marks.hands[index], marks.grips[index], marks.headings[index]
        if slots:
            place = grip + 0.3 * marks.arm_radius * fore - v(0, 0.5 * marks.arm_radius, 0)
            joint = body.joint(f"{('left', 'right')[index]}_slot", place, joint)
        if index == right or body.chance(0.3):
            if body.chance(0.3):
                _gun(body, joint, grip, fore, size)
            else:
                props.weapon(body, joint, grip, fore, size)
        else:
            outward = v(0.3 * fore[0], 1.0, 0) if abs(fore[0]) > 0.7 else v(np.sign(grip[0]), 0, 0.3)
            outward = unit(outward - (outward @ fore) * fore)
            props.shield(body, joint, grip + outward * 1.5 * marks.arm_radius, outward, size)


def _gun(body: Figure, hand: int, grip: np.ndarray, fore: np.ndarray, size: float) -> None:
    """A gun or tool that points along the forearm: boxes in a row."""
    thick = size * body.uniform(0.05, 0.09)
    length = size * body.uniform(0.4, 0.9)
    up = unit(Y - (Y @ fore) * fore) if abs(fore[1]) < 0.9 else Z
    at = grip + up * 1.2 * thick
    body.prop(
        [at - fore * 0.35 * length, at + fore * 0.35 * length],
        [[thick * 1.4, thick], [thick * 1.2, thick]],
        hand,
        up,
        corners=4,
    )
    body.prop(
        [at + fore * 0.3 * length, at + fore * length * 0.8], [thick * 0.5, thick * 0.45], hand, up, corners=6
    )
    body.prop([grip - up * 1.5 * thick, at], [thick * 0.7, thick * 0.7], hand, fore, corners=4)
