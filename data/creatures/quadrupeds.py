"""Four-legged creatures such as foxes, horses and elephants, and winged dragons."""

from collections.abc import Callable

import numpy as np

from data.creatures import props
from data.creatures.body import (
    SIDES,
    Body,
    Vector,
    X,
    Y,
    Z,
    curved_spine,
    ear,
    joints_for_length,
    mirror,
    tail,
    unit,
    v,
)
from data.creatures.fliers import bat_wing


def quadruped(body: Body) -> None:
    """A four-legged mammal."""
    _four_legged(body, dragon=False)


def dragon(body: Body) -> None:
    """A quadruped with a long neck and tail, membrane wings and often spikes."""
    _four_legged(body, dragon=True)


def _four_legged(body: Body, dragon: bool) -> None:
    u = body.uniform
    length, thick = u(0.8, 1.5), u(0.65, 1.35)
    leg = u(0.35, 0.7) if dragon else u(0.4, 1.0)
    rear_radius, front_radius = u(0.15, 0.22) * thick, u(0.16, 0.25) * thick
    belly = u(0.8, 1.2) * 0.5 * (rear_radius + front_radius)
    narrow = u(0.6, 0.95)
    slope = u(-0.1, 0.12)
    back = leg + rear_radius * 0.6

    def spine_at(t: float) -> Vector:
        return v(0, back + slope * t, (t - 0.5) * length)

    pelvis = body.joint("pelvis", spine_at(0.12), -1)
    inner = [0.48] if length < 5.2 * belly else [0.36, 0.6]
    spines = body.chain("spine", [spine_at(t) for t in inner], pelvis)
    chest = body.joint("chest", spine_at(0.82), spines[-1])
    spine = [spine_at(t) for t in (0, 0.12, *inner, 0.82, 1)]
    high = np.array(
        [rear_radius * 0.8, rear_radius, *([belly] * len(inner)), front_radius, front_radius * 0.75]
    )
    body.sweep(spine, np.stack([high * narrow, high], axis=1), [pelvis, pelvis, *spines, chest], X)
    necks = _front_end(body, spine_at(0.95), spine_at(0.85), chest, front_radius, thick, dragon)
    _four_legs(body, spine_at, pelvis, chest, (rear_radius, front_radius), narrow, leg, thick)

    tail_length = u(0.6, 1.5) if dragon else u(-0.1, 1.0)
    tails: list[int] = []
    if tail_length > 0.1:
        start = spine_at(0) + v(0, rear_radius * 0.2, -rear_radius * 0.3)
        width = rear_radius * (u(0.35, 0.6) if dragon else u(0.15, 0.4))
        tails = tail(body, pelvis, start, [0, u(-1.2, 0.9), -1.0], tail_length, width)
    if dragon:
        span, chord = u(0.7, 1.5), u(0.3, 0.7)
        lift, sweep = u(-0.2, 0.9), u(-0.2, 0.5)
        for sign, side in SIDES:
            root = spine_at(0.75) + v(sign * front_radius * narrow * 0.5, front_radius * 0.6, 0)
            bat_wing(body, f"{side}_wing", chest, root, sign, span, chord, lift, sweep)
    if body.chance(0.5 if dragon else 0.08):
        row, thin = [pelvis, *spines, chest], [*necks, *tails[:2]]
        size = u(0.06, 0.14)
        rises = [rear_radius, *([belly] * len(spines)), front_radius, *([0.06] * len(thin))]
        props.spikes(body, [*row, *thin], Y, size, size * 0.4, rises)
    elif body.chance(0.1):  # a saddle
        seat = spine_at(0.5) + v(0, belly * 0.85, 0)
        nearest = min([*spines, chest], key=lambda j: abs(body.joints[j][2] - seat[2]))
        half = v(0, 0, length * 0.16)
        radii = np.array([[0.7, 0.3], [0.65, 0.2], [0.6, 0.35]]) * belly
        body.prop([seat - half, seat, seat + half], radii, nearest, X)


