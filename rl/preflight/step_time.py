"""Estimates the time of a step from a short measurement of each part on the recipe's policy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.sets.dataset import MeshSample
from policy.bundle import RigPolicy
from rewards.poses import pose_seed
from rewards.service import InlineRewardService
from rewards.worker import RolloutRig
from rl.engine.choose import make_sampler
from rl.engine.sampler import Sampler
from rl.given_skeleton import GivenSkeletons, tokens_of, true_skeletons
from rl.log_prob_engine import LogProbEngine, compute_dtype
from rl.mesh_bank import MeshBank
from rl.meshes import reward_meshes
from rl.preflight.finding import in_time
from rl.preflight.launch import StepBatch
from rl.preflight.memory_need import TYPICAL_LONGEST, TYPICAL_TOKENS
from rl.prompts import training_rows
from rl.recipe import Recipe, reward_settings
from rl.rollout import Rollouts, row_seeds, sample_rigs
from rl.scoring import read_rollout
from rl.timed_work import timed

# Tokens of all rows that are sampled first, to see how long whole completions would take.
_FIRST_TOKENS = 24
# Seconds that sampling whole completions may take; beyond them usual lengths are assumed.
_BUDGET = 45.0


@dataclass(frozen=True)
class PartTimes:
    """Measured seconds, each of one process and of one thread for the rewards of a CPU.

    Attributes:
        rollout: sampling one batch of `rows` completions.
        tokens, longest: mean and largest length of a completion.
        sampled: whether whole completions were sampled; otherwise lengths are assumed and times scaled.
        forward, update: log-probabilities of a micro-batch, without gradient, and with gradient and backward.
        optimiser: the optimiser's step.
        decode, score: one group, None if the decoder's device is not here.
    """

    rollout: float
    tokens: float
    longest: int
    sampled: bool
    forward: float
    update: float
    optimiser: float
    decode: float | None
    score: float | None


@dataclass(frozen=True)
class StepEstimate:
    """Seconds of a step by part, of an evaluation, of one during training, and how they were found."""

    rollout: float
    reference: float
    waiting: float
    update: float
    evaluation: float
    during: float
    times: PartTimes

    @property
    def step(self) -> float:
        """Seconds of a whole step."""
        return self.rollout + self.reference + self.waiting + self.update

    def text(self, recipe: Recipe, batch: StepBatch) -> str:
        """One line: the step, its parts, and the run."""
        steps = recipe.train["max_steps"]
        evaluations, every = 2 if recipe.eval.before_and_after else 0, recipe.eval.every
        during = 0 if every == 0 else 1 + -(-steps // every)
        lengths = "sampled" if self.times.sampled else "assumed"
        run = steps * self.step + evaluations * self.evaluation + during * self.during
        waiting = "" if self.times.decode is not None else ", without rewards, whose decoder cannot run here"
        return (
            f"about {in_time(self.step)} (estimate: rollout {in_time(self.rollout)} for {batch.rows} rows of "
            f"{self.times.tokens:.0f} tokens, {lengths}; reference {in_time(self.reference)}, waiting for "
            f"rewards {in_time(self.waiting)}, update {in_time(self.update)}{waiting}); {steps} steps"
            + (f" and {evaluations} evaluations of {in_time(self.evaluation)}" if evaluations else "")
            + (f" and {during} during training of {in_time(self.during)}" if during else "")
            + f": about {in_time(run)}"
        )


def estimate_step(
    recipe: Recipe,
    batch: StepBatch,
    times: PartTimes,
    cores: int,
    threads: int,
    local_processes: int,
    held_out: int,
) -> StepEstimate:
    """The parts of a step as the trainer runs them.

    Rewards are computed while the reference policy's log-probabilities are. On a CPU both share the cores:
    waiting takes what is then left of them. A decoder on a GPU takes its turns one after the other.
    """
    per_generation = -(-batch.rows // batch.micro_batch)
    reference = (bool(recipe.train["beta"]) + batch.stale) * per_generation * times.forward
    decode, score = times.decode or 0.0, times.score or 0.0
    waiting = reward_wait(recipe, batch, reference, decode, score, cores, threads * local_processes)

    def evaluation(meshes: int, samples: int) -> float:
        rows = meshes * samples * recipe.eval.best_of
        scoring = rows / batch.group * (decode + score) / max(1, min(recipe.workers.count, cores))
        return rows / batch.rows * times.rollout + scoring

    most = held_out if recipe.eval.every_meshes is None else min(held_out, recipe.eval.every_meshes)
    return StepEstimate(
        rollout=batch.generations * times.rollout,
        reference=batch.generations * reference,
        waiting=batch.generations * waiting,
        update=batch.passes * times.update + times.optimiser,
        evaluation=evaluation(held_out, recipe.eval.samples),
        during=evaluation(most, recipe.eval.every_samples),
        times=times,
    )


def reward_wait(
    recipe: Recipe, batch: StepBatch, meanwhile: float, decode: float, score: float, cores: int, busy: int
) -> float:
    """Seconds that the trainer waits for the rewards of a batch of rollouts.

    meanwhile: seconds that it works before it asks for them, on `busy` cores; decode, score: of one group.
    """
    workers, groups = recipe.workers, batch.groups
    if workers.backend == "inline":
        return groups / batch.processes * (decode + score)
    if workers.decoder_device != "cpu":
        return max(0.0, groups * decode + score - meanwhile)
    work = groups * (decode + score)
    at_once = max(1, min(workers.count, cores))
    shared = (meanwhile * min(busy, cores) + work) / cores
    return max(meanwhile, work / at_once, shared) - meanwhile


def measure_parts(
    recipe: Recipe, policy: RigPolicy, samples: Sequence[MeshSample], batch: StepBatch, threads: int
) -> PartTimes:
    """Sample, score and train on one batch of rows with the recipe's policy, which this changes.

    samples: training meshes. threads: of a training process. Nothing is written.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _Measurement(recipe, policy, samples, batch).times()
    finally:
        torch.set_num_threads(before)


