"""Machines: walkers and robots of rigid parts with two or four legs, turrets, pilots, arms and guns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.creatures.body import SIDES, Vector, X, Y, Z, unit, v
from data.creatures.lifelike.figure import Figure


def mech(body: Figure) -> None:
    """A machine of rigid parts on two or four legs."""
    u = body.uniform
    # Parts are rigid; many are boxes.
    body.finish = replace(
        body.finish,
        build="boxes" if body.chance(0.45) else "parts",
        softness=0.05,
        square=body.pick(0, 2),
        blend=0.01,
    )
    high, size = u(0.3, 0.7), u(0.16, 0.32)
    wide, tall, deep = size * u(0.8, 1.3), size * u(0.7, 1.2), size * u(0.8, 1.4)
    middle = v(0, high + 0.6 * tall, 0)
    walker = body.chance(0.35)  # a round body low between the legs
    root = -1
    if body.chance(0.4):
        root = body.joint("root", v(0, u(0.0, 0.05), u(-0.1, 0.1)), -1)
    pelvis = body.joint("body", middle + v(0, -tall * u(0.2, 0.8), u(-0.3, 0.6) * deep), root)
    torso = pelvis
    if body.chance(0.6):
        torso = body.joint("torso", middle + v(0, -tall * u(0.0, 0.6), u(-0.2, 0.2) * deep), pelvis)
        body.ball("pelvis", middle - v(0, tall, 0), (0.6 * wide, 0.3 * tall, 0.5 * deep), pelvis, 2)
    body.ball("body", middle, (wide, tall, deep), torso, 0 if walker else body.pick(0, 2))
    for k in range(body.pick(1, 9)):  # plates, vents, lamps
        place = middle + unit(v(u(-1, 1), u(-0.5, 1), u(-1, 1))) * [wide, tall, deep] * 0.9
        extent = size * np.array([u(0.1, 0.4), u(0.1, 0.35), u(0.1, 0.4)])
        body.ball(f"plate{k}", place, (extent[0], extent[1], extent[2]), torso, 2, worn=True)
    if body.chance(0.35):
        eye = middle + v(0, u(-0.1, 0.4) * tall, 0.9 * deep)
        owner = body.joint("eye", eye - v(0, 0, 0.5 * deep), torso) if body.chance(0.5) else torso
        body.ball("eye", eye, (0.3 * size,) * 3, owner, worn=True)
    _top(body, torso, middle, (wide, tall, deep))
    _legs(body, pelvis, root, middle, (wide, tall, deep), walker)
    if body.chance(0.35):
        _arms(body, torso, middle, (wide, tall, deep))


def _top(body: Figure, torso: int, middle: Vector, extent: tuple[float, float, float]) -> None:
    """A turret, a head on a neck, or nothing."""
    u = body.uniform
    wide, tall, deep = extent
    top = middle + v(0, tall, u(-0.4, 0.3) * deep)
    form = body.rng.random()
    if form < 0.35:  # a turret
        owner = body.joint("turret", top + v(0, u(-0.2, 0.1) * tall, 0), torso)
        body.ball("turret", top + v(0, 0.3 * tall, 0), (0.7 * wide, 0.35 * tall, 0.7 * deep), owner, 2)
        barrels = body.pick(1, 2)
        for k in range(barrels):
            start = top + v((k - 0.5 * (barrels - 1)) * 0.7 * wide, 0.3 * tall, 0.5 * deep)
            body.flesh(
                f"barrel{k}",
                start,
                start + v(0, 0, u(0.5, 1.4) * deep),
                (0.14 * wide,) * 2,
                owner,
                X,
                cap=0.2,
            )
    elif form < 0.8:  # a pilot or a head
        chain = [torso]
        for k in range(body.pick(0, 2)):
            place = top + v(0, (k - 0.7) * 0.3 * tall, 0)
            chain.append(body.joint(("chest", "neck")[k], place, chain[-1]))
            body.ball(
                f"neck{k}", place + v(0, 0.15 * tall, 0), (0.4 * wide, 0.3 * tall, 0.4 * wide), chain[-1]
            )
        base = top + v(0, 0.1 * tall, 0)
        owner = body.joint("head", base, chain[-1])
        size = wide * u(0.35, 0.75)
        body.ball(
            "head",
            base + v(0, 0.8 * size, 0.1 * size),
            (size, size * u(0.6, 1.1), size),
            owner,
            body.pick(0, 2),
        )
        if body.chance(0.5):
            for sign, side in SIDES:
                root = base + v(sign * 0.5 * size, 1.4 * size, 0)
                body.flesh(
                    f"{side}_antenna",
                    root,
                    root + v(sign * 0.2, 1, 0) * size,
                    (0.1 * size, 0.06 * size),
                    owner,
                    Z,
                    worn=True,
                )
        if body.chance(0.4):
            for sign, side in SIDES:
                body.ball(
                    f"{side}_lamp",
                    base + v(sign * 0.4 * size, size, size),
                    (0.2 * size,) * 3,
                    owner,
                    worn=True,
                )


def _legs(
    body: Figure, pelvis: int, root: int, middle: Vector, extent: tuple[float, float, float], walker: bool
) -> None:
    u = body.uniform
    wide, tall, deep = extent
    pairs = 2 if body.chance(0.25) else 1
    foot_free = body.chance(0.45)
    thick, bones, zigzag = 0.3 * wide * u(0.5, 1.2), body.pick(2, 4), u(0.05, 0.35)
    out = u(0.9, 1.7) if walker else u(0.7, 1.25)
    for pair in range(pairs):
        z = 0.0 if pairs == 1 else (0.6, -0.6)[pair] * deep
        for sign, side in SIDES:
            hip = middle + v(sign * out * wide * 0.8, -u(0.4, 0.4) * tall, z)
            floor = v(hip[0] + sign * (0.6 * wide if walker else 0.0), 0.04, z)
            t = np.linspace(0, 1, bones + 1)[1:-1]
            line = [hip]
            for k, share in enumerate(t):
                bend = zigzag * hip[1] * (1 if k % 2 == 0 else -1)
                turn = v(sign * 0.6 * bend, 0.3 * hip[1] * (k == 1), 0) if walker else v(0, 0, bend)
                line.append(hip + share * (floor - hip) + turn)
            line.append(floor)
            name = f"{side}_leg{pair}"
            joints = body.chain(name, line[:-1], pelvis)
            if foot_free:
                ankle = floor + 0.15 * (line[-2] - floor)
                foot = body.joint(f"{name}_foot", ankle, max(root, 0))
            else:
                foot = joints[-1]
            body.ball(f"{name}_hub", hip, (1.2 * thick,) * 3, joints[0])
            for k, joint in enumerate(joints):
                scale = thick * (1.1 - 0.15 * k)
                body.flesh(f"{name}_{k}", line[k], line[k + 1], (scale, 0.8 * scale), joint, X, cap=0.6)
            body.ball(
                f"{name}_foot",
                floor + v(0, 0, 0.5 * thick),
                (1.4 * thick, 0.04 + 0.2 * thick, 2.2 * thick),
                foot,
                2,
            )


def _arms(body: Figure, torso: int, middle: Vector, extent: tuple[float, float, float]) -> None:
    u = body.uniform
    wide, tall, deep = extent
    bones, length, thick = body.pick(1, 3), tall * u(1.0, 2.2), 0.22 * wide * u(0.7, 1.3)
    droop, ahead, gun = u(0.0, 1.2), u(0.0, 1.2), body.chance(0.5)
    for sign, side in SIDES:
        start = middle + v(sign * 1.05 * wide, 0.3 * tall, 0)
        line = start + np.linspace(0, 1, bones + 1)[:, None] * length * unit(v(sign, -droop, ahead))
        joints = body.chain(f"{side}_arm", line[:-1], torso)
        body.ball(f"{side}_shoulder", start, (1.5 * thick,) * 3, joints[0], 0)
        for k, joint in enumerate(joints):
            body.flesh(
                f"{side}_arm{k}",
                line[k],
                line[k + 1],
                (thick, 0.9 * thick),
                joint,
                Y if abs(droop) < 0.5 else Z,
                cap=0.5,
            )
        if gun:
            body.flesh(
                f"{side}_gun",
                line[-1],
                line[-1] + v(0, 0, 0.8 * deep),
                (1.2 * thick, thick),
                joints[-1],
                X,
                cap=0.2,
                worn=True,
            )
        else:
            body.ball(f"{side}_fist", line[-1], (1.6 * thick,) * 3, joints[-1], 1)
