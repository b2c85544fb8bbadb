"""GRPO on rigs: TRL's trainer with two seams, the rollout and the log-probabilities."""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from trl import GRPOConfig, GRPOTrainer

from data.command_line import RunFailedError
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar
from policy.tokens.skeleton_tokenizer import RigTokenError, detokenize, split_rig
from policy.tokens.text_tokenizer import parse_mesh_prompt
from policy.tokens.vocabulary import Vocabulary
from rewards.poses import pose_seed
from rewards.service import PendingGroupScore, RewardService
from rewards.worker import GroupScore, RolloutRig, RolloutScore
from rl.meshes import MeshBank
from rl.recipe import Recipe
from rl.rollout import row_seeds, sample_rigs


def read_rollout(completion_ids: Sequence[int], class_id: int, vocabulary: Vocabulary) -> RolloutRig | None:
    """The rig a completion says, or None if it is incomplete or says none (the policy's fault)."""
    try:
        skeleton, codes = split_rig([vocabulary.bos, class_id, *completion_ids], vocabulary)
        decoded = detokenize(skeleton, vocabulary)
    except RigTokenError:
        return None
    return RolloutRig(decoded.joints, decoded.parents, codes)


class PendingScore:
    """The score of one row, waited for when it is asked for: rewards overlap the log-prob passes."""

    def __init__(self, pending: PendingGroupScore, place: int) -> None:
        self._pending, self._place = pending, place

    def group(self) -> GroupScore:
        """Scores of all rows of this mesh in this batch."""
        return self._pending.result()

    def score(self) -> RolloutScore:
        """This row's score."""
        return self.group().scores[self._place]

    def rewards(self, names: Sequence[str]) -> dict[str, float] | None:
        """This row's rewards: all 0 for a rollout that is no rig, None if it has no score."""
        score = self.score()
        if score.rewards is None:
            return None
        return {name: score.rewards[name] if score.valid else 0.0 for name in names}


def submit_scores(
    service: RewardService,
    meshes: Sequence[int],
    rigs: Sequence[RolloutRig | None],
    seed_of: Callable[[int], int],
) -> list[PendingScore]:
    """Send rigs off mesh by mesh; row i of the result is the score of rigs[i] on mesh meshes[i].

    `seed_of(mesh)` is the pose seed, shared by all rollouts of the mesh.
    """
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, mesh in enumerate(meshes):
        rows_of[mesh].append(row)
    scores: dict[int, PendingScore] = {}
    for mesh, rows in rows_of.items():
        pending = service.submit(mesh, [rigs[row] for row in rows], seed_of(mesh))
        scores.update({row: PendingScore(pending, place) for place, row in enumerate(rows)})
    return [scores[row] for row in range(len(rigs))]


class RigRollout:
    """TRL's `rollout_func`: samples a rig per prompt and sends it off to be scored."""

    def __init__(self, bank: MeshBank, service: RewardService, recipe: Recipe) -> None:
        self.bank, self.service, self.recipe = bank, service, recipe
        self.grammar = Grammar(bank.vocabulary, recipe.policy.grammar)
        self._last_step, self._calls_in_step = -1, 0

    def __call__(self, prompts: list[str], trainer: RigGRPOTrainer) -> dict[str, Any]:
        """Prompt ids, completion ids, log-probabilities, and per row the `rig_score` to come."""
        started = time.perf_counter()
        vocabulary = self.bank.vocabulary
        parsed = [parse_mesh_prompt(prompt, vocabulary) for prompt in prompts]
        meshes = [index for index, _ in parsed]
        model = trainer.accelerator.unwrap_model(trainer.model)
        index = torch.tensor(meshes)
        used, mesh_index = torch.unique(index, return_inverse=True)
        rollouts = sample_rigs(
            model,
            trainer.mesh_embeds(model, used),
            mesh_index,
            torch.tensor([class_id for _, class_id in parsed]),
            self.grammar,
            max_new_tokens=trainer.args.max_completion_length,
            seeds=row_seeds(len(prompts), *self._seed_key(trainer)),
            temperature=trainer.args.temperature,
            batch_size=self.recipe.rollout_batch_size,
        )
        ids, log_probs = rollouts.rows()
        seconds = time.perf_counter() - started
        rigs = [
            read_rollout(row, class_id, vocabulary) for row, (_, class_id) in zip(ids, parsed, strict=True)
        ]
        step = trainer.state.global_step
        submitted = time.perf_counter()
        scores = submit_scores(
            self.service,
            meshes,
            rigs,
            lambda mesh: pose_seed(trainer.args.seed, self.bank.samples[mesh].name, step),
        )
        tokens = sum(len(row) for row in ids)
        joints = [None if rig is None else len(rig.joints) for rig in rigs]
        return {
            "prompt_ids": [[vocabulary.size + mesh, vocabulary.bos, class_id] for mesh, class_id in parsed],
            "completion_ids": ids,
            "logprobs": log_probs,
            "rig_score": scores,
            "joints": joints,
            "rollout_seconds": seconds,
            "submit_seconds": time.perf_counter() - submitted,  # scoring itself with the inline backend
            "rollout_tokens": tokens,
        }

    def _seed_key(self, trainer: RigGRPOTrainer) -> tuple[int, ...]:
        """(run seed, step, rollouts before in this step, rank): a resumed run samples as an unbroken one."""
        step = trainer.state.global_step
        self._calls_in_step = self._calls_in_step + 1 if step == self._last_step else 0
        self._last_step = step
        return trainer.args.seed, step, self._calls_in_step, trainer.accelerator.process_index


