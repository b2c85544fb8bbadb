"""Two-legged creatures: bipeds and humanoids with fingers, in many builds and poses, often with props."""

from dataclasses import dataclass

import numpy as np

from data.creatures import props
from data.creatures.body import SIDES, Body, Vector, X, Y, Z, ear, mirror, tail, unit, v


@dataclass(frozen=True)
class _Build:
    """Proportions of a biped. Lengths in arbitrary units; `head` is half the head's height."""

    leg: float
    torso: float
    arm: float
    head: float
    neck: float
    hip: float
    shoulder: float
    pelvis: float
    waist: float
    chest: float
    depth: float
    arm_radius: float
    leg_radius: float
    foot: float
    lean: float


@dataclass(frozen=True)
class _Trunk:
    pelvis: int
    spines: list[int]
    chest: int
    head: int
    head_centre: Vector
    head_size: tuple[float, float, float]


def biped(body: Body) -> None:
    _two_legged(body, fingers=False)


def humanoid(body: Body) -> None:
    """A biped whose fingers have joints."""
    _two_legged(body, fingers=True)


def _build(body: Body) -> _Build:
    u = body.uniform
    form = body.rng.random()
    if form < 0.3:  # stocky with a big head, as toys and many game characters are
        thick = u(0.9, 1.45)
        leg, torso, arm, head, neck = u(0.3, 0.6), u(0.42, 0.62), u(0.4, 0.65), u(0.22, 0.42), u(0.0, 0.06)
    elif form < 0.45:  # lanky
        thick = u(0.6, 0.85)
        leg, torso, arm, head, neck = u(0.9, 1.2), u(0.5, 0.8), u(0.65, 1.0), u(0.1, 0.16), u(0.06, 0.16)
    else:
        thick = u(0.75, 1.35)
        leg, torso, arm, head, neck = u(0.7, 1.05), u(0.5, 0.75), u(0.5, 0.8), u(0.11, 0.19), u(0.03, 0.12)
    chest = u(0.13, 0.19) * thick
    return _Build(
        leg=leg,
        torso=torso,
        arm=arm,
        head=head,
        neck=neck,
        hip=u(0.09, 0.14) * thick,
        shoulder=max(u(0.15, 0.24) * thick, 0.9 * chest),
        pelvis=u(0.12, 0.17) * thick,
        waist=u(0.09, 0.15) * thick,
        chest=chest,
        depth=u(0.6, 0.9),
        arm_radius=u(0.04, 0.065) * thick,
        leg_radius=min(u(0.06, 0.095) * thick, 0.2 * leg),
        foot=u(0.14, 0.26) * (0.7 + 0.4 * leg),
        lean=u(-0.05, 0.12),
    )


def _two_legged(body: Body, fingers: bool) -> None:
    u = body.uniform
    build = _build(body)
    trunk = _trunk(body, build)
    stride = u(-0.6, 0.6) if body.chance(0.4) else 0.0
    hands, grips, forearms, shoulders = _arms(body, build, trunk, stride, fingers)
    thighs = _legs(body, build, trunk, stride)
    if body.chance(0.2):
        start = _spine_at(build, 0.02) + v(0, 0, -build.pelvis * build.depth * 0.6)
        tail(body, trunk.pelvis, start, [0, u(-0.6, 0.3), -1.0], u(0.3, 0.9), build.leg_radius * u(0.4, 0.8))
    if body.chance(0.45):
        _equip(body, build, trunk, hands, grips, forearms, shoulders, thighs)


def _spine_at(build: _Build, t: float) -> Vector:
    return v(0, build.leg + t * build.torso, build.lean * t * t)


