"""GRPO post-training of a TokenRig policy: `accelerate launch rl/train_grpo.py RECIPE.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path

# Launched by path, Python puts rl/ first on the import path, where evaluate.py would hide the library of
# that name; the project's root belongs there instead.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]

import os  # noqa: E402
import signal  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import asdict  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from data.command_line import RunFailedError, run_command  # noqa: E402
from data.typed_recipe import RecipeError  # noqa: E402
from rl.recipe import LoraRecipe, Recipe, grpo_arguments, load_recipe  # noqa: E402

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import GRPOConfig

    from policy.bundle import RigPolicy
    from policy.tokenrig.modeling import TokenRigForCausalLM
    from rewards.service import RewardService
    from rl.meshes import MeshBank
    from rl.reporting import MetricsLog
    from rl.trainer import RigGRPOTrainer


_RAY_AUTH = "RAY_AUTH_MODE"


def train(recipe: Recipe) -> None:
    """Run the recipe: evaluate, train, evaluate again, export.

    Writes to `output_dir`: `recipe.yaml` (resolved), `metrics.jsonl`, `before.json`, `after.json`,
    `checkpoints/`, `policy/`, `rig.glb`, `rig.png`, and `trainer/` with what TRL writes besides. With
    checkpoints there and `resume`, goes on from the last one.
    """
    import torch

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    # Their deprecations are for TRL to mend; bars of loading a few small files only hide ours.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging as transformers_logging
    from trl import GRPOConfig

    from policy.bundle import RigPolicy, load_model
    from policy.pretraining.processes import barrier_on_exit
    from rl.evaluate import evaluate
    from rl.evaluation import write_evaluation
    from rl.meshes import MeshBank
    from rl.rig import rig_mesh, write_rigged
    from rl.run_directory import POLICY_FOLDER, is_finished
    from rl.session import load_meshes, load_policy, prepare_meshes
    from rl.tables import make_console, print_means

    transformers_logging.disable_progress_bar()
    try:
        args = GRPOConfig(**grpo_arguments(recipe))
    except ValueError as error:  # values that exclude each other or this machine
        raise RecipeError(f"'train': {error}") from error
    main_process = args.process_index == 0
    policy = load_policy(recipe)
    check_training(recipe, args, policy)
    meshes = load_meshes(recipe)
    output = Path(recipe.output_dir)
    checkpoint = open_shared_run(recipe)
    with barrier_on_exit(), shared_service(recipe, policy) as service:
        # Launchers and schedulers stop a run with SIGTERM: leave by the same door as after Ctrl-C. (Ray sets
        # its own handler when it starts.)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        meshes = prepare_meshes(meshes, service, recipe)
        bank = MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name)
        before = None
        if recipe.eval.before_and_after and main_process:
            before = evaluate(policy, bank, meshes.held_out, service, recipe, "before")
            write_evaluation(before, output / "before.json")
        if checkpoint is not None and is_finished(checkpoint, args.max_steps):
            print(f"{checkpoint} is that of the last step: nothing to train", file=sys.stderr)
            trained = load_model(checkpoint).to(policy.device)
        else:
            trained = optimise(recipe, args, policy, bank, meshes.train, service, checkpoint)
        if not main_process:
            return
        refined = RigPolicy(trained.eval(), policy.skin_vae)
        refined.save(output / POLICY_FOLDER)
        bank.forget_embeds()
        if before is not None:
            after = evaluate(refined, bank, meshes.held_out, service, recipe, "after")
            write_evaluation(after, output / "after.json")
            print_means([before, after], ["before", "after"], make_console())
        print(f"refined policy: {output / POLICY_FOLDER}")
        sample = bank.samples[meshes.held_out[0]]
        try:
            write_rigged(rig_mesh(refined, sample, recipe, 4, 1.0, recipe.eval.seed), output / "rig.glb")
        except RunFailedError as error:  # an early policy may write no whole rig: the run is done nonetheless
            print(f"no example rig: {error}", file=sys.stderr)
        else:
            print(f"one rig of it: {output / 'rig.glb'}, {output / 'rig.png'}")


def optimise(
    recipe: Recipe,
    args: GRPOConfig,
    policy: RigPolicy,
    bank: MeshBank,
    train_meshes: Sequence[int],
    service: RewardService,
    checkpoint: Path | None,
) -> TokenRigForCausalLM:
    """Train, from `checkpoint` on if there is one; the trained model, adapters merged."""
    from rl.reporting import MetricsLog
    from rl.run_directory import METRICS_FILE

    log = MetricsLog(Path(recipe.output_dir) / METRICS_FILE)
    trainer = build_trainer(recipe, args, policy, bank, train_meshes, service, log)
    if checkpoint is not None and trainer.accelerator.is_main_process:
        print(f"going on from {checkpoint}", file=sys.stderr)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        log.close()  # before anybody says why the training stopped
    # Without the mixed-precision wrapper of training: what is evaluated is what is saved.
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
    """The trainer with this project's reporting and checkpoints; freezes what the recipe does not train."""
    from transformers import PrinterCallback
    from transformers.trainer_callback import ProgressCallback

    from policy.tokens.text_tokenizer import build_text_tokenizer
    from rl.checkpoints import CHECKPOINTS_FOLDER, MoveWhenComplete
    from rl.reporting import StepTimes
    from rl.trainer import RigGRPOTrainer

    # A checkpoint has tied weights once: known, and no reason for a warning when a run goes on.
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
    return trainer


