"""A GRPO run from start to finish: evaluate, train all weights or LoRA adapters, evaluate again, export."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from trl import GRPOConfig

from data.atomic import write_atomic
from data.command_line import RunFailedError
from data.run_lock import RunLock
from data.stop_signals import stop_signals
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy, load_model
from policy.pretraining.processes import barrier_on_exit, main_process_only
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.text_tokenizer import build_text_tokenizer
from rewards.service import RewardService
from rl.best_policy import read_best
from rl.checkpoints import CHECKPOINTS_FOLDER, MoveWhenComplete
from rl.during_training import DuringTraining
from rl.evaluation import evaluate
from rl.evaluation_results import write_evaluation
from rl.first_evaluation import first_evaluation
from rl.given_skeleton import SkeletonRoom, true_skeleton
from rl.keep_rollouts import KeepRollouts
from rl.launch_check import check_launch, check_shared
from rl.mesh_bank import MeshBank
from rl.meshes import RunMeshes, load_meshes, prepare_meshes, with_given_skeletons
from rl.model_card import CardFacts, base_policy, model_card
from rl.phases import EXPORT, phase
from rl.policy_setup import check_training, load_policy
from rl.profiling import PROFILE_FOLDER, ProfileSteps
from rl.recipe import PolicyRecipe, Recipe, grpo_arguments
from rl.recipe.best_by import check_measured
from rl.reporting import MetricsLog, StepTimes
from rl.reward_service import ServiceStart, shared_service
from rl.rigging import rig_mesh, write_rigged
from rl.run_directory import OpenRun, is_finished, shared_run, steps_done
from rl.run_files import AFTER_FILE, CARD_FILE, METRICS_FILE, POLICY_FOLDER
from rl.sharding import whole_model
from rl.startup_time import StartupTime, command_start
from rl.stop_and_save import StopAndSave
from rl.trained_run import TrainedRun
from rl.trainer import RigGRPOTrainer
from rl.wandb_run import log_results, wandb_run

# Rigs sampled for `rig.glb`, of which the best is written.
EXAMPLE_CANDIDATES = 4


def train(
    recipe: Recipe, start: ServiceStart, held_out: int | None = None, began: float | None = None
) -> TrainedRun:
    """Evaluate, train, evaluate again, export the policy and rig one held-out mesh with it.

    Writes to `output_dir`: `recipe.yaml` (resolved), `metrics.jsonl`, `before.json`, `after.json`,
    `checkpoints/`, `policy/`, `policy_best/` (with `eval.every`), `rollouts/` (with `report.every`),
    `rig.glb`, `rig.png`, and TRL's own files in `trainer/`. With `resume`, resumes from the last whole
    checkpoint there. The directory is locked while the run lasts. A run that
    `train_guard.stop_after_minutes` ends during training evaluates and exports nothing: the run that resumes
    it does. `policy/` and `policy_best/` have a model card.

    Args:
        recipe: of the run.
        start: of the reward service, closed by the caller.
        held_out: evaluate at most that many meshes (a dry run).
        began: when the clock of the run started, in seconds since the epoch; None for the command's start.

    Raises:
        RecipeError, MeshError: the recipe or its meshes cannot be used, or the directory is in use.
        RunFailedError: Ray could not be started or joined, too many batches could not be scored, or the disk
            is full.
        StopRun: a signal or the clock stopped the run; during training, after the step was saved.
    """
    try:
        args = GRPOConfig(**grpo_arguments(recipe))
    except ValueError as error:  # values that are incompatible with each other or with this machine
        raise RecipeError(f"'train': {error}") from error
    check_launch(args, recipe)
    if args.process_index == 0:
        start.begin()
    policy = load_policy(recipe)
    check_training(recipe, args, policy)
    room = SkeletonRoom.of(policy, recipe)
    meshes = with_given_skeletons(load_meshes(recipe), recipe, [room])
    meshes = replace(meshes, held_out=meshes.held_out[:held_out])
    if recipe.eval.every:
        check_measured(recipe, [meshes.samples[mesh].rig is not None for mesh in meshes.held_out])
    with shared_run(recipe) as run, barrier_on_exit(), shared_service(start, policy) as service:
        check_shared(Path(recipe.output_dir))
        stop_signals().install()  # Ray has installed a handler of its own for SIGTERM
        prepared = prepare_meshes(meshes, service, recipe)
        with wandb_run(recipe, args, run.checkpoint is not None):
            return _run(recipe, args, policy, prepared, service, run, room, began)


def _run(
    recipe: Recipe,
    args: GRPOConfig,
    policy: RigPolicy,
    meshes: RunMeshes,
    service: RewardService,
    run: OpenRun,
    room: SkeletonRoom,
    began: float | None,
) -> TrainedRun:
    """The run itself, in an output directory and with a reward service that are open."""
    bank = MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name)
    before, evaluating = None, time.perf_counter()
    if recipe.eval.before_and_after:
        with main_process_only() as here:
            if here:
                before = first_evaluation(
                    recipe,
                    [meshes.samples[index] for index in meshes.held_out],
                    lambda: evaluate(policy, bank, meshes.held_out, service, recipe, "before"),
                )
    began = command_start() if began is None else began
    startup = StartupTime(began, time.perf_counter() - evaluating)
    step = args.max_steps
    if run.checkpoint is not None and is_finished(run.checkpoint, args.max_steps):
        if args.process_index == 0:
            print(f"nothing to train: {run.checkpoint} is already the last step", file=sys.stderr)
        trained, step = load_model(run.checkpoint).to(policy.device), steps_done(run.checkpoint)
    else:
        trained = optimise(recipe, args, policy, bank, meshes, service, run, startup, began=began)
    done = TrainedRun(Path(recipe.output_dir))
    with main_process_only() as here:
        if here:
            refined = RigPolicy(trained.eval(), policy.skin_vae)
            facts = CardFacts(
                recipe,
                base_policy(recipe),
                args.world_size,
                len(meshes.train),
                len(meshes.held_out),
                step,
                before,
                None,
            )
            done = _finish(facts, args, refined, bank, meshes, service, room)
    return done


def _finish(
    facts: CardFacts,
    args: GRPOConfig,
    refined: RigPolicy,
    bank: MeshBank,
    meshes: RunMeshes,
    service: RewardService,
    room: SkeletonRoom,
) -> TrainedRun:
    """Export the refined policy, evaluate it, write its card and rig one held-out mesh."""
    recipe = facts.recipe
    output = Path(recipe.output_dir)
    with phase(EXPORT):
        refined.save(output / POLICY_FOLDER)
    bank.forget_embeds()
    if facts.before is not None:
        after = evaluate(refined, bank, meshes.held_out, service, recipe, "after")
        write_evaluation(after, output / AFTER_FILE)
        if "wandb" in args.report_to:
            log_results(facts.before, after, args.max_steps)
        facts = replace(facts, after=after)
    write_atomic(output / POLICY_FOLDER / CARD_FILE, model_card(facts).encode())
    best = read_best(output, recipe) if recipe.eval.every else None
    run = TrainedRun(output, facts.before, facts.after, best)
    sample = bank.samples[meshes.held_out[0]]
    skeleton = true_skeleton(sample, refined.vocabulary) if recipe.data.skeleton == "given" else None
    if skeleton is not None and room.refusal(skeleton) is not None:
        skeleton = None
    try:
        write_rigged(
            rig_mesh(refined, sample, recipe, EXAMPLE_CANDIDATES, 1.0, recipe.eval.seed, skeleton),
            output / "rig.glb",
        )
    except RunFailedError as error:  # an early policy may complete no rig: the run succeeded all the same
        return replace(run, no_rig=str(error))
    return replace(run, rig=output / "rig.glb")


def optimise(
    recipe: Recipe,
    args: GRPOConfig,
    policy: RigPolicy,
    bank: MeshBank,
    meshes: RunMeshes,
    service: RewardService,
    run: OpenRun,
    *callbacks: TrainerCallback,
    began: float | None = None,
) -> TokenRigForCausalLM:
    """Train, resuming from the run's checkpoint if there is one; return the model with its adapters merged.

    `callbacks` run before those that report metrics. `began`: as in `train`.

    Raises:
        StopRun: a signal or `train_guard.stop_after_minutes` ended training after a step,
            which is saved.
        RunFailedError: a checkpoint could not be written, or the steps could not be scored.
    """
    log = MetricsLog(Path(recipe.output_dir) / METRICS_FILE)
    signals = stop_signals()
    stop = StopAndSave(signals, recipe.train_guard, command_start() if began is None else began)
    trainer = build_trainer(recipe, args, policy, bank, meshes.train, service, log, stop, run.lock)
    trainer.callback_handler.callbacks[:0] = callbacks
    if recipe.eval.every:
        trainer.add_callback(DuringTraining(trainer, policy.skin_vae, service, meshes, log))
    if recipe.report.every:
        trainer.add_callback(KeepRollouts(trainer, policy.skin_vae))
    checkpoint = run.checkpoint
    if checkpoint is not None and trainer.accelerator.is_main_process:
        print(f"resuming from {checkpoint}", file=sys.stderr)
    try:
        with signals.finishing_steps():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            stop.raise_if_stopped(args.max_steps)
    finally:
        trainer.rig_rollout.release()  # the evaluation that follows has an engine of its own
        log.close()  # so that an error message starts on its own line
    return whole_model(trainer.model_wrapped, trainer.accelerator)


def build_trainer(
    recipe: Recipe,
    args: GRPOConfig,
    policy: RigPolicy,
    bank: MeshBank,
    train_meshes: Sequence[int],
    service: RewardService,
    log: MetricsLog,
    stop: StopAndSave | None = None,
    lock: RunLock | None = None,
) -> RigGRPOTrainer:
    """The trainer with this project's logging and checkpoints; freezes the encoder unless it is trained.

    `stop` ends training early, and `lock` is the output directory's.
    """
    # A checkpoint stores tied weights once; without this, every resume would warn about it.
    policy.model._keys_to_ignore_on_save = set(policy.model.all_tied_weights_keys)
    if not recipe.policy.train_mesh_encoder:
        policy.model.mesh_encoder.requires_grad_(False)
        policy.model.output_proj.requires_grad_(False)
    saving = MoveWhenComplete(Path(recipe.output_dir) / CHECKPOINTS_FOLDER, lock)
    trainer = RigGRPOTrainer(
        model=policy.model,
        bank=bank,
        train_meshes=train_meshes,
        service=service,
        recipe=recipe,
        args=args,
        processing_class=build_text_tokenizer(policy.vocabulary),
        callbacks=[*([] if stop is None else [stop]), saving, log],
        peft_config=lora_config(recipe.policy),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.callback_handler.callbacks.insert(0, StepTimes())
    if recipe.profile.steps is not None:
        trainer.add_callback(ProfileSteps(*recipe.profile.steps, Path(recipe.output_dir) / PROFILE_FOLDER))
    saving.expected_bytes = checkpoint_bytes(trainer.model, args)
    return trainer


def checkpoint_bytes(model: PreTrainedModel, args: GRPOConfig) -> int:
    """Estimate of a checkpoint's size: the weights, or the adapters alone, and AdamW's two moments."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = 2 * trained if str(args.optim.value).startswith("adamw_torch") else 0
    return moments + (trained if hasattr(model, "peft_config") else weights)


def lora_config(policy: PolicyRecipe) -> LoraConfig | None:
    """PEFT's configuration of the recipe's adapters; None for full fine-tuning.

    A trained mesh encoder is a copy that PEFT keeps, saves and merges with the adapters: without them, as in
    the KL reference, the model has its original encoder.
    """
    lora = policy.lora
    if lora is None:
        return None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.target_modules),
        modules_to_save=["mesh_encoder", "output_proj"] if policy.train_mesh_encoder else None,
    )
