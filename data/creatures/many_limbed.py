"""Creatures with many limbs: octopuses, spiders, starfish, hydras with several necks, and trees."""

import numpy as np

from data.creatures.body import SIDES, Body, X, Z, curved_spine, joints_for_length, ring_of_limbs, unit, v
from data.creatures.crawlers import thin_leg


def many_limbed(body: Body) -> None:
    """An octopus, a spider or a starfish."""
    form = body.pick(0, 2)
    (_octopus, _spider, _starfish)[form](body)


def _octopus(body: Body) -> None:
    u = body.uniform
    size = u(0.2, 0.3)
    tall = u(1.0, 1.7)
    height = u(0.35, 0.6)
    root = body.joint("mantle", [0, height, 0], -1)
    head = body.joint("head", [0, height + size * 0.8 * tall, -size * 0.2], root)
    spine = np.array(
        [
            v(0, height - size * 0.2, 0),
            body.joints[root],
            body.joints[head],
            v(0, height + size * 1.5 * tall, -size * 0.5),
        ]
    )
    body.sweep(spine, size * np.array([0.6, 0.75, 1.0, 0.75]), [root, root, head], X)
    if body.chance(0.7):
        for sign, _ in SIDES:
            body.ellipsoid(
                [sign * size * 0.5, height + size * 0.5, size * 0.6],
                [0, size * 0.22, 0],
                (size * 0.2, size * 0.2),
                root,
                X,
            )
    ring_of_limbs(
        body,
        root,
        body.pick(4, 8),
        base=size * 0.45,
        reach=u(0.7, 1.7),
        radius=u(0.05, 0.085),
        arch=u(0.0, 0.25),
        floor=height,
        curl=u(-0.4, 0.6),
        taper=0.3,
        spacing=0.3,
        max_joints=6,
    )


def _spider(body: Body) -> None:
    u = body.uniform
    pairs = body.pick(3, 4)
    height, size = u(0.25, 0.55), u(0.14, 0.22)
    middle = v(0, height, 0)
    thorax = body.joint("thorax", middle, -1)
    front, rear = v(0, height + size * 0.1, size * 1.2), v(0, height + size * 0.15, -size * 1.1)
    head = body.joint("head", front, thorax)
    abdomen = body.joint("abdomen", rear, thorax)
    body.sweep(
        [rear * 0.8 + middle * 0.2, middle, front * 0.8 + middle * 0.2],
        np.array([[0.7, 0.5], [1.0, 0.7], [0.65, 0.5]]) * size,
        [thorax, thorax],
        X,
    )
    fat, long = size * u(1.0, 1.6), size * u(1.2, 2.0)
    body.ellipsoid(
        rear + v(0, fat * 0.1, -long * 0.75), [0, u(0, 0.3) * long, -long], (fat, fat * 0.85), abdomen, X
    )
    head_size = size * u(0.6, 0.9)
    body.ellipsoid(front + v(0, 0, head_size * 0.3), [0, 0, head_size], (head_size, head_size * 0.8), head, X)
    if body.chance(0.5):
        jaw = head_size * u(0.5, 0.9)
        for sign, _ in SIDES:
            body.ellipsoid(
                front + v(sign * head_size * 0.4, -head_size * 0.3, head_size * 1.3),
                [sign * -0.1 * jaw, -jaw * 0.4, jaw],
                (head_size * 0.2, head_size * 0.2),
                head,
                X,
            )
    if body.chance(0.3):  # claws
        reach = u(0.5, 0.8)
        for sign, side in SIDES:
            hip = middle + v(sign * size * 0.5, 0, size * 0.6)
            points = hip + np.array([[0, 0, 0], [sign * 0.45, 0.1, 0.35], [sign * 0.35, 0.05, 0.8]]) * reach
            made = body.limb(f"claw_{side}", points, [0.05, 0.045, 0.06], thorax, [0, 1.0, 0], inset=0.3)
            body.ellipsoid(points[-1] + v(0, 0, 0.08), [0, 0, 0.13], (0.08, 0.05), made[-1], X)
    reach, radius, arch = u(0.7, 1.2), u(0.025, 0.05), u(0.15, 0.6)
    bones = 3 if reach > 0.95 else 2
    for pair in range(pairs):
        for sign, side in SIDES:
            fan = (pair / (pairs - 1) - 0.5) * 1.65
            out = v(sign * np.cos(fan), 0, -np.sin(fan))
            hip = middle + out * size * 0.75 + v(0, 0, (0.5 - pair / (pairs - 1)) * size * 0.8)
            thin_leg(body, f"leg{pair}_{side}", thorax, hip, out, reach, arch, radius, bones)


