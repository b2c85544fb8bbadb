"""Stage 1: train the FSQ-CVAE that turns a bone's skinning weights into SkinTokens and back."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import parse_flag_from_env
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.command_line import run_command
from data.typed_recipe import RecipeError, build, read_recipe
from policy.bundle import PolicyError, atomic_directory, find_skin_vae
from policy.pretraining.loop import (
    LoopRecipe,
    Losses,
    barrier_on_exit,
    check_same_sizes,
    is_main_process,
    run_training,
    start_run,
)
from policy.pretraining.rig_examples import RigDataRecipe, RigExample, RigExamples, skin_points
from policy.skintokens.quantiser_init import initialise_quantiser
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class SkinLossRecipe:
    """Weights of the reconstruction terms (paper: BCE + MSE + Dice, Dice epsilon 1e-4).

    `mask`: of a further term, not of the paper: cross entropy of whether a weight exceeds `mask_threshold`.
    A point that may lie just outside a bone's region gets a small mean weight from the other terms, which
    counts as inside at the threshold of 1e-2 that reconstructions are measured at.
    """

    bce: float = 1.0
    mse: float = 1.0
    dice: float = 1.0
    dice_epsilon: float = 1e-4
    mask: float = 0.0
    mask_threshold: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.mask_threshold < 1:
            raise RecipeError(
                f"'loss.mask_threshold' must be between 0 and 1, both excluded, not {self.mask_threshold}"
            )


@dataclass(frozen=True)
class SkinVAERecipe:
    """Stage 1: each step reconstructs `bones_per_mesh` bones of each mesh; `model` is a SkinVAEConfig.

    `start_from`: go on from the weights of this `skin_vae` (or policy) directory, of the same sizes, rather
    than from random ones. `continuous_steps`: the first steps decode the latents themselves, then the codes
    are fitted to them (`policy.code_fitting`); quantised from the start, a small model sits on a plateau for
    hundreds of steps and its tokens end as copies of each other. `frozen_encoder`: train what decodes alone,
    so that the codes of bones stay those of `start_from`, and a policy that writes them stays valid.
    """

    start_from: str | None = None
    model: SkinVAEConfig = field(default_factory=SkinVAEConfig)
    data: RigDataRecipe = field(default_factory=RigDataRecipe)
    loss: SkinLossRecipe = field(default_factory=SkinLossRecipe)
    loop: LoopRecipe = field(default_factory=LoopRecipe)
    bones_per_mesh: int = 8
    encoder_points: int = 512
    query_points: int = 512
    nested_dropout: bool = True
    continuous_steps: int = 0
    frozen_encoder: bool = False


def load_recipe(path: str, overrides: Sequence[str]) -> SkinVAERecipe:
    """Read and check a stage-1 recipe (RecipeError names what is wrong)."""
    recipe = build(SkinVAERecipe, read_recipe(path, overrides))
    for least, name in (
        (1, "bones_per_mesh"),
        (1, "encoder_points"),
        (1, "query_points"),
        (0, "continuous_steps"),
    ):
        if getattr(recipe, name) < least:
            raise RecipeError(f"'{name}' must be at least {least}, not {getattr(recipe, name)}")
    if recipe.continuous_steps and recipe.model.fsq_dim == len(recipe.model.fsq_levels):
        raise RecipeError(
            "'continuous_steps' needs projections to fit: 'model.fsq_dim' must differ from the number of "
            "'model.fsq_levels'"
        )
    if recipe.continuous_steps and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            "'continuous_steps' changes weights that DeepSpeed keeps a copy of; launch without DeepSpeed, or "
            "set it to 0"
        )
    if recipe.frozen_encoder and (recipe.start_from is None or recipe.continuous_steps):
        raise RecipeError(
            "'frozen_encoder' keeps the codes of a trained skin VAE: name it in 'start_from' and set "
            "'continuous_steps' to 0"
        )
    return recipe


class BoneExamples(Dataset[Batch]):
    """Item i: a mesh's cloud and `bones_per_mesh` of its bones, each with encoder and query points."""

    def __init__(self, recipe: SkinVAERecipe) -> None:
        self.recipe = recipe
        self.rigs = RigExamples(recipe.data)

    def __getitem__(self, index: int) -> Batch:
        recipe = self.recipe
        example = self.rigs[index]
        rng = np.random.default_rng((recipe.data.first_seed, index, 1))
        count = len(example.joints)
        bones = rng.choice(count, recipe.bones_per_mesh, replace=count < recipe.bones_per_mesh)
        shown = skin_points(example, bones, recipe.encoder_points, rng)
        asked = skin_points(example, bones, recipe.query_points, rng)
        return {
            "cond_points": torch.from_numpy(example.points[: example.uniform]),
            "cond_normals": torch.from_numpy(example.normals[: example.uniform]),
            **_gather(example, bones, shown, "shown"),
            **_gather(example, bones, asked, "asked"),
        }