class _Measurement:
    def __init__(
        self, recipe: Recipe, policy: RigPolicy, samples: Sequence[MeshSample], batch: StepBatch
    ) -> None:
        self.recipe, self.policy, self.batch, self.model = recipe, policy, batch, policy.model
        meshes = max(1, min(batch.rows // batch.group, len(samples)))
        self.bank = MeshBank(samples[:meshes], policy.vocabulary, recipe.data.class_name)
        self.given: GivenSkeletons = {}
        if recipe.data.skeleton == "given":
            self.given = true_skeletons(self.bank.samples, range(meshes), policy.vocabulary)
        # As in training, each group's rows are neighbours.
        self.mesh_of_row = torch.arange(batch.rows) * meshes // batch.rows
        self.embeds = self.bank.embeds(torch.arange(meshes), self.model)
        self.device = self.model.device
        if not recipe.policy.train_mesh_encoder:
            self.model.mesh_encoder.requires_grad_(False)
            self.model.output_proj.requires_grad_(False)

    def times(self) -> PartTimes:
        rollouts, seconds, sampled = self._rollout()
        lengths = rollouts.lengths.double()
        limit = self.recipe.train["max_completion_length"]
        tokens = float(lengths.mean()) if sampled else float(min(TYPICAL_TOKENS, limit))
        longest = int(lengths.max()) if sampled else min(TYPICAL_LONGEST, limit)
        # Passes cost by token, so those of shortened completions are scaled to whole ones.
        prefix = self.embeds.shape[1] + 2
        per_row = prefix / self.batch.group
        scale = 1.0 if sampled else (per_row + tokens) / (per_row + float(lengths.mean()))
        forward, update = self._passes(rollouts)
        decode, score = self._rewards(rollouts if sampled else None, int(tokens))
        return PartTimes(
            seconds,
            tokens,
            longest,
            sampled,
            forward * scale,
            update * scale,
            self._optimiser(),
            decode,
            score,
        )

    def _rollout(self) -> tuple[Rollouts, float, bool]:
        """Completions, the seconds that a batch of whole ones takes, and whether these are whole."""
        sampler = make_sampler(self.model, self.recipe)
        limit = self.recipe.train["max_completion_length"]
        first = min(_FIRST_TOKENS, limit)
        self._sample(sampler, first)  # kernels and graphs are compiled
        short, seconds = timed(lambda: self._sample(sampler, first), self.device)
        longest = min(TYPICAL_LONGEST, limit)
        expected = seconds * longest / first
        if expected > _BUDGET:
            return short, expected, False

        def whole() -> Rollouts:
            refresh: Any = getattr(sampler, "refresh", None)
            if refresh is not None:  # as after every optimiser step
                refresh()
            return self._sample(sampler, limit)

        rollouts, seconds = timed(whole, self.device)
        return rollouts, seconds, True

    def _sample(self, sampler: Sampler, tokens: int) -> Rollouts:
        return sample_rigs(
            sampler,
            self.embeds,
            self.mesh_of_row,
            torch.full((self.batch.rows,), self.bank.class_id),
            max_new_tokens=tokens,
            seeds=row_seeds(self.batch.rows, self.recipe.train["seed"], 0, 0, 0),
            temperature=self.recipe.train["temperature"],
            batch_size=self.recipe.rollout.batch_size,
            skeletons=tokens_of(self.given, range(len(self.bank))),
        )

    def _passes(self, rollouts: Rollouts) -> tuple[float, float]:
        """Seconds of the forward pass of a micro-batch, and of its forward and backward pass."""
        self.model.train()
        train = self.recipe.train
        precision = "bf16" if train.get("bf16") else "fp16" if train.get("fp16") else "no"
        dtype = compute_dtype(precision, self.model.dtype)
        rows = slice(0, self.batch.micro_batch)
        meshes = self.mesh_of_row[rows]
        completions = rollouts.completion_ids[rows].to(self.device)
        lengths = rollouts.lengths[rows].to(self.device)
        used, index = torch.unique(meshes, return_inverse=True)
        class_ids = torch.full((len(meshes),), self.bank.class_id, device=self.device)
        skeletons = tokens_of(self.given, meshes.tolist())
        ids, prompt_lengths = training_rows(class_ids, skeletons, completions, self.policy.vocabulary)
        embeds = self.embeds[used.to(self.embeds.device)]
        engine = LogProbEngine(self.recipe.log_probs.engine, self.device, dtype, self.model.config)

        def run(packed: bool, entropy: bool = True) -> Tensor:
            autocast = nullcontext() if precision == "no" else torch.autocast(self.device.type, dtype)
            with autocast:
                result: Tensor = self.model(
                    input_ids=ids,
                    completion_ids=completions,
                    completion_lengths=lengths,
                    prompt_lengths=prompt_lengths,
                    packed=packed,
                    grammar_mode=self.recipe.policy.grammar,
                    temperature=train["temperature"],
                    entropy=entropy,
                    mesh_embeds=embeds,
                    mesh_index=index.to(self.device),
                ).log_probs
            return result

        packed = engine.packed(lambda packed: run(packed, entropy=False))

        def update() -> None:
            run(packed).sum().backward()

        @torch.no_grad()
        def forward() -> None:
            run(packed, entropy=False)

        if train.get("gradient_checkpointing"):
            self.model.gradient_checkpointing_enable()
        forward()
        return timed(forward, self.device)[1], timed(update, self.device)[1]

    def _optimiser(self) -> float:
        """Seconds of AdamW's step on the gradients of the last pass; the second, whose states exist."""
        trained = [p for p in self.model.parameters() if p.grad is not None]
        if self.recipe.policy.lora is not None:
            return 0.0
        optimiser = torch.optim.AdamW(trained, lr=0.0)
        optimiser.step()
        return timed(optimiser.step, self.device)[1]

    def _rewards(self, rollouts: Rollouts | None, tokens: int) -> tuple[float | None, float | None]:
        """Seconds to decode and to score one group; without rollouts, of rigs of `tokens` tokens."""
        workers = self.recipe.workers
        if workers.decoder_device.startswith("cuda") and not torch.cuda.is_available():
            return None, None
        service = InlineRewardService(
            self.policy.skin_vae,
            reward_settings(self.recipe),
            workers.decoder_device,
            dtype=workers.decoder_dtype,
        )
        mesh = self.bank.samples[0]
        service.prepare_meshes(reward_meshes([mesh]))
        rigs: list[RolloutRig | None]
        if rollouts is None:
            rigs = [self._some_rig(tokens)] * self.batch.group
        else:
            words, class_id = self.policy.vocabulary, self.bank.class_id
            ids = rollouts.rows()[0][: self.batch.group]
            rigs = [read_rollout(row, class_id, words, self.given.get(0)) for row in ids]
        seed = pose_seed(0, mesh.name, 0)
        service.submit(0, rigs, seed).result()  # the mesh's condition latents are computed
        scores = service.submit(0, rigs, seed).result()
        return scores.decode_seconds, scores.score_seconds

    def _some_rig(self, tokens: int) -> RolloutRig:
        """A chain of joints on the surface, with as many bones as completions of `tokens` tokens have."""
        per_skin = self.policy.vocabulary.tokens_per_skin
        bones = max(1, (tokens - 2) // (3 + per_skin))
        points = np.resize(self.bank.samples[0].points, (bones, 3))
        return RolloutRig(points, np.arange(bones) - 1, np.zeros((bones, per_skin), dtype=np.int64))