def _starfish(body: Body) -> None:
    u = body.uniform
    size = u(0.16, 0.28)
    root = body.joint("core", [0, size * 0.5, 0], -1)
    body.ellipsoid([0, size * 0.5, 0], [0, size * u(0.4, 0.8), 0], (size, size), root, X)
    ring_of_limbs(
        body,
        root,
        body.pick(5, 7),
        base=size * 0.55,
        reach=u(0.6, 1.0),
        radius=u(0.09, 0.14),
        arch=u(-0.02, 0.2),
        floor=size * 0.4,
        curl=u(-0.2, 0.4),
        taper=u(0.35, 0.7),
        spacing=0.33,
        max_joints=3,
    )


def hydra(body: Body) -> None:
    """A body on two or four legs with several long necks and one or more tails."""
    u = body.uniform
    length, radius = u(0.4, 0.8), u(0.16, 0.26)
    leg = u(0.2, 0.45)
    height = leg + radius * 0.7
    root = body.joint("pelvis", [0, height, -0.3 * length], -1)
    chest = body.joint("chest", [0, height + u(0, 0.15), 0.25 * length], root)
    front = body.joints[chest] + v(0, 0.05, 0.3 * length)
    body.sweep(
        [v(0, height, -0.6 * length), body.joints[root], body.joints[chest], front],
        radius * np.array([0.7, 1.0, 1.1, 0.8]),
        [root, root, chest],
        X,
    )
    necks = body.pick(2, 5)
    long, neck_radius = u(0.6, 1.1), u(0.05, 0.08)
    size = neck_radius * u(1.2, 1.8)
    bones = joints_for_length(long, 0.22, 3, 5)
    fan, bow = u(0.4, 0.9), u(0.2, 1.1)
    for index in range(necks):
        side = (2 * index / (necks - 1) - 1) * fan
        start = body.joints[chest] + v(side * radius * 0.8, radius * 0.35, radius * 0.4)
        way = v(1.3 * side, 1.2 - 0.3 * abs(side), u(0.1, 0.5))
        points = curved_spine(start, way, long, bones, [-0.5 * side, -0.4, bow])
        heading = unit(points[-1] - points[-2])
        made = body.limb(
            f"neck{index}", points, neck_radius * np.linspace(1.2, 0.8, bones + 1), chest, X, inset=0.4
        )
        # The head joint sits at the tip of the neck.
        head = body.joint(f"head{index}", points[-1], made[-1])
        body.ellipsoid(
            points[-1] + heading * size * 0.8, heading * size * 1.5, (size * 0.9, size * 0.8), head, X
        )
    tails = body.pick(1, 3) if necks < 5 else 1
    for index in range(tails):
        side = 0.0 if tails == 1 else (2 * index / (tails - 1) - 1) * 0.6
        start = v(side * radius * 0.6, height, -0.6 * length)
        long = u(0.4, 0.8) if index == 0 else long
        count = joints_for_length(long, 0.22, 2, 4)
        points = curved_spine(start, [side, -0.15, -1.0], long, count, [0.3 * side, 0.3, 0])
        body.limb(f"tail{index}", points, 0.08 * np.linspace(1.0, 0.4, count + 1), root, X, inset=0.6)
    leg_radius = u(0.05, 0.08)
    for parent, place in ((root, "rear"), (chest, "front")) if body.chance(0.6) else ((root, "rear"),):
        for sign, name in SIDES:
            hip = body.joints[parent] + v(sign * radius * 0.7, -radius * 0.3, 0)
            knee = v(hip[0] + sign * 0.05, 0.5 * hip[1], hip[2] + 0.06)
            sole = v(hip[0] + sign * 0.05, leg_radius * 0.7, hip[2])
            made = body.limb(
                f"{place}_{name}_leg", [hip, knee, sole], leg_radius * np.array([1.4, 1.0, 0.9]), parent, Z
            )
            body.ellipsoid(
                sole + v(0, 0, leg_radius),
                [0, 0, leg_radius * 1.8],
                (leg_radius * 1.2, leg_radius * 0.7),
                made[-1],
                X,
            )


