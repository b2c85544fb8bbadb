"""Samples the rigs of an evaluation: random, greedy or by beam search, as the recipe's `eval` says."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from tqdm import tqdm

from policy.bundle import RigPolicy
from policy.tokens.grammar import Grammar
from rl.beam_search import beam_search
from rl.engine.choose import make_sampler
from rl.engine.sampler import Sampler
from rl.given_skeleton import GivenSkeletons, tokens_of
from rl.mesh_bank import MeshBank
from rl.recipe import Recipe
from rl.rollout import sample_for_meshes


def rigs_per_mesh(recipe: Recipe) -> int:
    """Rigs evaluated per mesh: greedy decoding and beam search are deterministic and yield one."""
    return recipe.eval.samples if recipe.eval.decoding == "sampled" else 1


def decode_rows(
    policy: RigPolicy,
    bank: MeshBank,
    rows: Sequence[int],
    seeds: Sequence[int],
    recipe: Recipe,
    name: str,
    given: GivenSkeletons,
    sampler: Sampler | None = None,
) -> list[list[int]]:
    """Token ids of one rollout per entry of `rows` (mesh indices), as `recipe.eval` specifies.

    `seeds`: one per row; sampling alone uses them. `given` as in the rollout. `sampler`: an engine that has
    the policy's weights; without one, it is made.
    """
    settings = recipe.eval
    beams = settings.beams if settings.decoding == "beam" else 1
    size = max(1, settings.batch_size // beams)
    temperature = settings.temperature if settings.decoding == "sampled" else 0.0
    if settings.decoding == "beam":
        sampler = None
    elif sampler is None:
        sampler = make_sampler(policy.model, recipe)
    ids: list[list[int]] = []
    for start in tqdm(range(0, len(rows), size), desc=f"evaluate {name}: sample", file=sys.stderr):
        part = slice(start, start + size)
        if sampler is None:
            rollouts = beam_search(
                policy.model,
                bank.embeds(torch.tensor(rows[part]), policy.model),
                torch.full((len(rows[part]),), bank.class_id),
                Grammar(bank.vocabulary, recipe.policy.grammar),
                max_new_tokens=recipe.train["max_completion_length"],
                beams=beams,
                length_penalty=settings.length_penalty,
                skeletons=tokens_of(given, rows[part]),
                names=bank.names(rows[part]),
            )
        else:
            rollouts = sample_for_meshes(
                sampler, policy.model, bank, rows[part], recipe, seeds[part], temperature, size, given
            )
        ids += rollouts.rows()[0]
    return ids