def lora_config(lora: LoraRecipe | None) -> LoraConfig | None:
    """PEFT's configuration of the recipe's adapters; None for full fine-tuning."""
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))


def check_training(recipe: Recipe, args: GRPOConfig, policy: RigPolicy) -> None:
    """Refuse what the trainer would find out only after the first evaluation (RecipeError)."""
    from policy.bundle import adapter_base

    if args.fp16 and args.device.type == "cpu":
        raise RecipeError("'train.fp16' needs a GPU; leave it out")
    lora = recipe.policy.lora
    if lora is None and adapter_base(Path(recipe.policy.path)) is not None:
        raise RecipeError(
            f"'policy.path': {recipe.policy.path} holds adapters, and the KL reference would be the model "
            "without them; give the policy/ folder of that run, where they are merged"
        )
    layers = {name.rpartition(".")[2] for name, _ in policy.model.transformer.named_modules()}
    unknown = [name for name in (lora.target_modules if lora else ()) if name not in layers]
    if unknown:
        known = ", ".join(sorted(name for name in layers if name.endswith("_proj")))
        raise RecipeError(f"'policy.lora.target_modules': no layer is named {unknown[0]}; there are {known}")


def open_shared_run(recipe: Recipe) -> Path | None:
    """`open_run` by the main process; every process gets its answer."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from rl.run_directory import open_run

    state = PartialState()
    checkpoint = [open_run(recipe) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(checkpoint)
    return checkpoint[0]


@contextmanager
def shared_service(recipe: Recipe, policy: RigPolicy) -> Iterator[RewardService]:
    """The reward service: started by rank 0; with Ray the other ranks join it, inline each has its own."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from rl.session import reward_service

    state = PartialState()
    if state.num_processes == 1 or recipe.workers.backend == "inline":
        with reward_service(recipe, policy) as service:
            yield service
        return
    if state.is_main_process:
        from rewards.ray_service import RayRewardService

        with reward_service(recipe, policy) as service:
            assert isinstance(service, RayRewardService)
            # Ray turns on its token authentication in the process that starts a cluster, and there alone.
            broadcast_object_list([asdict(service.address), os.environ.get(_RAY_AUTH)])
            yield service
            state.wait_for_everyone()
        return
    told: list[Any] = [None, None]
    broadcast_object_list(told)
    if told[1] is not None:
        os.environ[_RAY_AUTH] = told[1]  # read when Ray is imported
    from rewards.ray_service import RayRewardService, ServiceAddress

    timeout, retries = recipe.workers.timeout_s, recipe.workers.retries
    yield RayRewardService.join(ServiceAddress(**told[0]), timeout_s=timeout, retries=retries)
    state.wait_for_everyone()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of `rl/train_grpo.py`."""
    return run_command(__doc__ or "", load_recipe, train, argv, "rl/train_grpo.py")


if __name__ == "__main__":
    sys.exit(main())
