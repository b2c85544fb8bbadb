"""Spiders, crabs and other crawlers as game packs build them: four to eight legs around a low body."""

from __future__ import annotations

import numpy as np

from data.creatures.body import SIDES, X, Y, Z, unit, v
from data.creatures.lifelike.figure import Figure


def pack_spider(body: Figure) -> None:
    """A spider, crab or insect-like crawler with two to four pairs of legs."""
    body.rounded()
    u = body.uniform
    pairs = (4, 4, 4, 2, 3)[body.pick(0, 4)]
    stout = pairs == 2 or body.chance(0.25)
    size, high = u(0.14, 0.3), u(0.12, 0.3)
    flat = size * u(0.5, 0.95)
    middle = v(0, high, 0)
    root = -1
    feet = body.chance(0.35)
    if feet or body.chance(0.5):
        root = body.joint("root", v(0, u(0.0, 0.3) * high, u(-0.05, 0.05)), -1)
    trunk = body.joint("body", middle + v(0, u(-0.2, 0.4) * flat, u(-0.4, 0.2) * size), root)
    head = trunk
    body.ball("trunk", middle, (size, flat, size * u(0.9, 1.3)), trunk)
    if body.chance(0.6):
        at = middle + v(0, u(-0.1, 0.2) * flat, size * u(0.8, 1.1))
        head = body.joint("head", at - v(0, 0, u(0.1, 0.4) * size), trunk)
        body.ball("head", at, (0.6 * size, 0.7 * flat, 0.55 * size), head)
    if not stout or body.chance(0.3):
        large = size * u(0.8, 1.6)
        at = middle + v(0, u(0.0, 0.5) * large, -0.7 * size - large)
        parent = trunk
        if body.chance(0.3):
            parent = body.joint("waist", middle - v(0, 0, 0.6 * size), trunk)
        tail = body.joint("abdomen", middle + v(0, 0, -size * u(0.7, 1.1)), parent)
        body.flesh("neck", middle, at, (0.35 * size, 0.35 * size), parent)
        body.ball("abdomen", at, (large * u(0.8, 1.0), large * u(0.7, 0.95), large * 1.1), tail)
    for k in range(body.pick(0, 3)):
        for sign, side in SIDES:
            at = body.joints[head] + v(
                sign * (0.2 + 0.15 * k) * size, 0.5 * flat, 0.45 * size - 0.1 * k * size
            )
            body.ball(f"{side}_eye{k}", at, (0.1 * size,) * 3, head, worn=True)
    reach, arch = u(0.35, 0.9), u(0.2, 1.2)
    bones = body.pick(2, 3) if stout else body.pick(2, 4)
    thick = size * (u(0.2, 0.4) if stout else u(0.08, 0.2))
    fan, inner = u(0.5, 1.1), u(0.3, 0.95)
    # Heights of a leg from the body to the ground.
    knee = high + arch * 0.35 * reach
    ts = np.linspace(0, 1, bones + 1)
    heights = np.interp(ts, [0, 0.38, 0.7, 1.0], [high - 0.2 * flat, knee, 0.6 * knee, 0.02])
    for pair in range(pairs):
        angle = fan * (1.5 * (pair - 0.5 * (pairs - 1)) / max(pairs - 1, 1))
        away = reach * u(0.9, 1.1)
        for sign, side in SIDES:
            way = v(sign * np.cos(angle), 0, np.sin(angle))
            line = middle + np.outer(inner * size + ts * away, way)
            line[:, 1] = heights
            name = f"{side}_leg{pair}"
            joints = body.chain(name, line[:-1], trunk)
            if feet and bones > 2:
                body.parents[joints[-1]] = root
            part = name
            start = middle + 0.5 * inner * size * way
            body.flesh(part, v(start[0], line[0][1], start[2]), line[0], (thick, thick), joints[0], Y)
            radii = thick * np.linspace(1.1, 0.5 if not stout else 0.9, bones + 1)
            for k, joint in enumerate(joints):
                normal = np.cross(line[k + 1] - line[k], Y)
                body.flesh(part, line[k], line[k + 1], (radii[k], radii[k + 1]), joint, normal)
    if body.chance(0.3):  # claws or fangs
        long, jointed, claw = size * u(0.5, 1.4), body.chance(0.7), body.chance(0.5)
        for sign, side in SIDES:
            start = body.joints[head] + v(sign * 0.35 * size, -0.2 * flat, 0.3 * size)
            tip = start + long * unit(v(sign * (0.7 if claw else 0.1), -0.1, 1.0))
            owner = body.joint(f"{side}_claw", start, head) if jointed else head
            body.flesh(f"{side}_claw", start, tip, (thick, thick * 0.8), owner, X)
            if claw:
                body.ball(f"{side}_claw", tip, (1.8 * thick, 1.4 * thick, 2.6 * thick), owner)
    if body.chance(0.1):
        body.flesh("sting", middle, middle + v(0, 0.2, -0.2), (0.2 * size, 0.05 * size), trunk, Z)
