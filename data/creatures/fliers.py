"""Winged creatures: feathered or membrane wings, two or four legs."""

import numpy as np

from data.creatures.body import SIDES, Body, Vector, X, Z, joints_for_length, membrane, tail, unit, v


def bat_wing(
    body: Body,
    name: str,
    parent: int,
    root: Vector,
    sign: int,
    span: float,
    chord: float,
    lift: float,
    sweep: float,
) -> None:
    """A thin arm from the shoulder to the tip with an open membrane behind it. `sign`: 1 left, -1 right."""
    bones = joints_for_length(span, 0.38, 2, 4)
    f = np.linspace(0, 1, bones + 1)
    away = f * span
    zigzag = 0.12 * span * np.sin(np.pi * f)
    line = root + np.stack([sign * away, lift * away - 0.25 * away * f + zigzag, -sweep * away * f], axis=1)
    radius = 0.035 + 0.01 * span
    radii = radius * np.linspace(1.2, 0.5, bones + 1)
    made = body.chain(name, line[:-1], parent)
    start = root - v(sign * 0.06, 0.03, 0)
    body.sweep(np.concatenate([start[None], line]), np.append(radii[0], radii), [parent, *made], Z)
    widths = chord * np.interp(f, [0, 0.5, 1], [0.8, 1.0, 0.15])
    membrane(body, line, made, [0, -0.25, -1.0], widths)


def winged(body: Body) -> None:
    """A bird-like body with one or two pairs of wings, one or two pairs of legs, and a tail."""
    u = body.uniform
    length, thick = u(0.5, 0.95), u(0.8, 1.4)
    radius = u(0.11, 0.17) * thick
    pitch = u(0.0, 0.8)
    axis = v(0, np.sin(pitch), np.cos(pitch))
    leg = u(0.15, 0.4) if body.chance(0.75) else u(0.4, 0.9)
    middle = v(0, leg + radius + 0.3 * length * np.sin(pitch), 0)

    def spine_at(t: float) -> Vector:
        return middle + axis * (t - 0.5) * length

    pelvis = body.joint("pelvis", spine_at(0.2), -1)
    parent = pelvis
    spine, wide, segment_joints = [spine_at(-0.05), spine_at(0.2)], [0.55, 0.9], [pelvis, pelvis]
    if length > 5.5 * radius:
        parent = body.joint("spine", spine_at(0.45), pelvis)
        spine, wide, segment_joints = [*spine, spine_at(0.45)], [*wide, 1.0], [*segment_joints, parent]
    chest = body.joint("chest", spine_at(0.7), parent)
    body.sweep(
        [*spine, spine_at(0.7), spine_at(1.0)],
        radius * np.array([*wide, 1.0, 0.65]),
        [*segment_joints, chest],
        X,
    )
    _head(body, chest, spine_at(0.8), spine_at(0.98), radius, thick)
    _wings(body, (chest, pelvis), (spine_at(0.78), spine_at(0.43)), radius)
    leg_pairs = 2 if pitch < 0.35 and body.chance(0.25) else 1
    leg_radius = u(0.025, 0.045) * thick
    jointed = leg > 0.4
    for pair in range(leg_pairs):
        parent, at = (pelvis, 0.25) if pair == 0 else (chest, 0.72)
        for sign, side in SIDES:
            hip = spine_at(at) + v(sign * radius * 0.5, -radius * 0.45, 0)
            drop = leg + (hip[1] - spine_at(0.25)[1] if pair else 0.0)
            knee = hip + v(sign * 0.03, -drop * 0.45, -0.05)
            sole = hip + v(sign * 0.03, -drop, 0.03)
            ankle = hip + v(sign * 0.03, -drop * 0.9, 0.0)
            points = [hip, knee, ankle, sole] if jointed else [hip, knee, sole]
            scales = [1.7, 1.0, 0.9, 0.9] if jointed else [1.7, 1.0, 0.9]
            made = body.limb(f"leg{pair}_{side}", points, leg_radius * np.array(scales), parent, Z)
            body.ellipsoid(
                sole + v(0, 0, leg_radius),
                [0, 0, leg_radius * 2.4],
                (leg_radius * 1.3, leg_radius * 0.7),
                made[-1],
                X,
            )
    tail_length = u(0.2, 0.8)
    start = spine_at(0.0)
    heading = v(0, -np.sin(pitch) * 0.6, -1.0)
    if tail_length < 0.5:
        joint = body.joint("tail", start, pelvis)
        fan = u(0.6, 1.2) * radius
        body.sweep(
            [spine_at(0.12), start, start + heading * tail_length],
            np.array([[0.5 * radius, 0.4 * radius], [0.6 * fan, 0.25 * radius], [fan, 0.12 * radius]]),
            [pelvis, joint],
            X,
        )
    else:
        tail(body, pelvis, start, heading, tail_length, radius * 0.45)


