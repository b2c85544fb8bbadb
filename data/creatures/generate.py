"""The table of creature kinds (add one here), and `make_creature`: mesh and rig from a seed and a kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.creatures.bipeds import biped, humanoid
from data.creatures.body import Body
from data.creatures.crawlers import centipede, fish, insect, snake
from data.creatures.fliers import winged
from data.creatures.lifelike.blob import blob
from data.creatures.lifelike.character import character
from data.creatures.lifelike.figure import Figure
from data.creatures.lifelike.mech import mech
from data.creatures.lifelike.pack_bird import pack_bird
from data.creatures.lifelike.pack_fish import pack_fish
from data.creatures.lifelike.pack_quadruped import pack_quadruped
from data.creatures.lifelike.pack_spider import pack_spider
from data.creatures.many_limbed import hydra, many_limbed, tree
from data.creatures.quadrupeds import dragon, quadruped
from data.creatures.swept_surfaces import tessellate
from data.mesh import Mesh, normalise
from data.rig import Rig, depth_first

# Kind: (builder, relative frequency). Append new kinds at the end: a kind's position is part of its seed.
_KINDS: dict[str, tuple[Callable[[Body], None], float]] = {
    "biped": (biped, 0.17),
    "quadruped": (quadruped, 0.16),
    "snake": (snake, 0.06),
    "winged": (winged, 0.09),
    "many_limbed": (many_limbed, 0.10),
    "humanoid": (humanoid, 0.09),
    "dragon": (dragon, 0.06),
    "fish": (fish, 0.07),
    "insect": (insect, 0.07),
    "centipede": (centipede, 0.04),
    "hydra": (hydra, 0.05),
    "tree": (tree, 0.04),
}
CREATURE_KINDS: tuple[str, ...] = tuple(_KINDS)

# Kinds that a seed never chooses by itself. Append new ones at the end: a kind's position, counted from 13
# on, is part of its seed.
_LIFELIKE: dict[str, Callable[[Figure], None]] = {
    "character": character,
    "blob": blob,
    "pack_quadruped": pack_quadruped,
    "pack_bird": pack_bird,
    "pack_fish": pack_fish,
    "pack_spider": pack_spider,
    "mech": mech,
}
LIFELIKE_KINDS: tuple[str, ...] = tuple(_LIFELIKE)
_ALL_KINDS = (*CREATURE_KINDS, *LIFELIKE_KINDS)
# Names that stand for several kinds in a recipe, each as often as it is listed: about as often as people rig
# such things.
KIND_GROUPS: dict[str, tuple[str, ...]] = {
    "lifelike": (
        "character",
        "pack_quadruped",
        "character",
        "blob",
        "character",
        "mech",
        "character",
        "pack_fish",
        "pack_quadruped",
        "character",
        "pack_bird",
        "character",
        "blob",
        "pack_spider",
    ),
}
_CUMULATIVE = np.cumsum([share for _, share in _KINDS.values()])


@dataclass(frozen=True)
class Creature:
    """A procedural creature: its mesh (mesh frame), its rig (bind pose, depth-first order) and its kind."""

    mesh: Mesh
    rig: Rig
    kind: str


def expanded_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """The kinds that a recipe lists, with every group of `KIND_GROUPS` replaced by its kinds.

    Raises ValueError for an unknown name.
    """
    kinds: list[str] = []
    for name in names:
        if name not in _ALL_KINDS and name not in KIND_GROUPS:
            known = ", ".join((*_ALL_KINDS, *KIND_GROUPS))
            raise ValueError(f"unknown creature kind '{name}'; choose from {known}")
        kinds += KIND_GROUPS.get(name, (name,))
    return tuple(kinds)


def make_creature(seed: int, kind: str | None = None) -> Creature:
    """Make a creature; the same seed and kind always give the same one.

    `kind` is one of CREATURE_KINDS or LIFELIKE_KINDS. With None the seed chooses one of the former (two- and
    four-legged ones more often) and the creature is the one that this seed and kind give. y is up, the
    creature faces +z. The mesh (600 to 3000 vertices, a few many-legged ones up to 4500; mesh frame) consists
    of components that overlap, touch or float. About two thirds of all creatures lack the faces inside other
    components; capes, skirts and the wings of insects and bats are open patches. The rig has 5 to 60 joints
    on the spines of the swept surfaces (a long insect wing has one in its middle) and at most 4 non-zero
    weights per vertex, which sum to 1. The number of joints in a chain follows from its visible proportions.

    LIFELIKE_KINDS are built and rigged as in game packs (see `data.creatures.lifelike`) and never chosen by a
    seed: 400 to 9000 faces, 3 to 64 joints, the root often on the ground, outside the mesh.
    Raises ValueError for an unknown kind.
    """
    if kind is None:
        drawn = np.random.default_rng([seed, 0]).random() * _CUMULATIVE[-1]
        kind = CREATURE_KINDS[int(np.searchsorted(_CUMULATIVE, drawn, side="right"))]
    if kind not in _ALL_KINDS:
        raise ValueError(f"unknown creature kind {kind!r}; choose one of {', '.join(_ALL_KINDS)}")
    if kind in _LIFELIKE:
        figure = Figure(np.random.default_rng([seed, 13 + LIFELIKE_KINDS.index(kind)]))
        _LIFELIKE[kind](figure)
        return Creature(*figure.mesh_and_rig(f"{kind}_{seed}"), kind)
    rng = np.random.default_rng([seed, 1 + CREATURE_KINDS.index(kind)])
    body = Body(rng)
    _KINDS[kind][0](body)
    vertices, faces, weights = tessellate(
        body.sweeps,
        body.patches,
        len(body.joints),
        target_vertices=int(rng.integers(600, 1500)),
        min_vertices=600,
        max_vertices=3000,
        cull_interior=body.style.cull_interior,
    )
    mesh = normalise(vertices, faces, f"{kind}_{seed}")
    joints = ((np.array(body.joints) - mesh.centre) * mesh.scale).astype(np.float32)
    rig = Rig(joints, np.array(body.parents), weights.astype(np.float32), tuple(body.names))
    return Creature(mesh, depth_first(rig), kind)
