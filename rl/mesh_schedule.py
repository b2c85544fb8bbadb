"""The order in which a training run visits its meshes: seeded epochs, the same after a resume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from trl import GRPOConfig


def mesh_schedule(meshes: Sequence[int], count: int, seed: int) -> list[int]:
    """The first `count` entries of endless epochs over `meshes`, each epoch in its own random order.

    A longer schedule starts with the shorter one, so a resumed run may be extended.
    """
    order: list[int] = []
    while len(order) < count:
        rng = np.random.default_rng([seed, len(order) // len(meshes)])
        order += [meshes[i] for i in rng.permutation(len(meshes))]
    return order[:count]


def schedule_length(args: GRPOConfig) -> int:
    """Number of groups that a run of `max_steps` steps samples."""
    passes = args.max_steps * args.gradient_accumulation_steps
    batches = math.ceil(passes / (args.steps_per_generation * args.num_iterations))
    return batches * (args.generation_batch_size // args.num_generations)
