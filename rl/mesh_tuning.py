"""Tunes a copy of the policy to one mesh: imitates the best rigs found so far and samples more, step by step.

A step maximises the mean log-probability of the tokens of the best distinct rigs found so far, in one AdamW
update of the language model, and samples with the new weights: the cross-entropy method (Rubinstein 1999)
with the policy as its distribution. The loop is this project's; docs/rigging.md compares it with GRPO steps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from policy.bundle import RigPolicy
from rewards.service import RewardService
from rl.engine.choose import make_sampler
from rl.given_skeleton import GivenSkeletons
from rl.log_prob_engine import LogProbEngine
from rl.mesh_bank import MeshBank
from rl.prompts import training_rows
from rl.recipe import Recipe
from rl.rollout import row_seeds, sample_for_meshes
from rl.scoring import SampledRollout, read_rollout, submit_scores

_BETAS = (0.9, 0.95)
_LARGEST_NORM = 1.0  # of the gradient, before AdamW


@dataclass(frozen=True)
class TuningGain:
    """What tuning to one mesh brought: the best total reward with it and without, of `rigs` rigs each."""

    rigs: int
    tuned: float
    untuned: float

    def __str__(self) -> str:
        return (
            f"tuning to the mesh: total reward {self.tuned:.3f} with, {self.untuned:.3f} without, the best "
            f"of {self.rigs} rigs each ({self.tuned - self.untuned:+.3f})"
        )


class MeshTuner:
    """Tunes a copy of a policy's weights to meshes of a bank, one at a time, each time from the same start.

    service: has prepared the bank's meshes.

    Raises:
        RecipeError: see `make_sampler` and `LogProbEngine`.
    """

    def __init__(self, policy: RigPolicy, bank: MeshBank, service: RewardService, recipe: Recipe) -> None:
        self._bank, self._service, self._recipe = bank, service, recipe
        self._model = deepcopy(policy.model).eval().requires_grad_(False)
        self._language = self._model.transformer
        self._start = deepcopy(self._language.state_dict())
        self._sampler = make_sampler(self._model, recipe)
        self._log_probs = LogProbEngine(
            recipe.log_probs.engine, self._model.device, self._model.dtype, self._model.config
        )

    def tune(
        self,
        first: Sequence[SampledRollout],
        steps: int,
        temperature: float,
        batch_size: int,
        seed: tuple[int, ...],
        given: GivenSkeletons | None = None,
    ) -> list[SampledRollout]:
        """Tune to the mesh of the rollouts `first`, then forget what was learnt.

        Args:
            first: rollouts of one mesh from the loaded policy.
            steps: of tuning; each samples as many rollouts as there are in `first`.
            temperature: of sampling; above 0.
            batch_size: rollouts sampled at once.
            seed: key of the new rollouts' seeds; they are scored in the poses of the first ones.
            given: skeletons by bank index.

        Returns:
            `first` and the new rollouts, in the order of sampling.
        """
        found, given = list(first), given or {}
        parameters = list(self._language.requires_grad_(True).parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=self._recipe.tuning.learning_rate, betas=_BETAS, weight_decay=0.0
        )
        try:
            for step in tqdm(range(1, steps + 1), desc="tune to the mesh", file=sys.stderr, leave=False):
                best = self._best(found)
                if best:  # otherwise sample again: no rig was valid yet
                    optimizer.zero_grad()
                    with torch.enable_grad():
                        self._loss(best, temperature, given).backward()
                    clip_grad_norm_(parameters, _LARGEST_NORM)
                    optimizer.step()
                    self._sampler.refresh()
                seeds = row_seeds(len(first), *seed, step)
                found += self._sample(first[0], seeds, temperature, batch_size, given)
        finally:
            self._language.load_state_dict(self._start)
            self._language.requires_grad_(False)
            self._sampler.refresh()
        return found

    def _best(self, found: Sequence[SampledRollout]) -> list[SampledRollout]:
        """The valid rollouts of the highest total rewards, each sequence of tokens once."""
        totals: dict[tuple[int, ...], tuple[float, SampledRollout]] = {}
        for rollout in found:
            total = rollout.score.rank(self._recipe.rewards)
            if total > -math.inf:
                totals.setdefault(tuple(rollout.tokens), (total, rollout))
        ranked = sorted(totals.values(), key=lambda pair: -pair[0])
        return [rollout for _, rollout in ranked[: self._recipe.tuning.imitated]]

    def _loss(self, rollouts: Sequence[SampledRollout], temperature: float, given: GivenSkeletons) -> Tensor:
        """Mean negative log-probability of the rollouts' tokens under the sampling distribution, nats."""
        vocabulary, device = self._bank.vocabulary, self._model.device
        mesh = rollouts[0].mesh
        lengths = torch.tensor([len(rollout.tokens) for rollout in rollouts], device=device)
        completions = torch.full((len(rollouts), int(lengths.max())), vocabulary.pad, device=device)
        for row, rollout in enumerate(rollouts):
            completions[row, : len(rollout.tokens)] = torch.tensor(list(rollout.tokens), device=device)
        class_ids = torch.tensor([rollout.class_id for rollout in rollouts], device=device)
        skeleton = given[mesh].tokens if mesh in given else ()
        ids, prompt_lengths = training_rows(class_ids, [skeleton] * len(rollouts), completions, vocabulary)
        real = torch.arange(completions.shape[1], device=device) < lengths[:, None]

        def log_probs(packed: bool) -> Tensor:
            output = self._model(
                input_ids=ids,
                completion_ids=completions,
                completion_lengths=lengths,
                prompt_lengths=prompt_lengths,
                packed=packed,
                grammar_mode=self._recipe.policy.grammar,
                temperature=temperature,
                entropy=False,
                mesh_embeds=self._bank.embeds(torch.tensor([mesh]), self._model),
                mesh_index=torch.zeros(len(rollouts), dtype=torch.long, device=device),
            )
            chosen: Tensor = output.log_probs[real]
            return chosen

        return -log_probs(self._log_probs.packed(log_probs)).mean()

    def _sample(
        self,
        like: SampledRollout,
        seeds: Sequence[int],
        temperature: float,
        batch_size: int,
        given: GivenSkeletons,
    ) -> list[SampledRollout]:
        mesh, class_id = like.mesh, like.class_id
        rows = [mesh] * len(seeds)
        tokens, _ = sample_for_meshes(
            self._sampler, self._model, self._bank, rows, self._recipe, seeds, temperature, batch_size, given
        ).rows()
        rigs = [read_rollout(ids, class_id, self._bank.vocabulary, given.get(mesh)) for ids in tokens]
        scores = submit_scores(self._service, rows, rigs, lambda _: like.pose_seed)
        return [
            SampledRollout(mesh, class_id, ids, seed, like.pose_seed, rig, score)
            for ids, seed, rig, score in zip(tokens, seeds, rigs, scores, strict=True)
        ]