def tree(body: Body) -> None:
    """A trunk with forking branches, with or without clumps of leaves, which may float."""
    u = body.uniform
    tall, radius = u(0.6, 1.2), u(0.06, 0.13)
    count = joints_for_length(tall, 0.3, 2, 4)
    bow = u(-0.3, 0.3)
    trunk = curved_spine(v(0, 0, 0), [bow, 1.0, 0], tall, count, [-2 * bow, 0.3, u(-0.2, 0.2)])
    made = body.chain("trunk", trunk[:-1], -1)
    top = body.joint("top", trunk[-1], made[-1])
    crown = trunk[-1] + unit(trunk[-1] - trunk[-2]) * 0.25 * tall
    fat = radius * np.linspace(1.3, 0.6, count + 2)
    body.sweep([trunk[0] - v(0, 0.03, 0), *trunk[1:], crown], fat, [*made, top], X)
    leafy, floating = body.chance(0.6), u(0.0, 1.0) if body.chance(0.3) else 0.0
    clump = u(0.1, 0.24)
    branches = body.pick(3, 7)
    turn, long = u(0, 2 * np.pi), u(0.35, 0.8)
    parents = [*made[1:], top]
    for index in range(branches):
        angle = turn + index * 2.4  # the golden angle, as in plants
        parent = parents[len(parents) - 1 - index % max(1, len(parents) - 1)]
        start = body.joints[parent] + v(0, 0.02 * index, 0)
        out = v(np.sin(angle), u(0.3, 0.9), np.cos(angle))
        reach = long * u(0.8, 1.1)
        bones = joints_for_length(reach, 0.25, 1, 3)
        points = curved_spine(start + unit(out) * radius * 0.8, out, reach, bones, [0, u(-0.3, 0.8), 0])
        thick = 0.5 * radius * np.linspace(1.0, 0.5, bones + 1)
        limb = body.limb(
            f"branch{index}", points, thick, parent, v(np.cos(angle), 0, -np.sin(angle)), inset=0.3
        )
        ends = [(points[-1], limb[-1])]
        if bones >= 2 and index % 2 == 0:
            fork = points[-2]
            aside = unit(points[-1] - points[-2]) + 0.9 * v(np.cos(angle), 0.2, -np.sin(angle))
            twig = curved_spine(fork + 0.04 * unit(aside), aside, 0.5 * reach, 1, [0, 0.2, 0])
            small = body.limb(f"twig{index}", twig, thick[-2:] * 0.8, limb[-1], X, inset=0.3)
            ends.append((twig[-1], small[-1]))
        for place, joint in ends if leafy else ():
            r = clump * u(0.7, 1.2)
            body.ellipsoid(
                place + v(0, r * (0.3 + floating), 0), [0, r * 0.7, 0], (r, r), joint, X, prop=True
            )
    if leafy:
        r = clump * 1.2
        body.ellipsoid(crown + v(0, r * (0.3 + floating), 0), [0, r * 0.8, 0], (r, r), top, X, prop=True)
    if body.chance(0.2):
        roots = body.pick(3, 5)
        for index in range(roots):
            angle = turn + 2 * np.pi * index / roots
            out = v(np.sin(angle), -0.1, np.cos(angle))
            body.ellipsoid(
                out * radius * 1.6, unit(out) * radius * 1.8, (radius * 0.4, radius * 0.35), made[0], Z
            )
