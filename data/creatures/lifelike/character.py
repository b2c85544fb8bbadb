"""Human-like characters, from realistic adults to figures that are mostly head, as artists rig them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.creatures.body import SIDES, Vector, X, Y, Z, unit, v
from data.creatures.lifelike import outfit
from data.creatures.lifelike.figure import Figure
from data.creatures.lifelike.hands import hand, hand_plan
from data.creatures.lifelike.landmarks import Landmarks


@dataclass(frozen=True)
class _Build:
    """Proportions as fractions of the height. Radii are half widths; `head` is the height of the head."""

    head: float
    neck: float
    torso: float
    leg: float
    head_width: float
    head_depth: float
    shoulder: float
    hip: float
    chest: float
    waist: float
    pelvis: float
    depth: float
    arm: float
    arm_radius: float
    hand: float
    leg_radius: float
    foot: float


@dataclass(frozen=True)
class _Custom:
    """Choices of the rigger.

    `root`: "pelvis"; "ground" (a joint between the feet); "feet" (the same, with the feet as its children, as
    left by rigs with inverse kinematics). `hips`: a second joint at the pelvis. `spines`: joints from pelvis
    to chest. `toe`, `foot`, `clavicle`, `neck`, `wrist`, `hand`: whether there is such a joint.
    """

    root: str
    hips: bool
    spines: int
    clavicle: bool
    neck: bool
    wrist: bool
    hand: bool
    foot: bool
    toe: bool
    simple: bool


def character(body: Figure) -> None:
    """A realistic adult, a stylised figure or a "chibi", dressed and at times armed."""
    form = ("adult", "stylised", "chibi")[int(np.searchsorted([0.32, 0.6], body.rng.random()))]
    build = _build(body, form)
    custom = _custom(body, form)
    marks = _trunk(body, build, custom)
    _legs(body, build, custom, marks)
    _arms(body, build, custom, marks, form)
    _head(body, marks, form)
    outfit.dress(body, marks)


def _build(body: Figure, form: str) -> _Build:
    u = body.uniform
    if form == "adult":
        head, neck, leg, thick = u(0.12, 0.15), u(0.035, 0.055), u(0.45, 0.53), u(0.8, 1.25)
        shoulder, arm, hand = u(0.085, 0.125), u(0.27, 0.34), u(0.09, 0.12)
        arm_radius, leg_radius, foot = u(0.022, 0.033), u(0.036, 0.052), u(0.13, 0.17)
        head_width = u(0.36, 0.44)
    elif form == "stylised":
        head, neck, leg, thick = u(0.18, 0.29), u(0.0, 0.05), u(0.3, 0.45), u(0.8, 1.5)
        shoulder, arm, hand = u(0.1, 0.17), u(0.25, 0.4), u(0.09, 0.17)
        arm_radius, leg_radius, foot = u(0.025, 0.055), u(0.04, 0.07), u(0.14, 0.24)
        head_width = u(0.36, 0.5)
    else:
        head, neck, leg, thick = u(0.33, 0.52), u(0.0, 0.02), u(0.16, 0.32), u(0.85, 1.4)
        shoulder, arm, hand = u(0.09, 0.15), u(0.18, 0.3), u(0.06, 0.12)
        arm_radius, leg_radius, foot = u(0.03, 0.055), u(0.04, 0.065), u(0.11, 0.19)
        head_width = u(0.37, 0.52)
    chest = shoulder * u(0.85, 1.08)
    pelvis = chest * u(0.75, 1.15)
    leg_radius = min(leg_radius * np.sqrt(thick), 0.55 * pelvis, 0.3 * leg)
    return _Build(
        head=head,
        neck=neck,
        torso=1 - head - neck - leg,
        leg=leg,
        head_width=head_width * head,
        head_depth=head_width * head * u(0.85, 1.2),
        shoulder=shoulder,
        hip=max(pelvis * u(0.5, 0.65), 1.05 * leg_radius + 0.01),
        chest=chest,
        waist=min(chest, pelvis) * u(0.7, 1.05),
        pelvis=pelvis,
        depth=u(0.55, 0.9),
        arm=arm,
        arm_radius=arm_radius * np.sqrt(thick),
        hand=hand,
        leg_radius=leg_radius,
        foot=foot,
    )


def _custom(body: Figure, form: str) -> _Custom:
    simple = form != "adult" and body.chance(0.1)
    root = ("pelvis", "ground", "feet")[int(np.searchsorted([0.55, 0.78], body.rng.random()))]
    spines = (1, 2, 3, 4)[int(np.searchsorted([0.12, 0.5, 0.85], body.rng.random()))]
    foot = body.chance(0.9)
    return _Custom(
        root=root,
        hips=body.chance(0.1 if root == "pelvis" else 0.5),
        spines=1 if simple else spines,
        clavicle=not simple and body.chance(0.4 if form == "chibi" else 0.75),
        neck=not simple and body.chance(0.35 if form == "chibi" else 0.8),
        wrist=body.chance(0.15),
        hand=not simple and body.chance(0.9),
        foot=not simple and (foot or root == "feet"),
        toe=body.chance(0.15 if root == "feet" else 0.6),
        simple=simple,
    )


def _trunk(body: Figure, build: _Build, custom: _Custom) -> Landmarks:
    u = body.uniform
    back = u(-0.4, 0.15) * build.chest * build.depth
    lean = u(-0.01, 0.02)
    top = build.leg + build.torso

    def at(t: float) -> Vector:
        return v(0, build.leg + t * build.torso, back + lean * t)

    parent = -1
    ground = -1
    if custom.root != "pelvis":
        ground = body.joint("root", v(0, u(0.0, 0.01), u(-0.02, 0.02)), -1)
        parent = ground
    low = u(-0.1, 0.14)
    pelvis = body.joint("pelvis", at(low), parent)
    legs = pelvis
    if custom.hips:
        moved = body.joint("hips", at(low + u(-0.06, 0.08)), pelvis)
        legs = moved if body.chance(0.5) else pelvis
        pelvis = moved
    chest_height = u(0.5, 0.75)
    first = max(low + 0.1, 0.1)
    if custom.spines == 1:
        heights = [u(0.2, 0.6)]
    else:
        heights = list(np.linspace(first + u(0, 0.08), chest_height, custom.spines))
    spines = body.chain("spine", [at(t) for t in heights], pelvis)
    chest = spines[-1]

    # Flesh: pelvis to the first spine, between the spines, and from the chest to the shoulders.
    t = np.array([0.05, *heights, 0.86])
    widths = np.interp(
        t,
        [0.0, 0.12, 0.42, 0.75, 1.0],
        np.array([1, 1, 1, 1, 0.9]) * [build.pelvis, build.pelvis, build.waist, build.chest, build.chest],
    )
    owners = [pelvis, *spines]
    middle = v(0, 0, -back)
    for index, owner in enumerate(owners):
        start, end = at(t[index]) + middle * 0.9, at(t[index + 1]) + middle * 0.9
        ends = (widths[index] * build.depth, widths[index + 1] * build.depth)
        body.flesh(
            "torso", start, end, ends, owner, X, (1 / build.depth, 1.0), cap=0.35 / build.depth, flush=True
        )
    if body.chance(0.25):  # a belly
        size = build.waist * u(0.8, 1.15)
        owner = spines[0] if custom.spines > 1 else pelvis
        body.ball("torso", at(0.3) + v(0, 0, -back + 0.35 * size), (size, 0.3 * build.torso, size), owner)
    neck_base = at(1.0) + v(0, u(-0.04, 0.01), 0)
    above = chest
    base = v(0, top + build.neck + u(-0.01, 0.06) * build.head, back * 0.6 + u(0, 0.01))
    neck_radius = min(0.45 * build.head_width, build.chest * 0.42)
    if custom.neck:
        above = body.joint("neck", neck_base, chest)
    head = body.joint("head", base, above)
    body.flesh(
        "neck",
        neck_base - v(0, 0.03, 0),
        base + v(0, 0.15 * build.head, 0),
        (neck_radius * 1.1, neck_radius),
        above,
    )
    return Landmarks(
        ground=ground,
        pelvis=pelvis,
        legs=legs,
        spines=spines,
        chest=chest,
        head=head,
        neck_base=neck_base,
        head_centre=v(0, top + build.neck + 0.5 * build.head, base[2] + u(0.0, 0.25) * build.head_depth),
        head_size=(build.head_width, 0.5 * build.head, build.head_depth),
        leg=build.leg,
        torso=build.torso,
        chest_size=(build.chest, build.chest * build.depth),
        pelvis_size=(build.pelvis, build.pelvis * build.depth),
        waist_size=(build.waist, build.waist * build.depth),
        arm_radius=build.arm_radius,
        leg_radius=build.leg_radius,
    )


def _legs(body: Figure, build: _Build, custom: _Custom, marks: Landmarks) -> None:
    u = body.uniform
    apart = u(0.0, 0.12) if body.chance(0.6) else u(0.1, 0.3)
    knee_share, ankle_share = u(0.46, 0.56), u(0.06, 0.16)
    lift = u(-0.02, 0.06) * build.torso
    forward = u(-0.01, 0.02)
    wide = min(build.foot * u(0.26, 0.42), 1.6 * build.hip)
    high = max(build.leg * ankle_share, 0.02) * u(0.7, 1.1)
    # The legs must not melt into one another.
    gap = 2 * (build.hip - max(1.2 * build.leg_radius, 0.5 * wide))
    body.finish = replace(body.finish, blend=min(body.finish.blend, 0.7 * max(gap, 0.005)))
    calf = u(0.6, 0.95)
    trousers = u(1.0, 1.25)
    heel = u(0.2, 0.32)
    ball_at = u(0.5, 0.62)
    for sign, side in SIDES:
        hip = v(sign * build.hip, build.leg + lift, 0.5 * body.joints[marks.pelvis][2])
        knee = v(sign * (build.hip + apart * 0.4 * build.leg), build.leg * knee_share, hip[2] + forward)
        ankle = v(sign * (build.hip + apart * 0.8 * build.leg), build.leg * ankle_share, hip[2] - 0.01)
        thigh = body.joint(f"{side}_thigh", hip, marks.legs)
        shin = thigh if custom.simple else body.joint(f"{side}_shin", knee, thigh)
        r = build.leg_radius
        body.flesh(f"{side}_leg", hip, knee, (r * 1.15, r * calf * 1.1), thigh)
        foot = shin
        if custom.foot:
            foot = body.joint(f"{side}_foot", ankle, marks.ground if custom.root == "feet" else shin)
        body.flesh(f"{side}_leg", knee, ankle, (r * calf * trousers, r * calf * 0.75 * trousers), shin)
        turn = sign * 0.15
        ahead = unit([turn, 0, 1.0])
        sole = v(ankle[0], 0.5 * high, ankle[2])
        back, ball, tip = (
            sole + ahead * build.foot * k
            for k in (-heel + 0.5 * wide / build.foot, ball_at - heel, 0.8 - heel)
        )
        toe = (
            body.joint(f"{side}_toe", ball - v(0, 0.2 * high, 0), foot)
            if custom.toe and custom.foot
            else foot
        )
        flat = 0.5 * high
        stretch = (0.5 * wide / flat, 1.0)
        body.flesh(f"{side}_foot", back, ball, (flat, flat), foot, X, stretch)
        body.flesh(f"{side}_foot", ball, tip, (flat, flat * 0.8), toe, X, stretch, cap=1.2)
        if not custom.simple:
            body.flesh(f"{side}_foot", ankle, sole, (r * calf * 0.8, flat), foot)
        marks.thighs.append(thigh)
        marks.shins.append(shin)
        marks.feet.append(foot)
        marks.leg_points.append((hip, knee, ankle))


def _arms(body: Figure, build: _Build, custom: _Custom, marks: Landmarks, form: str) -> None:
    u = body.uniform
    pose = body.rng.random()
    if pose < 0.5:
        droop = u(-0.06, 0.12)
    elif pose < 0.82:
        droop = u(0.35, 0.95)
    else:
        droop = u(1.0, 1.35)
    bend = u(0.0, 0.5) if body.chance(0.3) else u(0.0, 0.08)
    forward = u(-0.08, 0.12)
    clear = max(build.pelvis, build.waist) + 1.6 * build.arm_radius - build.shoulder
    droop = min(droop, float(np.arccos(np.clip(clear / (0.85 * build.arm), 0.1, 1.0))))
    height, elbow_share = u(0.82, 0.96), u(0.44, 0.52)
    inner = (u(0.15, 0.75), u(-0.12, 0.03))
    taper = (u(1.0, 1.35), u(0.85, 1.15), u(0.7, 1.0))
    depth = body.joints[marks.chest][2] * u(0.4, 1.0)
    plan = hand_plan(body, build.hand, build.arm_radius, form, custom.hand)
    for sign, side in SIDES:
        shoulder = v(sign * build.shoulder, build.leg + height * build.torso, depth)
        parent = marks.chest
        if custom.clavicle:
            start = v(sign * build.shoulder * inner[0], shoulder[1] + inner[1] * build.torso, depth)
            parent = body.joint(f"{side}_clavicle", start, marks.chest)
        upper = unit([sign * np.cos(droop), -np.sin(droop), forward])
        fore = unit(upper + v(0, 0.2 * bend, bend))
        elbow = shoulder + upper * build.arm * elbow_share
        wrist = elbow + fore * build.arm * (1 - elbow_share)
        arm = body.joint(f"{side}_upper_arm", shoulder, parent)
        lower = arm if custom.simple else body.joint(f"{side}_forearm", elbow, arm)
        last = lower
        if custom.wrist and not custom.simple:
            last = body.joint(f"{side}_wrist", elbow + 0.72 * (wrist - elbow), last)
        r = build.arm_radius
        part = f"{side}_arm"
        link = v(sign * build.shoulder * 0.55, shoulder[1] - 0.04 * build.torso, depth)
        body.flesh(part if custom.clavicle else "torso", link, shoulder, (r * 1.3, r * 1.2), parent)
        body.flesh(part, shoulder, elbow, (r * taper[0], r * taper[1]), arm)
        if last != lower:
            cut = body.joints[last]
            body.flesh(part, elbow, cut, (r * taper[1], r * taper[2] * 1.05), lower)
            body.flesh(part, cut, wrist, (r * taper[2] * 1.05, r * taper[2]), last)
        else:
            body.flesh(part, elbow, wrist, (r * taper[1], r * taper[2]), lower)
        width = unit(Z - (Z @ fore) * fore) if abs(fore[2]) < 0.85 else unit(Y - (Y @ fore) * fore)
        palm = hand(body, plan, side, last, wrist, fore, width)
        marks.hands.append(palm)
        marks.arms.append(arm)
        marks.forearms.append(lower)
        marks.arm_points.append((shoulder, elbow, wrist))
        marks.grips.append(wrist + fore * plan.palm * 0.7)
        marks.headings.append(fore)


def _head(body: Figure, marks: Landmarks, form: str) -> None:
    u = body.uniform
    centre, (across, half, deep) = marks.head_centre, marks.head_size
    square = body.pick(1, 2) if body.chance(0.15) else 0
    head = marks.head
    if form == "adult" or body.chance(0.4):
        # Skull and jaw.
        body.ball("head", centre + v(0, 0.2 * half, -0.05 * deep), (across, 0.8 * half, deep), head, square)
        jaw = across * u(0.6, 0.85)
        owner = head
        if body.chance(0.08):
            owner = body.joint("jaw", centre + v(0, -0.2 * half, 0.1 * deep), head)
        body.ball(
            "head", centre + v(0, -0.5 * half, 0.2 * deep), (jaw, 0.48 * half, 0.75 * deep), owner, square
        )
    else:
        body.ball("head", centre, (across, half, deep), head, square)
    if body.chance(0.5):
        size = half * u(0.08, 0.2)
        snout = size * u(0.8, 3.0) if body.chance(0.25) else size
        body.ball("head", centre + v(0, -half * u(0.05, 0.25), deep * 0.95), (size, size, snout), head)
    if body.chance(0.55):
        size = half * u(0.1, 0.26)
        height, apart = half * u(-0.1, 0.25), across * u(0.35, 0.55)
        jointed = body.chance(0.08)
        for sign, side in SIDES:
            place = centre + v(sign * apart, height, deep * 0.86)
            owner = body.joint(f"{side}_eye", place, head) if jointed else head
            body.ball(f"{side}_eye", place, (size, size, size * u(0.5, 0.9)), owner, worn=True)
    ears = body.rng.random()
    if ears < 0.45:
        _ears(body, marks, ears < 0.16)


def _ears(body: Figure, marks: Landmarks, animal: bool) -> None:
    u = body.uniform
    centre, (across, half, _) = marks.head_centre, marks.head_size
    if not animal:
        size = half * u(0.16, 0.3)
        for sign, _ in SIDES:
            place = centre + v(sign * across * 0.97, half * 0.0, 0)
            body.ball("head", place, (size * 0.4, size, size * 0.6), marks.head)
        return
    long = half * u(0.4, 1.9)
    tilt, thick = u(0.05, 0.7), u(0.15, 0.32)
    jointed = long > 0.8 * half and body.chance(0.7) and not body.crowded
    count = body.pick(1, 3)
    for sign, side in SIDES:
        root = centre + v(sign * across * 0.5, half * 0.8, 0)
        way = unit([sign * tilt, 1.0, -0.1])
        line = root + np.linspace(0, 1, count + 1)[:, None] * long * way
        owners = body.chain(f"{side}_ear", line[:-1], marks.head) if jointed else [marks.head] * count
        widths = half * thick * np.linspace(1.0, 0.55, count + 1)
        for k, owner in enumerate(owners):
            body.flesh(f"{side}_ear", line[k], line[k + 1], (widths[k], widths[k + 1]), owner, X, (1.0, 0.5))