def _trunk(body: Body, build: _Build) -> _Trunk:
    u = body.uniform

    def spine_at(t: float) -> Vector:
        return _spine_at(build, t)

    pelvis = body.joint("pelvis", spine_at(0.12), -1)
    inner = [0.45] if build.torso < 4.2 * build.waist else [0.34, 0.56]
    spines = body.chain("spine", [spine_at(t) for t in inner], pelvis)
    chest = body.joint("chest", spine_at(0.78), spines[-1])
    wide = np.array([0.85 * build.pelvis, build.pelvis, *([build.waist] * len(inner)), build.chest])
    wide = np.append(wide, build.chest * u(0.65, 0.9))
    spine = [spine_at(t) for t in (-0.08, 0.12, *inner, 0.78, 0.98)]
    body.sweep(spine, np.stack([wide, wide * build.depth], axis=1), [pelvis, pelvis, *spines, chest], X)

    size = build.head
    neck_base, head_base = spine_at(1.0), spine_at(1.0) + v(0, build.neck, u(0, 0.03))
    centre = head_base + v(0, size * 0.8, size * 0.1)
    neck_radius = min(u(0.3, 0.45) * build.chest, 0.7 * size)
    if build.neck > 0.05:
        neck = body.joint("neck", neck_base, chest)
        head = body.joint("head", head_base, neck)
        body.sweep(
            [spine_at(0.85), neck_base, head_base, centre],
            neck_radius * np.array([1.1, 1.1, 1.0, 1.0]),
            [chest, neck, head],
            X,
        )
    else:
        head = body.joint("head", head_base, chest)
        body.sweep(
            [spine_at(0.85), head_base, centre], neck_radius * np.array([1.1, 1.0, 1.0]), [chest, head], X
        )
    across, deep = size * u(0.7, 1.05), size * u(0.75, 1.05)
    if body.chance(0.2):  # a box-like head
        body.sweep(
            [centre - v(0, size * 0.75, 0), centre + v(0, size * 0.75, 0)],
            [[across * 0.85, deep * 0.85]] * 2,
            [head],
            X,
        )
    else:
        body.ellipsoid(centre, [0, size, 0], (across, deep), head, X)
    if body.chance(0.4):  # nose or snout
        body.ellipsoid(
            centre + v(0, -size * 0.15, deep * 0.9),
            [0, 0, size * u(0.2, 0.7)],
            (size * u(0.1, 0.35), size * u(0.1, 0.3)),
            head,
            X,
        )
    ears = body.pick(0, 5)
    long = size * (u(0.9, 1.8) if ears == 1 else u(0.35, 0.8))
    wide_ear, tilt = u(0.15, 0.28), u(0.1, 0.8)
    for sign, side in SIDES if ears in (1, 2) else ():
        root = centre + mirror([across * 0.55, size * 0.75, 0], sign)
        axis = unit([sign * tilt, 1.0, 0]) * long
        ear(
            body,
            f"{side}_ear",
            root,
            axis,
            (size * wide_ear, size * wide_ear * 0.6),
            head,
            long > 0.85 * size,
        )
    return _Trunk(pelvis, spines, chest, head, centre, (across, size, deep))