def _gather(example: RigExample, bones: np.ndarray, rows: np.ndarray, name: str) -> Batch:
    return {
        f"{name}_points": torch.from_numpy(example.points[rows]),
        f"{name}_normals": torch.from_numpy(example.normals[rows]),
        f"{name}_weights": torch.from_numpy(example.weights[rows, bones[:, None]]),
    }


def collate(items: list[Batch]) -> Batch:
    """Stack meshes; bones of all meshes are flattened into one axis, with `mesh_index` to their mesh."""
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    bones = batch["shown_points"].shape[1]
    flat = {
        key: value.flatten(0, 1) if key.startswith(("shown", "asked")) else value
        for key, value in batch.items()
    }
    return {**flat, "mesh_index": torch.arange(len(items)).repeat_interleave(bones)}


def reconstruction_losses(logits: Tensor, weights: Tensor, recipe: SkinLossRecipe) -> Losses:
    """BCE, MSE, Dice and mask terms between predicted and true weights, and their weighted sum `loss`.

    logits (B, Q) before the sigmoid, weights (B, Q) in [0, 1]. Dice per bone, squared denominators:
    1 − (2 Σ p w + ε) / (Σ p² + Σ w² + ε). Mask: with t the threshold, the cross entropy of w > t where
    p > t has a probability of more than one half.
    """
    logits = logits.float()
    predicted = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, weights)
    mse = F.mse_loss(predicted, weights)
    epsilon = recipe.dice_epsilon
    overlap = 2 * (predicted * weights).sum(-1) + epsilon
    dice = (1 - overlap / (predicted.square().sum(-1) + weights.square().sum(-1) + epsilon)).mean()
    threshold = recipe.mask_threshold
    inside = (weights > threshold).float()
    mask = F.binary_cross_entropy_with_logits(logits - math.log(threshold / (1 - threshold)), inside)
    total = recipe.bce * bce + recipe.mse * mse + recipe.dice * dice + recipe.mask * mask
    return {"loss": total, "bce": bce, "mse": mse, "dice": dice, "mask": mask}


def skin_iou(predicted: Tensor, weights: Tensor, threshold: float = 1e-2) -> Tensor:
    """Mean over bones of |both| / |either| of the points above `threshold`; (B, Q) each.

    A bone that neither side influences counts as 1.
    """
    a, b = predicted > threshold, weights > threshold
    union = (a | b).sum(-1)
    return torch.where(union > 0, (a & b).sum(-1) / union.clamp(min=1), 1.0).mean()


def skin_l1(predicted: Tensor, weights: Tensor, threshold: float = 1e-2) -> Tensor:
    """Mean over bones of the mean |difference| at the points where either side is above `threshold`.

    (B, Q) each. A bone that neither side influences counts as 0.
    """
    either = (predicted > threshold) | (weights > threshold)
    return (((predicted - weights).abs() * either).sum(-1) / either.sum(-1).clamp(min=1)).mean()


def mask_accuracy(predicted: Tensor, weights: Tensor, threshold: float = 1e-2) -> Tensor:
    """Share of the points (B, Q) that both sides put on the same side of `threshold`."""
    return ((predicted > threshold) == (weights > threshold)).float().mean()


def nested_tokens(step: int, recipe: SkinVAERecipe) -> int:
    """How many of the first tokens are decoded at `step` (nested dropout).

    One of the powers of two up to `sample_tokens`, `tokens_per_skin` and `sample_tokens`, each as likely.
    Without nested dropout, and for models with perceivers (which have one length), `tokens_per_skin`.
    """
    model = recipe.model
    if not recipe.nested_dropout or model.has_perceivers:
        return model.tokens_per_skin
    powers = {2**k for k in range(model.sample_tokens.bit_length())}
    lengths = sorted(powers | {model.tokens_per_skin, model.sample_tokens})
    return int(np.random.default_rng((recipe.loop.seed, step)).choice(lengths))


