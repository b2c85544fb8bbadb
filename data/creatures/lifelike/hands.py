"""Hands of characters: fists, mittens and hands with up to five fingers, with few or many joints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.creatures.body import Vector, unit
from data.creatures.lifelike.figure import Figure


@dataclass(frozen=True)
class HandPlan:
    """Both hands of a character.

    `palm`, `width`, `thick`: length, half width and half thickness of the palm. `fingers`: visible fingers
    besides the thumb; 0 is a fist. `bones`: joints of each finger, 0 for fingers that follow the hand;
    `thumb`: joints of the thumb. `base`: where the first finger joint lies between wrist (0) and knuckle (1).
    `joined`: the fingers are one block, a mitten. `jointed`: the hand has a joint at the wrist.
    """

    palm: float
    width: float
    thick: float
    fingers: int
    bones: int
    thumb: int
    length: float
    spread: float
    base: float
    curl: float
    joined: bool
    jointed: bool


def hand_plan(body: Figure, length: float, arm: float, form: str, jointed: bool) -> HandPlan:
    """A random plan for hands of a `length` on arms of radius `arm`; `form`: of the character, as "adult"."""
    u = body.uniform
    kind = body.rng.random()
    limits = {"adult": (0.15, 0.25, 0.4), "stylised": (0.35, 0.5, 0.8), "chibi": (0.7, 0.88, 0.97)}[form]
    width = max(arm * u(0.95, 1.4), 0.3 * length if kind > limits[1] else 0.0)
    spread, curl = u(0.0, 0.3), u(-0.05, 0.35)
    if kind < limits[0] or not jointed:  # a fist
        thumb = body.pick(0, 1) if body.chance(0.1) and jointed else 0
        return HandPlan(
            length,
            thick=width * u(0.6, 1.0),
            fingers=0,
            bones=0,
            thumb=thumb,
            length=0.0,
            base=1.0,
            joined=True,
            width=width,
            spread=spread,
            curl=curl,
            jointed=jointed,
        )
    if kind < limits[1]:  # a mitten
        return HandPlan(
            0.5 * length,
            thick=width * u(0.4, 0.6),
            fingers=1,
            bones=body.pick(1, 2),
            thumb=body.pick(0, 2),
            length=0.5 * length,
            base=u(0.7, 1.0),
            joined=True,
            width=width,
            spread=spread,
            curl=curl,
            jointed=jointed,
        )
    fingers = body.pick(2, 3) if kind < limits[2] else 4
    bones = (1, 2, 3, 4)[int(np.searchsorted([0.05, 0.3, 0.92], body.rng.random()))]
    if body.chance(0.08):
        bones = 0
    share = u(0.45, 0.55)
    return HandPlan(
        length * (1 - share),
        thick=width * u(0.35, 0.5),
        fingers=fingers,
        bones=bones,
        thumb=min(bones, body.pick(2, 3)),
        length=length * share,
        base=u(0.1, 0.4) if bones == 4 else u(0.8, 1.0),
        joined=False,
        width=width,
        spread=spread,
        curl=curl,
        jointed=jointed,
    )


def hand(
    body: Figure, plan: HandPlan, side: str, parent: int, wrist: Vector, fore: Vector, width: Vector
) -> int:
    """Build one hand: `fore` is its direction, `width` points to the thumb. Returns the hand's joint."""
    owner = body.joint(f"{side}_hand", wrist, parent) if plan.jointed else parent
    part = f"{side}_hand"
    over = np.cross(fore, width) * (1 if side == "left" else -1)
    down = over if over[1] < 0 else -over
    knuckles = wrist + fore * plan.palm
    stretch = (plan.width / plan.thick, 1.0)
    start, end = wrist + fore * 0.1 * plan.palm, knuckles - fore * 0.25 * plan.palm
    body.flesh(part, start, end, (plan.thick, plan.thick), owner, width, stretch)
    if plan.fingers == 1:
        points = _finger(knuckles, fore, down, plan.length, max(plan.bones, 1), plan.curl)
        points[0] = wrist + fore * plan.palm * plan.base
        joints = body.chain(f"{side}_fingers", points[:-1], owner)
        for k, joint in enumerate(joints):
            body.flesh(part, points[k], points[k + 1], (plan.thick, plan.thick * 0.9), joint, width, stretch)
    elif plan.fingers:
        radius = min(0.9 * plan.width / plan.fingers, plan.thick, 0.2 * plan.length)
        for index in range(plan.fingers):
            place = 1 - 2 * index / (plan.fingers - 1)
            heading = unit(fore + plan.spread * place * width)
            long = plan.length * (1 - 0.15 * abs(place - 0.1))
            base = knuckles + width * place * (plan.width - radius) - fore * 0.08 * plan.palm * abs(place)
            _jointed(
                body, plan, f"{side}_finger{index}", part, owner, base, heading, down, long, radius, wrist
            )
    if plan.fingers or plan.thumb:
        heading = unit(0.75 * fore + 0.8 * width + 0.25 * down)
        base = wrist + fore * 0.3 * plan.palm + width * 0.7 * plan.width
        long = 0.75 * plan.length if plan.fingers else 0.4 * plan.palm
        radius = min(plan.thick, 0.25 * long) * 1.1
        count = max(plan.thumb, 1)
        points = base + np.linspace(0, 1, count + 1)[:, None] * heading * long
        joints = body.chain(f"{side}_thumb", points[:-1], owner) if plan.thumb else [owner]
        for k, joint in enumerate(joints):
            body.flesh(part, points[k], points[k + 1], (radius, radius * 0.85), joint)
    return owner


def _finger(base: Vector, heading: Vector, down: Vector, length: float, count: int, curl: float) -> Vector:
    """Points (count + 1, 3) of a finger that curls downward."""
    points = [base]
    for k in range(count):
        way = unit(heading + curl * (k + 0.5) * down)
        points.append(points[-1] + way * length / count)
    return np.array(points)


def _jointed(
    body: Figure,
    plan: HandPlan,
    name: str,
    part: str,
    owner: int,
    base: Vector,
    heading: Vector,
    down: Vector,
    length: float,
    radius: float,
    wrist: Vector,
) -> None:
    """One finger: its first joint may lie inside the palm."""
    count = max(plan.bones - (plan.base < 0.5), 1)
    points = _finger(base, heading, down, length, count, plan.curl)
    parent = owner
    if plan.bones == 4:
        parent = body.joint(f"{name}_palm", wrist + (base - wrist) * plan.base, owner)
        body.flesh(part, body.joints[parent], base, (radius, radius), parent)
    joints = body.chain(name, points[:-1], parent) if plan.bones else [owner] * count
    for k, joint in enumerate(joints):
        start = points[k] - heading * radius if k == 0 else points[k]
        body.flesh(part, start, points[k + 1], (radius, radius * 0.9), joint)
