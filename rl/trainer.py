"""Subclasses TRL's GRPOTrainer: replaces sampling and log-probabilities; advantages and loss stay TRL's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from data.command_line import RunFailedError
from policy.layers.finite import non_finite_names, not_finite_message, refuse_to_save, training_state
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.text_tokenizer import parse_mesh_prompt
from rewards.poses import pose_seed
from rewards.service import RewardService
from rl.bad_steps import describe_rows
from rl.checkpoints import writing
from rl.engine.choose import make_sampler
from rl.engine.sampler import Sampler
from rl.given_skeleton import GivenSkeletons, tokens_of, true_skeletons
from rl.log_prob_engine import LogProbEngine, compute_dtype
from rl.mesh_bank import MeshBank
from rl.mesh_schedule import mesh_schedule, schedule_length
from rl.phase_credit import Normalisation, phase_advantages
from rl.phases import CHECKPOINT, LOG_PROBS, ROLLOUT, phase
from rl.prompts import training_rows
from rl.recipe import Recipe
from rl.reporting import mean_metrics
from rl.reward_functions import RigRewards, RolloutBatch, ScoredRollout
from rl.reward_record import RewardRecord, mark_reward_metrics
from rl.rollout import row_seeds, sample_rigs
from rl.sampling_difference import LARGEST, sampling_difference
from rl.scoring import SampledRollout, read_rollout, submit_scores
from rl.sharding import shard, whole_weights
from rl.step_guard import StepGuard
from rl.update_phase import UpdatePhase
from rl.whole_groups import regroup


class RigRollout:
    """TRL's `rollout_func`: samples one rig per prompt, or its skin if the skeleton is given, and submits it
    for scoring."""

    def __init__(self, bank: MeshBank, service: RewardService, recipe: Recipe) -> None:
        self.bank, self.service, self.recipe = bank, service, recipe
        self._engine: Sampler | None = None
        self._weights_of = -1  # the step after which the engine copied the weights
        self._last_step, self._calls_in_step = -1, 0
        self.rows: list[SampledRollout] = []  # of the last call

    @phase(ROLLOUT)
    def __call__(self, prompts: list[str], trainer: RigGRPOTrainer) -> dict[str, Any]:
        """Prompt ids, completion ids, log-probabilities and `ScoredRollout`s: lists with one entry per row.

        TRL passes any further list to the reward functions as a column, in this order and within this
        process, before it shuffles and splits the batch.
        """
        started = time.perf_counter()
        vocabulary = self.bank.vocabulary
        parsed = [parse_mesh_prompt(prompt, vocabulary) for prompt in prompts]
        meshes = [index for index, _ in parsed]
        index = torch.tensor(meshes)
        used, mesh_index = torch.unique(index, return_inverse=True)
        seeds = self._seeds(len(prompts), trainer)
        with whole_weights(trainer.model_wrapped, trainer.accelerator):
            rollouts = sample_rigs(
                self.sampler(trainer),
                trainer.mesh_embeds(trainer.accelerator.unwrap_model(trainer.model), used),
                mesh_index,
                torch.tensor([class_id for _, class_id in parsed]),
                max_new_tokens=trainer.args.max_completion_length,
                seeds=seeds,
                temperature=trainer.args.temperature,
                batch_size=self.recipe.rollout.batch_size,
                skeletons=tokens_of(trainer.given, used.tolist()),
                names=self.bank.names(used.tolist()),
            )
        ids, log_probs = rollouts.rows()
        seconds = time.perf_counter() - started
        rigs = [
            read_rollout(row, class_id, vocabulary, trainer.given.get(mesh))
            for row, (mesh, class_id) in zip(ids, parsed, strict=True)
        ]
        step = trainer.state.global_step
        submitted = time.perf_counter()
        poses = {mesh: pose_seed(trainer.args.seed, self.bank.samples[mesh].name, step) for mesh in meshes}
        scores = submit_scores(self.service, meshes, rigs, poses.__getitem__)
        self.rows = [
            SampledRollout(mesh, class_id, row, seed, poses[mesh], rig, score)
            for (mesh, class_id), row, seed, rig, score in zip(parsed, ids, seeds, rigs, scores, strict=True)
        ]
        batch = RolloutBatch(seconds, time.perf_counter() - submitted, sum(len(row) for row in ids))
        return {
            "prompt_ids": [[vocabulary.size + mesh, vocabulary.bos, class_id] for mesh, class_id in parsed],
            "completion_ids": ids,
            "logprobs": log_probs,
            "scored_rollout": [
                ScoredRollout(score, None if rig is None else len(rig.joints), batch)
                for score, rig in zip(scores, rigs, strict=True)
            ],
        }

    def sampler(self, trainer: RigGRPOTrainer) -> Sampler:
        """The run's rollout engine, with the weights of the last optimiser step."""
        if self._engine is None:
            model = trainer.accelerator.unwrap_model(trainer.model)
            self._engine = make_sampler(model, self.recipe)
        elif trainer.state.global_step != self._weights_of:
            self._engine.refresh()
        self._weights_of = trainer.state.global_step
        return self._engine

    def release(self) -> None:
        """Drop the rollout engine with its copy of the weights and its buffers."""
        self._engine = None

    def _seeds(self, rows: int, trainer: RigGRPOTrainer) -> list[int]:
        """Seeds of this process's rows from (run seed, step, batch within the step, row of the whole batch).

        So a resumed run samples as if uninterrupted, and a run in several processes, each of which has
        `rows` consecutive rows of the batch, as one process would.
        """
        step, rank = trainer.state.global_step, trainer.accelerator.process_index
        self._calls_in_step = self._calls_in_step + 1 if step == self._last_step else 0
        self._last_step = step
        # The 0 keeps the rollouts of earlier versions, which had the rank in its place.
        seeds = row_seeds((rank + 1) * rows, trainer.args.seed, step, self._calls_in_step, 0)
        return seeds[rank * rows :]


class RigGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts and log-probabilities use the mesh and the rig grammar.

    It has its own `rollout_func`, a dataset that holds the run's mesh schedule, and its own
    `_get_per_token_logps_and_entropies`, which turns the mesh handle in the prompt into conditioning
    embeddings and uses the sampling distribution. Groups stay whole in micro-batches, so that the prefix of
    their mesh runs once.

    With `data.skeleton: given`, the handle also names the mesh's skeleton (`given`). Its tokens enter both
    passes as prompt, here and in the rollout; TRL sees neither them nor their log-probabilities, so loss, KL,
    entropies and completion lengths are those of the SkinTokens. All of TRL's prompts have one length.

    With `rewards.credit: phase`, TRL's loss gets advantages per token instead of its own (`rl.phase_credit`).
    """

    _buffered_inputs: Any  # TRL's micro-batches of the last rollouts
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
        self.given: GivenSkeletons = {}
        if recipe.data.skeleton == "given":
            self.given = true_skeletons(bank.samples, train_meshes, bank.vocabulary)
        # The dataset is the mesh schedule of the whole run. TRL's own shuffling would restart after a resume,
        # and yields no batch when there are fewer meshes than groups in a batch.
        seed = args.seed if args.data_seed is None else args.data_seed
        schedule = mesh_schedule(train_meshes, schedule_length(args), seed)
        prompts = Dataset.from_dict({"prompt": [bank.prompt(mesh) for mesh in schedule]})
        self._rewards = RewardRecord()
        rewards = RigRewards(list(recipe.rewards.weights), recipe.workers.max_failed_batches, service)
        self.rig_rollout = RigRollout(bank, service, recipe)
        self.on_rollouts: Callable[[list[SampledRollout], list[Any]], None] | None = None
        """Called with this process's rollouts and their advantages whenever a batch has been scored."""
        super().__init__(
            model=model,
            reward_funcs=[self._rewards.recorded(function) for function in rewards.functions()],
            args=args,
            train_dataset=prompts,
            processing_class=processing_class,
            rollout_func=self.rig_rollout,
            **options,
        )
        shard(self.model, self.accelerator)
        self._log_probs = LogProbEngine(
            recipe.log_probs.engine,
            self.accelerator.device,
            compute_dtype(self.accelerator.mixed_precision, model.dtype),
            model.config,
        )
        self._sampled_at = -1
        self._update = UpdatePhase()
        self.callback_handler.callbacks.insert(0, self._update)
        self.guard = StepGuard(
            self.accelerator, Path(recipe.output_dir), recipe.train_guard.max_bad_steps, self._describe_rows
        )
        self.add_callback(self.guard)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """TRL's training; raises RunFailedError after too many bad steps, with a checkpoint saved."""
        output = super().train(*arguments, **options)
        if self.guard.failure is not None:
            raise RunFailedError(self.guard.failure)
        return output

    def mesh_embeds(self, model: TokenRigForCausalLM, meshes: Tensor) -> Tensor:
        """Conditioning (B, T, hidden) of meshes (B,), without gradient; cached if the encoder is frozen."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if self.recipe.policy.train_mesh_encoder:
            with torch.no_grad():
                return base.encode_mesh(*self.bank.clouds(meshes, base.device))
        return self.bank.embeds(meshes, base)

    @phase(LOG_PROBS)
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
        completions = input_ids[:, -logits_to_keep:]
        class_ids = input_ids[:, 2]  # after the mesh handle and <bos>
        ids, prompt_lengths = training_rows(
            class_ids, tokens_of(self.given, meshes.tolist()), completions, self.bank.vocabulary
        )
        lengths = attention_mask[:, -logits_to_keep:].sum(dim=1)

        def run(part: slice, packed: bool, entropy: bool = compute_entropy) -> Any:
            with self.accelerator.autocast():
                return model(
                    input_ids=ids[part],
                    completion_ids=completions[part],
                    completion_lengths=lengths[part],
                    prompt_lengths=None if prompt_lengths is None else prompt_lengths[part],
                    packed=packed,
                    grammar_mode=self.recipe.policy.grammar,
                    temperature=self.temperature,
                    entropy=entropy,
                    **self._conditioning(model, meshes[part]),
                )

        few = slice(0, 4)
        real = attention_mask[few, -logits_to_keep:].bool()
        packed = self._log_probs.packed(lambda packed: run(few, packed, entropy=False).log_probs[real])
        size = batch_size or len(ids)
        if packed:
            size = max(size // self.num_generations, 1) * self.num_generations
        parts = [run(slice(start, start + size), packed) for start in range(0, len(ids), size)]
        log_probs = torch.cat([part.log_probs for part in parts])
        entropies = torch.cat([part.entropies for part in parts]) if compute_entropy else None
        self._last_log_probs = log_probs.detach()
        return log_probs, entropies, None

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """TRL's micro-batch, with groups kept whole: TRL shuffles rows before it splits them."""
        held = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not held:
            self._sampled_at = self.state.global_step
            self._buffered_inputs = regroup(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        """TRL's rewards of all processes, (N, F), kept for phase credit."""
        self._all_rewards: Tensor = super()._calculate_rewards(*arguments, **options)
        return self._all_rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch with each row's rewards and seed, for the step guard, and the advantages of phases."""
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mark_reward_metrics(self._metrics["train"])
        if self.recipe.rewards.credit == "phase":
            credit = phase_advantages(
                self._all_rewards,
                self.reward_weights.to(self._all_rewards.device),
                self.reward_func_names,
                Normalisation(self.num_generations, self.multi_objective_aggregation, self.scale_rewards),
                batch["completion_ids"],
                self.bank.vocabulary.skeleton_eos,
                self.accelerator.process_index * len(batch["completion_ids"]),
            )
            batch["advantages"] = credit.advantages
            for name, value in credit.metrics.items():
                self._metrics["train"][name].append(value)
        device = self.accelerator.device
        rows = self.rig_rollout.rows
        if self.on_rollouts is not None:
            self.on_rollouts(rows, batch["advantages"].tolist())
        seeds = torch.tensor([row.seed for row in rows], device=device)
        return {**batch, **self._rewards.columns(device), "row_seed": seeds}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """TRL's loss, for the step guard to watch; logs how far the trained distribution is from the sampled
        one before it moves."""
        self._update.begin()
        loss = super().compute_loss(model, inputs, *arguments, **options)
        if self.model.training:
            self.guard.watch(loss, inputs, self._last_log_probs)
        if self.model.training and self.state.global_step == self._sampled_at:
            metrics = self._metrics["train"]
            for name, value in sampling_difference(
                inputs["sampling_per_token_logps"],
                self._last_log_probs,
                inputs["completion_mask"],
                self.accelerator.gather,
            ).items():
                # TRL logs the mean of the list, which must not average maxima.
                metrics[name] = [max([value, *metrics[name]])] if name == LARGEST else [*metrics[name], value]
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm, the last that transformers needs before the update: the step guard decides."""
        norm = super()._get_grad_norm(model, grad_norm)
        if hasattr(norm, "full_tensor"):  # FSDP2: each process has the norm of its part
            norm = norm.full_tensor()
        self.guard.decide(self.state.global_step + 1, self._sampled_at, norm)
        return norm

    def _describe_rows(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        meshes = self.bank.index_of(batch["prompt_ids"]).tolist()
        return describe_rows(batch, self.bank.names(meshes), self.reward_func_names)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """TRL's log, but a NaN stays a NaN: TRL drops it from the means."""
        metrics = self._metrics["train"]
        logs.update(mean_metrics(metrics))
        metrics.clear()
        if "loss" in logs:
            self._tr_loss.zero_()  # transformers subtracts it from itself, which keeps a NaN for ever
            logs.update(self.guard.take_counts())
        super().log(logs, start_time)

    @phase(CHECKPOINT)
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint whole; raises RunFailedError if its content is not finite or the disk is full."""
        own = non_finite_names(training_state(self.model, self.optimizer))
        refuse_to_save(sorted(set(gather_object(own))), f"checkpoint-{self.state.global_step}")
        with writing(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the last part of a checkpoint; raises RunFailedError if its content is not finite."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            own = non_finite_names(training_state(self.model, self.optimizer))
            found = sorted(set(gather_object(own)))
            if found:
                raise RunFailedError(not_finite_message(checkpoint, found))

    def _conditioning(self, model: Any, meshes: Tensor) -> dict[str, Tensor]:
        """Embeddings from a frozen encoder, or point clouds for the forward pass to encode with gradient."""
        used, mesh_index = torch.unique(meshes, return_inverse=True)
        if self.recipe.policy.train_mesh_encoder:
            points, normals = self.bank.clouds(used, self.accelerator.device)
            return {"points": points, "normals": normals, "mesh_index": mesh_index}
        base = self.accelerator.unwrap_model(model)
        return {"mesh_embeds": self.mesh_embeds(base, used), "mesh_index": mesh_index}