def _arms(
    body: Body, build: _Build, trunk: _Trunk, stride: float, fingers: bool
) -> tuple[list[int], list[Vector], list[Vector], list[Vector]]:
    """Both arms, left first: (hand joints, grip points, forearm directions, shoulder points)."""
    u = body.uniform
    pose = body.pick(0, 4)  # T, A, A, down, anything
    droop = (u(-0.05, 0.1), u(0.4, 0.9), u(0.4, 0.9), u(1.1, 1.42), u(-0.5, 1.3))[pose]
    bend = u(0, 0.9) if body.chance(0.4) else u(0, 0.15)
    apart = u(-0.3, 0.3) if body.chance(0.15) else 0.0
    swing = -1.1 * stride
    # Keep the hands beside the hips, not inside them.
    clear = max(build.pelvis, build.hip + 1.2 * build.leg_radius) + 1.4 * build.arm_radius - build.shoulder
    lowest = np.arccos(np.clip(clear / (0.8 * build.arm), 0.1, 0.95))
    clavicle = build.shoulder > 1.15 * build.chest
    wide_hand = u(0.9, 1.7)
    hands, grips, forearms, shoulders = [], [], [], []
    palm = build.arm * (0.16 if fingers else 0.2)
    finger_plan = (body.pick(2, 4), u(0.13, 0.24) * build.arm, u(0.0, 0.35)) if fingers else None
    for sign, side in SIDES:
        low = np.clip(droop + sign * apart, -0.8, lowest)
        shoulder = _spine_at(build, 0.9) + v(sign * build.shoulder, 0, 0)
        parent = trunk.chest
        if clavicle:
            inner = _spine_at(build, 0.92) + v(sign * build.shoulder * 0.3, 0, 0)
            parent = body.joint(f"{side}_clavicle", inner, trunk.chest)
        forward = sign * swing * np.sin(max(low, 0.0))
        upper = unit([sign * np.cos(low), -np.sin(low), forward])
        fore = unit(upper + v(0, 0.25 * bend, np.tan(min(bend, 1.2))))
        elbow = shoulder + upper * build.arm * 0.45
        wrist = elbow + fore * build.arm * 0.42
        tip = wrist + fore * palm
        r = build.arm_radius
        # The palm's plane: facing down in a T-pose, inwards with the arms down.
        width = unit(Z - (Z @ fore) * fore) if abs(fore[2]) < 0.85 else unit(Y - (Y @ fore) * fore)
        if fingers:
            flat = np.array([[1.3, 1.3], [1.2, 1.2], [1.0, 1.0], [0.8, 0.8], [1.15, 0.55]]) * r
        else:
            flat = np.array([[1.3, 1.3], [1.2, 1.2], [1.0, 1.0], [0.8, 0.8], [wide_hand, 0.75 * wide_hand]])
            flat = flat * r
        made = body.chain(f"{side}_arm", [shoulder, elbow, wrist], parent)
        start = 0.5 * (body.joints[parent] + shoulder)
        body.sweep([start, shoulder, elbow, wrist, tip], flat, [parent, *made], width)
        if finger_plan is not None:
            _fingers(body, finger_plan, f"{side}_finger", made[-1], wrist, fore, width, palm, r)
        hands.append(made[-1])
        grips.append(wrist + fore * palm * 0.7)
        forearms.append(fore)
        shoulders.append(shoulder)
    return hands, grips, forearms, shoulders


def _fingers(
    body: Body,
    plan: tuple[int, float, float],
    name: str,
    hand: int,
    wrist: Vector,
    fore: Vector,
    width: Vector,
    palm: float,
    arm_radius: float,
) -> None:
    """`plan`: number of fingers besides the thumb, their length and spread. Long fingers have 3 joints."""
    count, length, spread = plan
    bones = 3 if length > 3.2 * arm_radius else 2
    half = 1.1 * arm_radius
    radius = min(0.8 * half / count, 0.3 * arm_radius + 0.004)
    over = np.cross(fore, width)
    for index in range(count):
        place = 1 - 2 * index / (count - 1)
        heading = unit(fore + spread * place * width)
        own = length * (1 - 0.18 * abs(place))
        base = wrist + fore * palm * 0.95 + width * place * (half - 0.5 * radius)
        points = base + np.linspace(0, own, bones + 1)[:, None] * heading
        body.limb(f"{name}{index}", points, radius * np.linspace(1, 0.75, bones + 1), hand, over, inset=0.75)
    heading = unit(0.7 * fore + width)
    base = wrist + fore * palm * 0.35 + width * half * 0.6
    points = base + np.linspace(0, 0.75 * length, 3)[:, None] * heading
    body.limb(f"{name}_thumb", points, radius * np.array([1.1, 1.1, 0.8]), hand, over, inset=0.6)


