"""Snakes, insects, centipedes and fish: creatures built along one long chain, with thin legs or fins."""

import numpy as np

from data.creatures.body import SIDES, Body, Vector, X, Y, Z, curved_spine, joints_for_length, mirror, unit, v
from data.creatures.swept_surfaces import GridPatch


def snake(body: Body) -> None:
    """One long, wavy body, coiled or with its head raised."""
    u = body.uniform
    radius = u(0.045, 0.15)
    count = joints_for_length(1.0, 1.5 * radius, 4, 16)
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
    body.sweep(stations, np.stack([fat, fat * flat], axis=1), made, Y)
    head = radius * u(1.1, 1.6)
    centre = stations[0] + v(0, 0, head * 0.8)
    body.ellipsoid(
        centre, [0, -head * 0.1, head * u(1.2, 1.9)], (head * u(0.7, 1.0), head * 0.65), made[0], X
    )
    if body.chance(0.35):
        horn = head * u(0.5, 1.0)
        for sign, _ in SIDES:
            body.ellipsoid(
                centre + mirror([head * 0.45, head * 0.6, -head * 0.3], sign),
                [sign * horn * 0.2, horn, -horn * 0.6],
                (head * 0.18, head * 0.18),
                made[0],
                X,
            )
    if body.chance(0.3):
        middle = len(stations) // 3
        body.ellipsoid(
            stations[middle] + v(0, radius * 0.9, 0),
            [0, 0, radius * 2.0],
            (radius * 0.2, radius * 0.9),
            made[middle],
            X,
        )


def _antennae(body: Body, head: int, at: Vector, size: float, length: float) -> None:
    """Two thin antennae with one joint per `size` of length."""
    bones = joints_for_length(length, size, 1, 3)
    out = body.uniform(0.2, 0.8)
    for sign, side in SIDES:
        start = at + v(sign * size * 0.35, size * 0.3, size * 0.4)
        points = curved_spine(start, [sign * out, 0.9, 1.0], length, bones, [sign * 0.4, -0.5, 0.3])
        body.limb(
            f"{side}_antenna", points, size * np.linspace(0.09, 0.05, bones + 1) + 0.004, head, X, inset=0.6
        )


def thin_leg(
    body: Body,
    name: str,
    parent: int,
    hip: Vector,
    out: Vector,
    reach: float,
    arch: float,
    radius: float,
    bones: int,
) -> None:
    """An arthropod's leg: it rises to the knee and comes down to the floor (y = 0)."""
    foot = v(*(hip + out * reach)) * v(1, 0, 1) + v(0, radius, 0)
    knee = hip + out * reach * 0.42 + v(0, arch, 0)
    if bones == 1:
        points, scales = np.array([hip, foot]), [1.3, 0.7]
    elif bones == 2:
        points, scales = np.array([hip, knee, foot]), [1.4, 1.1, 0.5]
    else:
        ankle = foot + 0.3 * (knee - foot) + v(0, -0.1 * arch, 0)
        points, scales = np.array([hip, knee, ankle, foot]), [1.4, 1.1, 0.8, 0.5]
    body.limb(name, points, radius * np.array(scales), parent, np.cross(out, Y), inset=0.3)


