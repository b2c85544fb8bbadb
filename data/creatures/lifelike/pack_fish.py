"""Fish, sharks and whales as game packs build them: a chain of joints along the body, and fins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.creatures.body import SIDES, Vector, X, Y, Z, unit, v
from data.creatures.lifelike.figure import Figure


def pack_fish(body: Figure) -> None:
    """A fish, shark or whale of any girth, its joints in one chain or forward and backward from a root."""
    body.rounded()
    u = body.uniform
    high, wide = u(0.14, 0.45), u(0.09, 0.34)
    if body.chance(0.3):  # a ball
        high = wide = u(0.3, 0.45)
    scheme = body.rng.random()
    count, z = body.pick(3, 6), u(-0.25, 0.2) * high
    belly = u(0.3, 0.62)
    end = u(0.12, 0.35)

    def at(t: float) -> Vector:
        """A point of the body's axis: 0 at the nose, 1 where the tail fin starts."""
        return v(0, z, 0.5 - t)

    if scheme < 0.55:  # one chain from the nose
        chain = body.chain(
            "body", [at(t) for t in np.linspace(u(-0.0, 0.08), u(0.8, 0.98), max(count, 4))], -1
        )
    elif scheme < 0.75:  # a root in the middle or below it, one chain backward and one forward
        middle = u(0.35, 0.55)
        root = body.joint("root", at(middle) + v(0, -high * u(0.0, 0.6), 0), -1)
        front = body.chain(
            "front", [at(middle - (k + 1) * middle * 0.4) for k in range(body.pick(1, 2))], root
        )
        back = body.chain(
            "back", [at(t) for t in np.linspace(middle + 0.12, u(0.8, 0.95), max(count - 2, 1))], root
        )
        chain = [*front, root, *back]
    else:  # a root near the head, head before it
        root = body.joint("body", at(u(0.3, 0.42)), -1)
        head = body.joint("head", at(u(0.12, 0.25)), root)
        back = body.chain("spine", [at(t) for t in np.linspace(0.5, u(0.8, 0.95), max(count - 1, 1))], root)
        chain = [head, root, *back]
    chain.sort(key=lambda j: -body.joints[j][2])
    places = np.array([0.5 - body.joints[j][2] for j in chain])
    levels = np.linspace(0.03, 1.0, 11)
    blunt = u(0.35, 0.85)
    shape = np.interp(levels, [0, 0.1, belly, 0.85, 1.0], [0.5 * blunt, blunt, 1.0, max(end * 1.5, 0.2), end])
    backward = scheme < 0.55 or body.chance(0.5)
    for k in range(10):
        t = 0.5 * (levels[k] + levels[k + 1])
        index = int(np.searchsorted(places, t)) - 1 if backward else int(np.argmin(np.abs(places - t)))
        owner = chain[max(index, 0)]
        body.flesh(
            "trunk",
            at(levels[k]),
            at(levels[k + 1]),
            (shape[k] * high, shape[k + 1] * high),
            owner,
            X,
            (wide / high, 1.0),
            0.5,
            flush=True,
        )
    _tail_fin(body, chain[-1], at(0.97))

    def high_at(t: float) -> float:
        return float(np.interp(t, levels, shape)) * high

    _fins(body, chain, places, at, high_at, wide / high)
    _face(body, chain[0], at, high * blunt, wide * blunt)


def _tail_fin(body: Figure, parent: int, start: Vector) -> None:
    u = body.uniform
    size, flat, owner = u(0.15, 0.4), body.chance(0.2), parent
    if body.chance(0.35):
        owner = body.joint("tail", start, parent)
    thin, sweep = 0.025, u(0.2, 1.2)
    for index, sign in enumerate((1, -1)):
        out = (X if flat else Y) * sign
        tip = start + size * unit(out * u(0.5, 0.9) - sweep * Z)
        joint = owner
        if flat and body.chance(0.3):
            joint = body.joint(f"fluke{index}", start + 0.3 * (tip - start), owner)
        body.flesh(
            "tail",
            start,
            tip,
            (thin, thin * 0.8),
            joint,
            Y if flat else X,
            (0.9, 0.35 * size / thin),
            square=1,
        )


def _fins(
    body: Figure,
    chain: list[int],
    places: np.ndarray,
    at: Callable[[float], Vector],
    high_at: Callable[[float], float],
    narrow: float,
) -> None:
    """Fins along the body: `high_at` gives its half height at a place, `narrow` its width over its height."""
    u = body.uniform
    thin = 0.022

    def owner_at(t: float) -> int:
        return chain[max(int(np.searchsorted(places, t)) - 1, 0)]

    if body.chance(0.85):  # pectoral fins
        t, size, drop, jointed = u(0.28, 0.45), u(0.12, 0.4), u(0.0, 0.9), body.chance(0.5)
        count = body.pick(1, 2)
        for sign, side in SIDES:
            root = at(t) + v(sign * 0.75 * narrow * high_at(t), -0.3 * high_at(t), 0)
            way = unit(v(sign, -drop, -0.6))
            line = root + np.linspace(0, 1, count + 1)[:, None] * size * way
            joints = body.chain(f"{side}_fin", line[:-1], owner_at(t)) if jointed else [owner_at(t)] * count
            for k, joint in enumerate(joints):
                body.flesh(
                    f"{side}_fin",
                    line[k],
                    line[k + 1],
                    (thin, 0.8 * thin),
                    joint,
                    Z,
                    (0.35 * size / thin, 1.0),
                    square=1,
                )
    for name, sign, chance in (("dorsal", 1, 0.8), ("anal", -1, 0.4)):
        if not body.chance(chance):
            continue
        t, lean, length = u(0.3, 0.7), u(0.2, 1.0), u(0.06, 0.22)
        size = high_at(0.5) * u(0.4, 1.1)
        parent = owner_at(t)
        root = at(t) + v(0, sign * 0.75 * high_at(t), 0)
        owner = body.joint(name, root, parent) if body.chance(0.12) else parent
        body.flesh(
            name,
            root,
            root + size * unit(v(0, sign, -lean)),
            (thin, thin * 0.7),
            owner,
            Z,
            (length / thin, 1.0),
            square=1,
        )


def _face(body: Figure, head: int, at: Callable[[float], Vector], high: float, wide: float) -> None:
    u = body.uniform
    size, t = high * u(0.15, 0.5), u(0.1, 0.25)
    for sign, side in SIDES:
        body.ball(
            f"{side}_eye",
            at(t) + v(sign * wide * 0.85, 0.25 * high, 0),
            (size * 0.6, size, size),
            head,
            worn=True,
        )
    if body.chance(0.3):
        place = at(u(0.12, 0.2)) - v(0, 0.45 * high, 0)
        jaw = body.joint("jaw", place, head) if body.chance(0.6) else head
        body.flesh(
            "jaw",
            place,
            at(-0.02) - v(0, 0.5 * high, 0),
            (0.3 * high, 0.2 * high),
            jaw,
            X,
            (1.6 * wide / high, 1.0),
            worn=True,
        )
    if body.chance(0.12):  # a sword
        body.flesh("sword", at(0.08), at(-u(0.15, 0.4)), (0.15 * high, 0.03 * high), head, X, worn=True)