def _front_end(
    body: Body, front: Vector, inside: Vector, chest: int, radius: float, thick: float, dragon: bool
) -> list[int]:
    """Neck, head, ears, horns and trunk. Returns the neck's joints."""
    u = body.uniform
    if dragon:
        rise, reach = u(0.2, 0.8), u(0.3, 0.8)
    else:
        rise, reach = (u(0.05, 0.45), u(0.12, 0.35)) if body.chance(0.7) else (u(0.45, 1.1), u(0.12, 0.5))
    size = u(0.1, 0.18) * np.sqrt(thick)
    base = front + v(0, radius * 0.3, 0)
    head_base = base + v(0, rise, reach)
    neck_radius = u(0.4, 0.65) * radius
    count = joints_for_length(float(np.hypot(rise, reach)), 0.3, 1, 4)
    t = np.linspace(0, 1, count + 1)[:, None]
    bow = u(-0.15, 0.25) * (rise if count > 1 else 0.0)
    line = base + (head_base - base) * t + v(0, -0.4 * bow, bow) * np.sin(np.pi * t)
    necks = body.chain("neck", line[:-1], chest)
    head = body.joint("head", head_base, necks[-1])
    tip = head_base + v(0, size * 0.1, size * 0.5)
    taper = np.linspace(1.0, 0.7, count + 3) * neck_radius
    body.sweep([inside, *line, tip], taper, [chest, *necks, head], X)

    centre = head_base + v(0, size * 0.15, size * 0.45)
    wide = size * u(0.6, 0.9)
    body.ellipsoid(centre, [0, -size * 0.15, size * 1.1], (wide, size * 0.75), head, X)
    snout = size * u(0.3, 1.1)
    nose = centre + v(0, -size * 0.3, size * 0.7 + snout * 0.4)
    if not dragon and body.chance(0.12):  # a trunk
        long = u(0.5, 0.9) * (front[1] + rise)
        line = curved_spine(nose, [0, -0.6, 1.0], long, joints_for_length(long, 0.16, 3, 6), [0, -2.2, -1.0])
        body.limb("trunk", line, size * np.linspace(0.38, 0.2, len(line)), head, X, inset=0.5)
    else:
        body.ellipsoid(nose, [0, -snout * 0.25, snout], (size * 0.42, size * 0.38), head, X)
    long, wide_ear = size * u(0.4, 2.0), size * u(0.15, 0.4)
    spread = u(0.1, 1.2)
    for sign, side in SIDES:
        root = centre + mirror([wide * 0.7, size * 0.5, -size * 0.35], sign)
        axis = unit([sign * spread, 1.0, -0.25]) * long
        ear(body, f"{side}_ear", root, axis, (wide_ear, wide_ear * 0.5), head, long > 1.25 * size)
    if body.chance(0.6 if dragon else 0.15):
        horn = size * u(0.6, 1.8)
        back = u(-1.2, 0.6)
        for sign, _ in SIDES:
            root = centre + mirror([wide * 0.35, size * 0.6, 0.1 * size], sign)
            middle = root + unit([sign * 0.6, 1.0, back]) * horn * 0.5
            end = middle + unit([sign * 0.3, 1.0, 1.6 * back]) * horn * 0.5
            body.prop([root - v(0, size * 0.2, 0), middle, end], size * np.array([0.17, 0.13, 0.03]), head, Z)
    return necks


def _four_legs(
    body: Body,
    spine_at: Callable[[float], Vector],
    pelvis: int,
    chest: int,
    radii: tuple[float, float],
    narrow: float,
    leg: float,
    thick: float,
) -> None:
    u = body.uniform
    leg_radius = u(0.045, 0.085) * thick
    jointed = leg > 6.5 * leg_radius  # thigh, shin and foot; a short leg has a thigh and a foot only
    step = u(0.05, 0.3) if body.chance(0.4) else 0.0
    knee_out = u(0.03, 0.15) * leg
    paw = leg_radius * u(0.9, 1.5)
    hoofed = body.chance(0.3)
    for parent, t, radius, place in ((chest, 0.82, radii[1], "front"), (pelvis, 0.12, radii[0], "rear")):
        for sign, side in SIDES:
            forward = step * sign * (1 if place == "front" else -1)
            hip = spine_at(t) + v(sign * radius * narrow * 0.6, -radius * 0.25, 0)
            bend = -knee_out * 0.5 if place == "front" else knee_out
            top = hip[1]
            knee = v(hip[0] + sign * 0.01, top * 0.56, hip[2] + bend + forward * 0.5)
            ankle = v(knee[0], top * 0.2, hip[2] - bend * 0.9 + forward)
            sole = v(knee[0], leg_radius * 0.7, ankle[2] + leg_radius * 0.3 + 0.3 * bend)
            if jointed:
                points, scales = [hip, knee, ankle, sole], [1.7, 1.1, 0.8, 0.85]
            else:
                points, scales = [hip, knee, sole], [1.6, 1.0, 0.9]
            made = body.limb(f"{place}_{side}_leg", points, leg_radius * np.array(scales), parent, Z)
            if not hoofed:
                centre = sole + v(0, 0, paw * 0.5)
                body.ellipsoid(centre, [0, 0, paw * 1.3], (paw, leg_radius * 0.75), made[-1], X)