class RigRewards:
    """The reward functions TRL sees: each only collects its number from the scores under way."""

    def __init__(self, names: Sequence[str], max_failed_batches: int) -> None:
        self.names, self.max_failed_batches = tuple(names), max_failed_batches
        self._failed_batches = 0

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """One function per reward, in the order of the recipe's weights and under its name."""
        return [self._function(name, first=i == 0) for i, name in enumerate(self.names)]

    def _function(self, name: str, first: bool) -> Callable[..., list[float | None]]:
        def reward(
            rig_score: list[PendingScore],
            joints: list[int | None],
            rollout_seconds: list[float],
            submit_seconds: list[float],
            rollout_tokens: list[int],
            log_metric: Callable[[str, float], None],
            **columns: Any,
        ) -> list[float | None]:
            if first:
                log_metric("seconds/rollout", rollout_seconds[0])
                log_metric("tokens_per_second", rollout_tokens[0] / rollout_seconds[0])
                self._log(rig_score, joints, submit_seconds[0], log_metric)
            rewards = [row.rewards([name]) for row in rig_score]
            return [None if row is None else row[name] for row in rewards]

        reward.__name__ = name
        return reward

    def _log(
        self,
        rows: list[PendingScore],
        joints: list[int | None],
        submit_seconds: float,
        log_metric: Callable[[str, float], None],
    ) -> None:
        """Wait for the batch and log what is not a reward: validity, joints, diagnostics, times, failures."""
        started = time.perf_counter()
        groups = list({id(row.group()): row.group() for row in rows}.values())
        log_metric("seconds/wait_for_rewards", submit_seconds + time.perf_counter() - started)
        log_metric("seconds/decode", sum(group.decode_seconds for group in groups))
        log_metric("seconds/score", sum(group.score_seconds for group in groups))
        scores = [row.score() for row in rows]
        unscored = sum(score.rewards is None for score in scores)
        log_metric("rig/unscored", float(unscored))
        if unscored:
            reason = next((group.failure for group in groups if group.failure), "their mesh cannot be scored")
            tqdm.write(f"{unscored} rigs are left out without a score: {reason}", file=sys.stderr)
        self._count_failures(
            groups, [s for s, count in zip(scores, joints, strict=True) if count is not None]
        )
        # Validity is the tokens' affair: a rig that no worker could score is still a rig.
        valid = [
            count is not None and (score.valid or score.rewards is None)
            for score, count in zip(scores, joints, strict=True)
        ]
        log_metric("rig/valid", sum(valid) / len(valid))
        counts = [count for count in joints if count is not None]
        if counts:
            log_metric("rig/joints", sum(counts) / len(counts))
        diagnostics = [score.diagnostics for score in scores if score.valid]
        for name in diagnostics[0] if diagnostics else ():
            log_metric(f"rig/{name}", sum(item[name] for item in diagnostics) / len(diagnostics))

    def _count_failures(self, groups: Sequence[GroupScore], asked: Sequence[RolloutScore]) -> None:
        """`asked`: scores of the rows that are rigs; the others need no worker to be scored 0."""
        if not asked:
            return
        failed = all(score.rewards is None for score in asked)
        self._failed_batches = self._failed_batches + 1 if failed else 0
        if self._failed_batches >= self.max_failed_batches:
            reason = next((group.failure for group in groups if group.failure), "the meshes cannot be scored")
            raise RunFailedError(
                f"{self._failed_batches} batches in a row could not be scored ({reason}); "
                "look at the Ray logs, then start again: the last checkpoint is kept"
            )


