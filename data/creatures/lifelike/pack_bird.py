"""Birds, bats and small dragons as game packs build them: wings of two to four joints, short bodies."""

from __future__ import annotations

import numpy as np

from data.creatures.body import SIDES, Vector, X, Y, unit, v
from data.creatures.lifelike.figure import Figure


def pack_bird(body: Figure) -> None:
    """A bird, bat or small dragon, standing or level, with spread or folded wings."""
    body.rounded()
    u = body.uniform
    long = u(0.45, 0.8)
    fat = long * u(0.22, 0.48)
    pitch = u(0.0, 1.3)
    way, up = v(0, np.sin(pitch), np.cos(pitch)), v(0, np.cos(pitch), -np.sin(pitch))
    leg = u(0.05, 0.4)
    rear = v(0, leg + fat, 0)

    def at(t: float) -> Vector:
        """A point on the body's axis: 0 at the rear, 1 at the base of the neck."""
        return rear + way * long * t

    parent = -1
    if body.chance(0.35):
        parent = body.joint("root", v(0, u(-0.05, 0.05) if body.chance(0.7) else 0.5 * leg, u(-0.1, 0.3)), -1)
    count = body.pick(1, 3)
    spines = body.chain("body", [at(t) for t in np.linspace(u(0.1, 0.4), u(0.55, 0.85), count)], parent)
    # The whole body in slabs, each bound to the joint below it.
    levels = np.linspace(-0.1, 1.0, 7)
    shape = fat * np.interp(levels, [-0.1, 0.25, 0.6, 1.0], [u(0.4, 0.8), 0.95, 1.0, u(0.5, 0.9)])
    starts = [(body.joints[j] - rear) @ way / long for j in spines]
    for k in range(6):
        owner = spines[max(int(np.searchsorted(starts, 0.5 * (levels[k] + levels[k + 1]))) - 1, 0)]
        body.flesh(
            "trunk",
            at(levels[k]),
            at(levels[k + 1]),
            (shape[k], shape[k + 1]),
            owner,
            X,
            (0.95, 1.0),
            0.6,
            flush=True,
        )
    head = _neck_and_head(body, spines[-1], at(0.95), way, fat)
    _wings(
        body,
        spines[-1] if body.chance(0.75) else spines[0],
        at(u(0.55, 0.85)) + 0.35 * fat * up,
        long,
        fat,
        up,
    )
    _legs(body, spines[0], at(u(0.2, 0.4)), leg, fat)
    _tail(body, spines[0], at(-0.05), -way if pitch < 0.7 else v(0, -0.3, -1.0), long, fat)
    if body.chance(0.25):  # ears or horns
        size, tilt = fat * u(0.5, 1.1), u(0.2, 0.9)
        joint = body.chance(0.5)
        for sign, side in SIDES:
            root = head[1] + v(sign * 0.5 * head[2], 0.7 * head[2], 0)
            owner = body.joint(f"{side}_ear", root, head[0]) if joint else head[0]
            tip = root + size * unit(v(sign * tilt, 1, -0.1))
            body.flesh(f"{side}_ear", root, tip, (0.3 * size, 0.06 * size), owner, X, (1.0, 0.5))


def _neck_and_head(
    body: Figure, parent: int, base: Vector, way: Vector, fat: float
) -> tuple[int, Vector, float]:
    """Returns the head's joint, its middle and its size."""
    u = body.uniform
    neck, size = fat * (u(0.1, 0.5) if body.chance(0.7) else u(0.5, 2.4)), fat * u(0.45, 0.95)
    lift = unit(way + v(0, u(0.3, 1.3), 0.2))
    count = int(np.clip(round(neck / (0.8 * fat)), 0, 3))
    line = base + np.linspace(0, 1, count + 2)[:, None] * neck * lift
    joints = body.chain("neck", line[: count + (1 if body.chance(0.4) else 0)], parent)
    top = joints[-1] if joints else parent
    head = body.joint("head", line[-1], top)
    for k in range(count + 1):
        owner = joints[min(k, len(joints) - 1)] if joints else parent
        body.flesh("neck", line[k], line[k + 1], (0.55 * fat, 0.5 * size + 0.1 * fat), owner)
    middle = line[-1] + 0.5 * size * unit(lift + v(0, 0, 0.8))
    body.ball("head", middle, (size * u(0.75, 1.0), size, size), head)
    beak, open_beak = size * u(0.5, 1.8), body.chance(0.15)
    tip = middle + v(0, -0.35 * size * u(0.3, 1.0), 0.85 * size + beak)
    wide = size * u(0.22, 0.5)
    body.flesh(
        "beak",
        middle + v(0, -0.1 * size, 0.6 * size),
        tip,
        (wide, 0.12 * size),
        head,
        X,
        (1.0, 0.8),
        worn=True,
    )
    if open_beak:
        jaw = body.joint("jaw", middle + v(0, -0.35 * size, 0.5 * size), head)
        body.flesh(
            "jaw",
            body.joints[jaw],
            tip - v(0, 0.25 * size, 0.2 * beak),
            (0.8 * wide, 0.1 * size),
            jaw,
            X,
            worn=True,
        )
    if body.chance(0.4):
        for sign, side in SIDES:
            body.ball(
                f"{side}_eye",
                middle + v(sign * 0.7 * size, 0.15 * size, 0.45 * size),
                (0.2 * size,) * 3,
                head,
                worn=True,
            )
    return head, middle, size