def _head(body: Body, chest: int, inside: Vector, front: Vector, radius: float, thick: float) -> None:
    u = body.uniform
    size = u(0.08, 0.13) * thick
    neck = u(0.08, 0.75) if body.chance(0.4) else u(0.08, 0.3)
    way = unit([0, u(0.3, 1.2), 1.0])
    base = front + way * neck
    count = joints_for_length(neck, 0.24, 0, 3)
    end = base + way * size * 0.5
    line = [front + (base - front) * k / count for k in range(count)]
    necks = body.chain("neck", line, chest) if count else []
    head = body.joint("head", base, necks[-1] if necks else chest)
    taper = np.linspace(0.55, 0.38, count + 3) * radius
    body.sweep([inside, *line, base, end], taper, [chest, *necks, head], X)
    centre = base + way * size * 0.5
    body.ellipsoid(centre, [0, 0, size * 1.15], (size * 0.85, size * 0.9), head, X)
    beak = size * u(0.4, 1.8)
    body.ellipsoid(
        centre + v(0, -size * 0.1, size + beak * 0.4),
        [0, -beak * 0.15, beak],
        (size * 0.3, size * 0.35),
        head,
        X,
    )
    if body.chance(0.2):
        crest = size * u(0.5, 1.2)
        body.ellipsoid(
            centre + v(0, size * 0.9, -size * 0.2),
            [0, crest, -crest * 0.5],
            (size * 0.12, size * 0.4),
            head,
            X,
        )


def _wings(body: Body, parents: tuple[int, int], roots: tuple[Vector, Vector], radius: float) -> None:
    u = body.uniform
    span, sweep, lift, dihedral = u(0.6, 1.4), u(-0.1, 0.45), u(-0.3, 0.6), u(-0.5, 0.3)
    chord, flat = u(0.13, 0.28), u(0.14, 0.2)
    bat = body.chance(0.25)
    for pair in range(2 if body.chance(0.15) else 1):
        scale = 1.0 if pair == 0 else u(0.55, 0.85)
        bones = joints_for_length(span * scale, 0.38, 2, 4)
        for sign, side in SIDES:
            root = roots[pair] + v(sign * radius * 0.6, radius * 0.35, 0)
            if bat:
                bat_wing(
                    body,
                    f"wing{pair}_{side}",
                    parents[pair],
                    root,
                    sign,
                    span * scale,
                    2 * chord,
                    lift,
                    sweep,
                )
                continue
            f = np.linspace(0, 1, bones + 1)
            away = f * span * scale
            points = root + np.stack(
                [sign * away, lift * away + dihedral * away * f, -sweep * away * f - pair * 0.3 * away],
                axis=1,
            )
            widths = chord * scale * np.interp(f, [0, 0.35, 1], [0.75, 1.0, 0.45])
            made = body.chain(f"wing{pair}_{side}", points[:-1], parents[pair])
            # Straight inwards, wherever the parent is: the spine must not run along the profile's normal.
            start = root - v(sign * radius * 0.4, radius * 0.2, 0)
            radii = np.concatenate([widths[:1] * 0.7, widths])
            body.sweep(
                np.concatenate([start[None], points]),
                np.stack([radii, np.maximum(radii * flat, 0.022)], axis=1),
                [parents[pair], *made],
                Z,
            )
