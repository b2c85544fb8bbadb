"""Procedural creatures with ground-truth rigs, generated from a seed: the built-in data set."""

from data.creatures.generate import (
    CREATURE_KINDS,
    KIND_GROUPS,
    LIFELIKE_KINDS,
    Creature,
    expanded_kinds,
    make_creature,
)

__all__ = [
    "CREATURE_KINDS",
    "KIND_GROUPS",
    "LIFELIKE_KINDS",
    "Creature",
    "expanded_kinds",
    "make_creature",
]