def insect(body: Body) -> None:
    """Six jointed legs, antennae, a segmented abdomen and often wings, which are open patches."""
    u = body.uniform
    size = u(0.11, 0.18)
    height = u(0.2, 0.45)
    slim = u(0.5, 1.3)
    long = u(0.9, 1.5) if slim < 0.75 else u(0.4, 0.9)
    thorax = body.joint("thorax", [0, height, 0], -1)
    front = v(0, height + 0.1 * size, size * 1.25)
    head = body.joint("head", front, thorax)
    rear = v(0, height + 0.1 * size, -size * 1.0)
    count = joints_for_length(long, 0.32, 1, 4)
    line = curved_spine(rear, [0, u(-0.1, 0.35), -1.0], long, count, [0, u(-0.5, 0.3), 0])
    t = np.linspace(0, 1, count + 1)
    fat = size * slim * (0.55 + 0.6 * np.sin(np.pi * np.clip(0.15 + 0.8 * t, 0, 1)))
    body.limb("abdomen", line, fat, thorax, X, inset=0.6)
    body.sweep(
        [v(0, height, -size * 0.8), v(0, height, 0), v(0, height, size * 0.9)],
        np.array([[0.6, 0.55], [1.0, 0.9], [0.6, 0.55]]) * size,
        [thorax, thorax],
        X,
    )
    big = size * u(0.55, 0.95)
    body.sweep(
        [v(0, height, size * 0.6), front, front + v(0, 0, big * 0.4)], [big * 0.5] * 3, [thorax, head], X
    )
    body.ellipsoid(front + v(0, 0, big * 0.5), [0, 0, big * 0.8], (big * u(0.8, 1.2), big * 0.85), head, X)
    if body.chance(0.4):
        for sign, _ in SIDES:
            body.ellipsoid(
                front + v(sign * big * 0.7, big * 0.4, big * 0.8),
                [0, big * 0.4, 0],
                (big * 0.35, big * 0.35),
                head,
                X,
            )
    _antennae(body, head, front + v(0, 0.3 * big, big * 0.4), big, big * u(1.0, 3.2))
    reach, arch, radius = u(0.4, 0.9), u(0.05, 0.35), u(0.014, 0.028)
    bones = 3 if reach > 0.6 else 2
    for pair in range(3):
        fan = (0.75, 0.0, -0.75)[pair]
        for sign, side in SIDES:
            out = unit([sign * np.cos(fan), 0, np.sin(fan)])
            hip = v(sign * size * 0.6, height - size * 0.35, (1 - pair) * size * 0.5)
            thin_leg(body, f"leg{pair}_{side}", thorax, hip, out, reach, arch, radius, bones)
    if body.chance(0.7):
        span, chord = u(0.5, 1.1), u(0.12, 0.35)
        for pair in range(body.pick(1, 2)):
            sweep, lift = u(-0.1, 0.5) + 0.5 * pair, u(0.0, 0.8)
            for sign, side in SIDES:
                _membrane_wing(
                    body,
                    f"wing{pair}_{side}",
                    thorax,
                    v(sign * size * 0.42, height + size * 0.5, (0.3 - 0.6 * pair) * size),
                    unit([sign, lift, -sweep]),
                    span * (1 - 0.2 * pair),
                    chord,
                )


def _membrane_wing(
    body: Body, name: str, parent: int, root: Vector, out: Vector, span: float, chord: float
) -> None:
    """A wing as an open patch with a joint at its root; a long one has a second joint in its middle."""
    rows, columns = 4, 10
    t = np.linspace(0.04, 1, columns)[None]
    s = np.linspace(-0.35, 0.65, rows + 1)[:, None]
    width = chord * (0.25 + 0.9 * np.sqrt(t) * np.sqrt(np.clip(1.08 - t, 0, 1)))
    back = unit(-Z - (-Z @ out) * out)
    points = root + (span * t)[..., None] * out + (s * width)[..., None] * back
    made = body.chain(name, [root] if span < 0.75 else [root, root + 0.5 * span * out], parent)
    f = np.clip((t - 0.5) / 0.3 + 0.5, 0, 1) + 0 * s
    outer = f * f * (3 - 2 * f)
    weights = np.stack([1 - outer, outer], axis=-1) if len(made) == 2 else np.ones((*outer.shape, 1))
    body.patches.append(GridPatch(points, tuple(made), weights))


def centipede(body: Body) -> None:
    """A long body with antennae and a pair of legs at every segment: up to 60 joints."""
    u = body.uniform
    radius = u(0.05, 0.1)
    reach = u(0.1, 0.5)
    bones = 2 if reach > 0.24 else 1
    count = body.pick(5, 11) if bones == 2 else body.pick(6, 17)
    gap = u(0.13, 0.2) * (1.0 if bones == 2 else 0.85)
    height = u(0.08, 0.2) + radius
    waves, amplitude = u(0.3, 1.2), u(0.0, 0.5)
    t = np.linspace(0, 1, count + 1)
    angle = amplitude * np.sin(2 * np.pi * waves * t)
    steps = np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)], axis=1) * gap
    line = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)]) + v(0, height, 0)
    made = body.chain("segment", line[:-1], -1)  # the first one carries the head
    fat = radius * np.append(np.clip(np.linspace(1.4, 0.9, count + 1), None, 1.0), 0.5)
    flat = u(0.5, 1.0)
    body.sweep(line, np.stack([fat, fat * flat], axis=1), made, X)
    head = radius * u(1.0, 1.5)
    body.ellipsoid(line[0] + v(0, 0, head * 0.6), [0, 0, head], (head, head * 0.75), made[0], X)
    _antennae(body, made[0], line[0] + v(0, 0, head * 0.9), head, head * u(1.2, 2.4))
    arch, thin = u(0.0, 0.6) * reach, u(0.015, 0.024)
    for index in range(1, count + 1):
        along = unit(line[index - 1] - line[index + 1])
        across = unit(np.cross(Y, along))
        for sign, side in SIDES:
            out = unit(sign * across - 0.15 * along)
            hip = line[index] + sign * across * fat[index] * 0.75
            thin_leg(body, f"leg{index}_{side}", made[index], hip, out, reach, arch, thin, bones)