def mesh_schedule(meshes: Sequence[int], count: int, seed: int) -> list[int]:
    """The first `count` meshes of an endless course of passes over all of them, each in an order of its own.

    A longer schedule begins with a shorter one, so a run may be lengthened when it goes on.
    """
    order: list[int] = []
    while len(order) < count:
        rng = np.random.default_rng([seed, len(order) // len(meshes)])
        order += [meshes[i] for i in rng.permutation(len(meshes))]
    return order[:count]


def schedule_length(args: GRPOConfig) -> int:
    """How many groups of rollouts a run of `max_steps` steps samples."""
    passes = args.max_steps * args.gradient_accumulation_steps
    batches = math.ceil(passes / (args.steps_per_generation * args.num_iterations))
    return batches * (args.generation_batch_size // args.num_generations)


class RigGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts and log-probabilities know meshes and the rig grammar.

    Only two things differ from TRL's: `rollout_func`, and `_get_per_token_logps_and_entropies`, which
    turns the mesh handle in the prompt into conditioning and uses the sampling distribution.
    """

    _tag_names = ["trl", "grpo", "tokenrig"]  # noqa: RUF012 (as TRL declares it)

    def __init__(
        self,
        model: TokenRigForCausalLM,
        bank: MeshBank,
        train_meshes: Sequence[int],
        service: RewardService,
        recipe: Recipe,
        args: GRPOConfig,
        processing_class: Any,
        **options: Any,
    ) -> None:
        self.bank, self.recipe = bank, recipe
        # The data set is the whole run's course of meshes. TRL's own shuffling of passes starts anew after a
        # resume, and has no batch at all for fewer meshes than a batch has groups.
        schedule = mesh_schedule(train_meshes, schedule_length(args), args.data_seed or args.seed)
        prompts = Dataset.from_dict({"prompt": [bank.prompt(mesh) for mesh in schedule]})
        super().__init__(
            model=model,
            reward_funcs=RigRewards(
                list(recipe.rewards.weights), recipe.workers.max_failed_batches
            ).functions(),
            args=args,
            train_dataset=prompts,
            processing_class=processing_class,
            rollout_func=RigRollout(bank, service, recipe),
            **options,
        )

    def mesh_embeds(self, model: TokenRigForCausalLM, meshes: Tensor) -> Tensor:
        """Conditioning (B, T, hidden) of meshes (B,), no gradient; cached while the encoder is frozen."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if self.recipe.policy.train_mesh_encoder:
            with torch.no_grad():
                return base.encode_mesh(*self.bank.clouds(meshes, base.device))
        return self.bank.embeds(meshes, base)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **unused: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, C) log-probabilities and entropies of the completions under the grammar and temperature."""
        meshes = self.bank.index_of(input_ids)
        parts = []
        for rows in torch.arange(len(input_ids)).split(batch_size or len(input_ids)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            with self.accelerator.autocast():
                parts.append(
                    model(
                        input_ids=input_ids[part, 1:],
                        completion_ids=input_ids[part, -logits_to_keep:],
                        grammar_mode=self.recipe.policy.grammar,
                        temperature=self.temperature,
                        entropy=compute_entropy,
                        **self._conditioning(model, meshes[part]),
                    )
                )
        log_probs = torch.cat([part.log_probs for part in parts])
        entropies = torch.cat([part.entropies for part in parts]) if compute_entropy else None
        return log_probs, entropies, None

    def _conditioning(self, model: Any, meshes: Tensor) -> dict[str, Tensor]:
        """Embeddings of the frozen encoder, or the clouds for the forward pass to encode with gradient."""
        used, mesh_index = torch.unique(meshes, return_inverse=True)
        if self.recipe.policy.train_mesh_encoder:
            points, normals = self.bank.clouds(used, self.accelerator.device)
            return {"points": points, "normals": normals, "mesh_index": mesh_index}
        base = self.accelerator.unwrap_model(model)
        return {"mesh_embeds": self.mesh_embeds(base, used), "mesh_index": mesh_index}
