"""A GRPO run from start to finish: evaluate, train all weights or LoRA adapters, evaluate again, export."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from trl import GRPOConfig

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy, load_model
from policy.pretraining.processes import barrier_on_exit
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.text_tokenizer import build_text_tokenizer
from rewards.service import RewardService
from rl.checkpoints import CHECKPOINTS_FOLDER, MoveWhenComplete
from rl.evaluation import evaluate
from rl.evaluation_results import write_evaluation
from rl.evaluation_tables import make_console, print_means
from rl.given_skeleton import SkeletonRoom, true_skeleton
from rl.mesh_bank import MeshBank
from rl.meshes import load_meshes, prepare_meshes, with_given_skeletons
from rl.phases import EXPORT, phase
from rl.policy_setup import check_training, load_policy
from rl.profiling import PROFILE_FOLDER, ProfileSteps
from rl.recipe import LoraRecipe, Recipe, grpo_arguments
from rl.reporting import MetricsLog, StepTimes
from rl.reward_service import ServiceStart, shared_service
from rl.rigging import rig_mesh, write_rigged
from rl.run_directory import METRICS_FILE, POLICY_FOLDER, is_finished, open_shared_run
from rl.startup_time import StartupTime
from rl.trainer import RigGRPOTrainer, RigRollout

# Rigs sampled for `rig.glb`, of which the best is written.
EXAMPLE_CANDIDATES = 4


def train(recipe: Recipe, start: ServiceStart, held_out: int | None = None) -> None:
    """Evaluate, train, evaluate again, export the policy and rig one held-out mesh with it.

    Writes to `output_dir`: `recipe.yaml` (resolved), `metrics.jsonl`, `before.json`, `after.json`,
    `checkpoints/`, `policy/`, `rig.glb`, `rig.png`, and TRL's own files in `trainer/`. With `resume`, resumes
    from the last checkpoint there. `held_out`: evaluate at most that many meshes (a dry run).

    Raises:
        RecipeError, MeshError: the recipe or its meshes cannot be used.
        RunFailedError: Ray could not be started or joined, or too many batches could not be scored.
    """
    try:
        args = GRPOConfig(**grpo_arguments(recipe))
    except ValueError as error:  # values that are incompatible with each other or with this machine
        raise RecipeError(f"'train': {error}") from error
    main_process = args.process_index == 0
    if main_process:
        start.begin()
    policy = load_policy(recipe)
    check_training(recipe, args, policy)
    room = SkeletonRoom.of(policy, recipe)
    meshes = with_given_skeletons(load_meshes(recipe), recipe, [room])
    meshes = replace(meshes, held_out=meshes.held_out[:held_out])
    output = Path(recipe.output_dir)
    checkpoint = open_shared_run(recipe)
    with barrier_on_exit(), shared_service(start, policy) as service:
        # Launchers and schedulers stop a run with SIGTERM: handle it like Ctrl-C. Set only now because Ray
        # installs its own handler when it starts.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        meshes = prepare_meshes(meshes, service, recipe)
        bank = MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name)
        before, began = None, time.perf_counter()
        if recipe.eval.before_and_after and main_process:
            before = evaluate(policy, bank, meshes.held_out, service, recipe, "before")
            write_evaluation(before, output / "before.json")
        startup = StartupTime(time.perf_counter() - began)
        if checkpoint is not None and is_finished(checkpoint, args.max_steps):
            if main_process:
                print(f"nothing to train: {checkpoint} is already the last step", file=sys.stderr)
            trained = load_model(checkpoint).to(policy.device)
        else:
            trained = optimise(recipe, args, policy, bank, meshes.train, service, checkpoint, startup)
        if not main_process:
            return
        refined = RigPolicy(trained.eval(), policy.skin_vae)
        with phase(EXPORT):
            refined.save(output / POLICY_FOLDER)
        bank.forget_embeds()
        if before is not None:
            after = evaluate(refined, bank, meshes.held_out, service, recipe, "after")
            write_evaluation(after, output / "after.json")
            print_means([before, after], ["before", "after"], make_console())
        print(f"refined policy: {output / POLICY_FOLDER}")
        sample = bank.samples[meshes.held_out[0]]
        skeleton = true_skeleton(sample, policy.vocabulary) if recipe.data.skeleton == "given" else None
        if skeleton is not None and room.refusal(skeleton) is not None:
            skeleton = None
        try:
            write_rigged(
                rig_mesh(refined, sample, recipe, EXAMPLE_CANDIDATES, 1.0, recipe.eval.seed, skeleton),
                output / "rig.glb",
            )
        except RunFailedError as error:  # an early policy may complete no rig: the run succeeded all the same
            print(f"no example rig: {error}", file=sys.stderr)
        else:
            print(f"example rig: {output / 'rig.glb'}, {output / 'rig.png'}")


def optimise(
    recipe: Recipe,
    args: GRPOConfig,
    policy: RigPolicy,
    bank: MeshBank,
    train_meshes: Sequence[int],
    service: RewardService,
    checkpoint: Path | None,
    *callbacks: TrainerCallback,
) -> TokenRigForCausalLM:
    """Train, resuming from `checkpoint` if there is one; return the model with its adapters merged.

    `callbacks` run before those that report metrics.
    """
    log = MetricsLog(Path(recipe.output_dir) / METRICS_FILE)
    trainer = build_trainer(recipe, args, policy, bank, train_meshes, service, log)
    trainer.callback_handler.callbacks[:0] = callbacks
    if checkpoint is not None and trainer.accelerator.is_main_process:
        print(f"resuming from {checkpoint}", file=sys.stderr)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        rollout = trainer.rollout_func
        assert isinstance(rollout, RigRollout)
        rollout.release()  # the evaluation that follows has an engine of its own
        log.close()  # so that an error message starts on its own line
    # Remove the mixed-precision wrapper, so that the model evaluated is the model saved.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return trained.merge_and_unload() if recipe.policy.lora else trained


def build_trainer(
    recipe: Recipe,
    args: GRPOConfig,
    policy: RigPolicy,
    bank: MeshBank,
    train_meshes: Sequence[int],
    service: RewardService,
    log: MetricsLog,
) -> RigGRPOTrainer:
    """The trainer with this project's logging and checkpoints; freezes the encoder unless it is trained."""
    # A checkpoint stores tied weights once; without this, every resume would warn about it.
    policy.model._keys_to_ignore_on_save = set(policy.model.all_tied_weights_keys)
    if not recipe.policy.train_mesh_encoder:
        policy.model.mesh_encoder.requires_grad_(False)
        policy.model.output_proj.requires_grad_(False)
    trainer = RigGRPOTrainer(
        model=policy.model,
        bank=bank,
        train_meshes=train_meshes,
        service=service,
        recipe=recipe,
        args=args,
        processing_class=build_text_tokenizer(policy.vocabulary),
        callbacks=[MoveWhenComplete(Path(recipe.output_dir) / CHECKPOINTS_FOLDER), log],
        peft_config=lora_config(recipe.policy.lora),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.callback_handler.callbacks.insert(0, StepTimes())
    if recipe.profile.steps is not None:
        trainer.add_callback(ProfileSteps(*recipe.profile.steps, Path(recipe.output_dir) / PROFILE_FOLDER))
    return trainer


def lora_config(lora: LoraRecipe | None) -> LoraConfig | None:
    """PEFT's configuration of the recipe's adapters; None for full fine-tuning."""
    if lora is None:
        return None
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))