def _legs(body: Body, build: _Build, trunk: _Trunk, stride: float) -> tuple[int, int]:
    """Both legs. Returns the thigh joints (left, right)."""
    u = body.uniform
    rest_flex, spread, boot = u(0, 0.2), u(-0.02, 0.14), u(0.8, 1.35)
    back_flex = u(0.2, 1.1)
    toes = build.foot > 1.6 * build.leg_radius
    r = build.leg_radius
    thighs = []
    for sign, side in SIDES:
        swing = sign * stride
        flex = rest_flex + (back_flex * abs(stride) * 1.3 if swing < 0 else 0.0)
        hip = v(sign * build.hip, build.leg, 0)
        high, low = 0.48 * build.leg, 0.43 * build.leg
        knee = hip + high * unit([sign * spread, -np.cos(swing + 0.4 * flex), np.sin(swing + 0.4 * flex)])
        shin = swing - 0.6 * flex
        ankle = knee + low * unit([sign * spread * 0.5, -np.cos(shin), np.sin(shin)])
        sole = ankle + 0.05 * build.leg * v(0, -np.cos(shin), np.sin(shin))
        made = body.limb(
            f"{side}_leg",
            [hip, knee, ankle, sole],
            r * np.array([1.2, 0.9, 0.75, 0.75]),
            trunk.pelvis,
            Z,
            0.7,
        )
        pitch = 0.6 * min(shin, 0.0) if swing < 0 else 0.5 * max(shin, 0.0)
        ahead = unit([sign * 0.08, np.sin(pitch), np.cos(pitch)])
        heel, middle = sole - ahead * build.foot * 0.15, sole + ahead * build.foot * 0.5
        front = sole + ahead * build.foot * 0.9
        radii = np.array([0.8, 1.0, 0.75]) * r * boot
        segment_joints = [made[-1], made[-1]]
        if toes:
            segment_joints[1] = body.joint(f"{side}_toe", middle, made[-1])
        body.sweep([heel, middle, front], np.stack([radii, radii * 0.7], axis=1), segment_joints, X)
        thighs.append(made[0])
    return thighs[0], thighs[1]


def _equip(
    body: Body,
    build: _Build,
    trunk: _Trunk,
    hands: list[int],
    grips: list[Vector],
    forearms: list[Vector],
    shoulders: list[Vector],
    thighs: tuple[int, int],
) -> None:
    """Add a random selection of the props that a game character wears or holds."""
    size = 0.35 * (build.leg + build.torso + build.head) + 0.3
    right = body.pick(0, 1)
    if body.chance(0.6):
        props.weapon(body, hands[right], grips[right], forearms[right], size)
    if body.chance(0.35):
        other = 1 - right
        fore = forearms[other]
        # On the outer side of the forearm: up in a T-pose, outwards with the arms down.
        outward = v(0.3 * fore[0], 1.0, 0) if abs(fore[0]) > 0.7 else v(np.sign(grips[other][0]), 0, 0.3)
        outward = unit(outward - (outward @ fore) * fore)
        at = grips[other] - fore * 0.15 * build.arm + outward * 1.6 * build.arm_radius
        props.shield(body, hands[other], at, outward, size)
    if body.chance(0.45):
        props.hat(body, trunk.head, trunk.head_centre, max(trunk.head_size))
    if body.chance(0.35):
        back = _spine_at(build, 0.97) - v(0, 0, 1.15 * build.chest * build.depth)
        length = body.uniform(0.6, 1.0) * back[1]
        torso = [trunk.pelvis, *trunk.spines, trunk.chest]
        props.cape(body, torso, back, build.shoulder * 0.9, length, body.uniform(0.0, 0.8))
    elif body.chance(0.25):
        at = _spine_at(build, 0.7) - v(0, 0, build.chest * build.depth)
        props.backpack(body, trunk.chest, at, build.chest * body.uniform(0.7, 1.2))
    if body.chance(0.3):
        wide = 1.1 * max(build.pelvis, build.waist)
        waist = _spine_at(build, 0.25)
        props.skirt(
            body,
            trunk.pelvis,
            thighs,
            waist,
            (wide, wide * build.depth),
            build.leg * body.uniform(0.35, 0.95),
        )
    elif body.chance(0.25):
        at = _spine_at(build, 0.2)
        props.belt(body, trunk.pelvis, at, 1.1 * build.pelvis, 1.12 * build.pelvis * build.depth)
    if body.chance(0.3):
        upper = [body.parents[body.parents[hand]] for hand in hands]
        props.pads(body, upper, shoulders, build.arm_radius * body.uniform(1.3, 2.0))