def fish(body: Body) -> None:
    """A flattened body along z with a tail fin, vertical or (whales) level, and thin side fins."""
    u = body.uniform
    length = u(1.3, 1.9)
    tall, narrow = u(0.14, 0.42), u(0.35, 0.9)
    count = joints_for_length(length, 0.2 + 0.35 * tall, 4, 7)
    arch = u(-0.35, 0.35) if body.chance(0.3) else 0.0
    t = np.linspace(0, 1, count + 1)  # from the head's tip to the tail's root
    line = np.stack([arch * (t - 0.4) ** 2, 0.02 * np.sin(3 * t), (0.5 - t) * length], axis=1)
    shape = np.interp(t, [0, 0.3, 0.55, 1], [0.4, 1.0, 0.85, 0.22])
    high = tall * shape
    wide = np.maximum(high * narrow, 0.03)
    # The root joint lies where a fish is thickest; one chain runs forward to the head, one back to the tail.
    middle = max(1, count // 3)
    root = body.joint("body", line[middle], -1)
    ahead = [root]
    for index in range(middle - 1, 0, -1):
        ahead.append(body.joint("head" if index == 1 else f"neck_{index}", line[index], ahead[-1]))
    behind = body.chain("spine", line[middle + 1 : -1], root)
    segment_joints = [ahead[-1], *ahead[:0:-1], root, *behind]
    fin = behind[-1]
    tips = body.joint("tail", line[-1], fin)
    end = line[-1] + unit(line[-1] - line[-2]) * 0.08
    body.sweep(
        [*line, end],
        np.stack([np.append(wide, 0.025), np.append(high, high[-1])], axis=1),
        [*segment_joints, tips],
        X,
    )
    lobe, spread = u(0.25, 0.6), u(0.35, 1.0)
    whale = body.chance(0.25)  # a level tail fin
    thick = 0.02
    for sign, name in ((1, "upper"), (-1, "lower")):
        away = v(sign * spread, 0, -1.0) if whale else v(0, sign * spread, -1.0)
        point = line[-1] + unit(away) * lobe
        made = body.joint(f"tail_{name}", line[-1] + 0.25 * (point - line[-1]), tips)
        spine = [line[-1] + 0.05 * (point - line[-1]), body.joints[made], point]
        radii = np.array([[0.1, thick * 1.2], [0.22, thick * 1.2], [0.1, thick * 0.8]]) * [lobe, 1.0]
        body.sweep(spine, radii, [tips, made], Z)
    if body.chance(0.75):
        at = 0.35 + u(0, 0.2)
        index = round(at * count)
        base = line[index] + v(0, high[index] * 0.8, 0)
        rise = u(0.15, 0.45)
        top = base + v(0, rise, -rise * u(0.2, 1.0))
        parent = [*segment_joints, tips][min(index, count)]
        joint = body.joint("dorsal_fin", base + 0.15 * (top - base), parent)
        radii = np.array([[0.5, thick * 1.1], [0.45, thick * 1.1], [0.15, thick * 0.8]]) * [rise, 1.0]
        body.sweep([base - v(0, high[index] * 0.3, 0), body.joints[joint], top], radii, [parent, joint], Z)
    reach, droop, back = u(0.25, 0.7), u(-0.8, 0.2), u(0.2, 0.9)
    fin_bones = joints_for_length(reach, 0.3, 1, 2)
    pairs = [(middle, 1.0)]
    if body.chance(0.4):
        pairs.append((min(middle + 2, count - 2), 0.65))
    for number, (station, scale) in enumerate(pairs):
        parent = root if station == middle else behind[station - middle - 1]
        for sign, side in SIDES:
            base = line[station] + v(sign * wide[station] * 0.75, -high[station] * 0.3, 0)
            way = unit([sign, droop, -back])
            points = base + np.linspace(0, reach * scale, fin_bones + 1)[:, None] * way
            widths = (
                np.interp(np.linspace(0, 1, fin_bones + 1), [0, 0.5, 1], [0.22, 0.26, 0.1]) * reach * scale
            )
            radii = np.stack([widths, np.full_like(widths, thick)], axis=1)
            body.limb(f"fin{number}_{side}", points, radii, parent, Z - (Z @ way) * way, inset=0.6)
    if body.chance(0.4):
        for sign, _ in SIDES:
            eye = tall * 0.14
            body.ellipsoid(
                line[0] + v(sign * wide[0] * 0.8, high[0] * 0.4, -0.05 * length),
                [0, eye, 0],
                (eye, eye),
                ahead[-1],
                X,
            )