def _wings(body: Figure, parent: int, root: Vector, long: float, fat: float, up: Vector) -> None:
    u = body.uniform
    folded = body.chance(0.2)
    span, chord, count = (
        (long * u(0.6, 0.9) if folded else long * u(0.7, 1.9)),
        long * u(0.25, 0.65),
        body.pick(1, 4),
    )
    lift, sweep, elbow = u(-0.2, 0.8), u(0.0, 0.5), u(0.0, 0.5)
    thin, shoulder = 0.02 + 0.02 * long, body.chance(0.3)
    inner = u(0.4, 0.9)
    bat = body.chance(0.3)
    for sign, side in SIDES:
        start = root + v(sign * inner * fat, 0, 0)
        t = np.linspace(0, 1, count + 1)
        if folded:
            line = start + span * t[:, None] * unit(v(sign * 0.15, -0.35, -1.0))
        else:
            line = (
                start
                + span * t[:, None] * unit(v(sign, lift, -sweep))
                + np.outer(4 * t * (1 - t), v(0, 0.15, 0.3)) * elbow * span * 0.5
            )
        owner = (
            body.joint(f"{side}_shoulder", root + v(sign * 0.3 * inner * fat, 0, 0), parent)
            if shoulder
            else parent
        )
        joints = body.chain(f"{side}_wing", line[:-1], owner)
        widths = chord * np.interp(t, [0, 0.35, 1], [0.8, 1.0, 0.3 if bat else 0.55])
        for k, joint in enumerate(joints):
            along = unit(line[k + 1] - line[k])
            back = unit(v(0, 0, -1.0) + (along[2]) * along) if not folded else unit(up - (up @ along) * along)
            shift = 0.5 * chord * back if not folded else v(0, 0, 0)
            mean = 0.5 * (widths[k] + widths[k + 1])
            body.flesh(
                f"{side}_wing",
                line[k] + 0.6 * shift,
                line[k + 1] + 0.6 * shift,
                (thin, thin * 0.9),
                joint,
                back,
                (0.62 * mean / thin, 1.0),
                cap=1.2,
                square=1,
            )
            if bat:
                body.flesh(
                    f"{side}_bone{k}", line[k], line[k + 1], (thin * 1.3, thin * 1.1), joint, Y, worn=True
                )


def _legs(body: Figure, parent: int, at: Vector, leg: float, fat: float) -> None:
    u = body.uniform
    jointed, thick, count = body.chance(0.85), fat * u(0.1, 0.2), body.pick(1, 3)
    foot = fat * u(0.3, 0.6)
    bend = u(0.1, 0.6)
    for sign, side in SIDES:
        hip = at + v(sign * 0.5 * fat, -0.55 * fat, 0)
        sole = v(hip[0] * 1.05, max(min(hip[1] - leg, 0.02 * fat), hip[1] - leg - fat), hip[2] - 0.02)
        knee = 0.5 * (hip + sole) + v(0, 0, bend * 0.3 * leg)
        ankle = 0.2 * knee + 0.8 * sole - v(0, 0, bend * 0.2 * leg)
        points = [*[hip, knee, ankle][:count], sole]
        joints = body.chain(f"{side}_leg", points[:-1], parent) if jointed else [parent] * count
        part = f"{side}_leg"
        for k, joint in enumerate(joints):
            body.flesh(part, points[k], points[k + 1], (thick * (1.6 if k == 0 else 1.0), thick), joint)
        body.flesh(
            part,
            sole,
            sole + v(0.1 * sign * foot, 0, foot),
            (0.8 * thick, 0.5 * thick),
            joints[-1],
            X,
            (2.2, 1.0),
        )


def _tail(body: Figure, parent: int, start: Vector, way: Vector, long: float, fat: float) -> None:
    u = body.uniform
    length, count = long * u(0.25, 0.9), body.pick(0, 3)
    fan = fat * u(0.3, 0.9)
    pitch = unit(way + v(0, u(-0.3, 0.3), 0))
    line = start + np.linspace(0, 1, max(count, 1) + 1)[:, None] * length * pitch
    joints = body.chain("tail", line[:-1], parent) if count else [parent]
    thin = 0.12 * fat + 0.01
    for k, joint in enumerate(joints):
        share = 0.5 + 0.5 * (k + 1) / len(joints)
        body.flesh(
            "tail", line[k], line[k + 1], (thin, thin * 0.8), joint, X, (share * fan / thin, 1.0), square=1
        )