def initial_model(recipe: SkinVAERecipe) -> SkinVAE:
    """The CVAE to train: random from `loop.seed`, or that of `start_from` in float32.

    With `start_from` only what shapes no weight may differ: `model.tokens_per_skin` (perceivers aside) and
    `model.fsq_levels`, as many as there were, for a finer or coarser code. Raises RecipeError.
    """
    torch.manual_seed(recipe.loop.seed)
    model = SkinVAE(recipe.model)
    if recipe.start_from is None:
        return model
    try:
        start = SkinVAE.load(find_skin_vae(recipe.start_from, recipe.start_from), dtype=torch.float32)
    except (PolicyError, ValueError, SafetensorError) as error:
        raise RecipeError(f"'start_from': {error}; give a directory with a trained skin VAE") from error
    free = {"tokens_per_skin"}
    if len(start.config.fsq_levels) == len(recipe.model.fsq_levels) and not recipe.frozen_encoder:
        free.add("fsq_levels")
    own, asked = (
        {f"model.{key}": value for key, value in config.to_dict().items() if key not in free}
        for config in (start.config, recipe.model)
    )
    check_same_sizes(recipe.start_from, own, asked)
    model.load_state_dict(start.state_dict())
    if recipe.frozen_encoder:
        freeze_encoder(model)
    return model


def freeze_encoder(vae: SkinVAE) -> None:
    """Let only what decodes learn: codes of bones stay, the condition of meshes may change."""
    encoding: list[nn.Module | None] = [vae.model.encoder, vae.model.quant, vae.model.FSQ.project_in]
    if vae.config.has_perceivers:
        encoding.append(vae.down_perceiver)
    for module in encoding:
        if module is not None:
            module.requires_grad_(False)


def start_quantizing(vae: SkinVAE, examples: BoneExamples, recipe: SkinVAERecipe) -> None:
    """Fit the codes to the latents of the first 400 bones, the same on every process and after a resume."""
    meshes = -(-400 // recipe.bones_per_mesh)
    bones = collate([examples[index] for index in range(meshes)])
    device = vae.device
    initialise_quantiser(
        vae,
        bones["shown_points"].to(device),
        bones["shown_normals"].to(device),
        bones["shown_weights"].to(device),
    )


def train(recipe: SkinVAERecipe) -> Path:
    """Run stage 1 and write the CVAE to `<loop.output_dir>/skin_vae`."""
    initial = initial_model(recipe)
    examples = BoneExamples(recipe)

    fitted = False

    def losses(model: nn.Module, batch: Batch, step: int) -> Losses:
        nonlocal fitted
        if 0 < recipe.continuous_steps == step and not fitted:  # once, also for a step of several batches
            start_quantizing(initial, examples, recipe)
            fitted = True
        logits = model(
            batch["shown_points"],
            batch["shown_normals"],
            batch["shown_weights"],
            batch["cond_points"],
            batch["cond_normals"],
            batch["asked_points"],
            batch["asked_normals"],
            tokens=nested_tokens(step, recipe),
            mesh_index=batch["mesh_index"],
            rng=np.random.default_rng((recipe.loop.seed, step, 1)),
            quantized=step >= recipe.continuous_steps,
        )
        result = reconstruction_losses(logits, batch["asked_weights"], recipe.loss)
        predicted, weights = logits.detach().sigmoid(), batch["asked_weights"]
        return {
            **result,
            "iou": skin_iou(predicted, weights),
            "l1": skin_l1(predicted, weights),
            "mask_accuracy": mask_accuracy(predicted, weights),
        }

    target = start_run(recipe, recipe.loop) / "skin_vae"
    with barrier_on_exit():
        model = run_training(initial, examples, collate, losses, recipe.loop, "skin VAE")
        assert isinstance(model, SkinVAE)
        if is_main_process():
            with atomic_directory(target) as folder:
                model.save(folder)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m policy.pretrain_skin_vae recipes/skin_vae_small.yaml`."""
    return run_command(__doc__ or "", load_recipe, train, argv, "python -m policy.pretrain_skin_vae")


if __name__ == "__main__":
    sys.exit(main())
