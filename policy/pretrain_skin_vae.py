"""Stage 1: trains the skin VAE (FSQ-CVAE), which turns a bone's skinning weights into SkinTokens and back."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import parse_flag_from_env
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.command_line import run_command
from data.typed_recipe import (
    PathText,
    RecipeError,
    build,
    read_recipe,
    require_not_negative,
    require_positive,
)
from policy.bundle import atomic_directory
from policy.policy_folder import PolicyError, find_skin_vae
from policy.pretraining.held_out import held_out_batches
from policy.pretraining.loop import Losses, run_training
from policy.pretraining.loop_recipe import LoopRecipe
from policy.pretraining.point_cloud import RigExample, skin_points, vertex_shares
from policy.pretraining.processes import barrier_on_exit, is_main_process
from policy.pretraining.rig_examples import RigDataRecipe, RigExamples
from policy.pretraining.start import check_same_sizes, started_run
from policy.pretraining.validation import Validation, ValidationRecipe
from policy.skintokens.quantiser_init import initialise_quantiser
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig

Batch = dict[str, Tensor]

# What a step logs, and what validation can judge by.
MEASURES = ("loss", "bce", "mse", "dice", "mask", "jaccard", "iou", "l1", "mask_accuracy")


@dataclass(frozen=True)
class SkinLossRecipe:
    """The terms of the reconstruction loss between decoded and ground-truth skinning weights."""

    bce: float = 1.0
    """Weight of the binary cross entropy; at least 0, and 0 disables it. Source: paper (the term), this
    project (its weight)."""

    mse: float = 1.0
    """Weight of the mean squared error; at least 0, and 0 disables it. Source: paper (the term), this
    project (its weight)."""

    dice: float = 1.0
    """Weight of the Dice loss per bone; at least 0, and 0 disables it. Source: paper (the term), this
    project (its weight)."""

    dice_epsilon: float = 1e-4
    """Constant added to numerator and denominator of Dice; above 0. Source: paper (1e-4)."""

    mask: float = 0.0
    """Weight of the cross entropy of whether a weight exceeds `mask_threshold`; at least 0, and 0 disables
    it. The other terms leave small weights just outside a bone's region, which count as inside when IoU is
    measured. Source: this project."""

    mask_threshold: float = 1e-2
    """Skinning weight above which a point is inside a bone's region; above 0 and below 1. Source: this
    project."""

    jaccard: float = 0.0
    """Weight of 1 − IoU of the bone's region, the points whose weight exceeds `mask_threshold`, with
    probabilities instead of decisions and every point weighted by how much of the mesh it stands for; at
    least 0, and 0 disables it. Half of the points are drawn near the bone; the other terms count all alike
    and make the regions of small bones too large. Source: Rahman and Wang 2016 (the term), this project (its
    use)."""

    def __post_init__(self) -> None:
        require_not_negative("loss", self, "bce", "mse", "dice", "mask", "jaccard")
        require_positive("loss", self, "dice_epsilon")
        if not self.bce + self.mse + self.dice + self.mask + self.jaccard:
            raise RecipeError(
                "every weight of 'loss' is 0; set at least one of bce, mse, dice, mask, jaccard above 0"
            )
        if not 0 < self.mask_threshold < 1:
            raise RecipeError(f"'loss.mask_threshold' must be above 0 and below 1, not {self.mask_threshold}")


@dataclass(frozen=True)
class SkinVAERecipe:
    """Training the skin VAE: each step reconstructs some bones of each mesh."""

    start_from: PathText | None = None
    """Skin VAE or policy directory whose weights to start from, of the same sizes; null for random weights.
    Source: this project."""

    model: SkinVAEConfig = field(default_factory=SkinVAEConfig)
    """Sizes of the skin VAE."""

    data: RigDataRecipe = field(default_factory=RigDataRecipe)
    """Training rigs."""

    loss: SkinLossRecipe = field(default_factory=SkinLossRecipe)
    """Reconstruction loss."""

    loop: LoopRecipe = field(default_factory=LoopRecipe)
    """Training loop."""

    validation: ValidationRecipe = field(default_factory=ValidationRecipe)
    """Measures on held-out rigs."""

    bones_per_mesh: int = 8
    """Bones reconstructed per mesh and step; at least 1. Source: this project."""

    encoder_points: int = 512
    """Points per bone that the encoder sees, half of them near the bone; at least 1. Source: this project."""

    query_points: int = 512
    """Points per bone at which weights are decoded and compared, half of them near the bone; at least 1.
    Source: this project."""

    nested_dropout: bool = True
    """Decode only the first 1, 2, 4, … SkinTokens in each step, every length equally likely, so that one VAE
    works with any number of tokens; no effect with perceivers. Source: paper."""

    continuous_steps: int = 0
    """Steps that decode unquantised latents before the codes are fitted to them; at least 0, and above 0 only
    without DeepSpeed. A small model that is quantised from the start sits on a plateau, and its tokens become
    copies of each other. Source: this project."""

    frozen_encoder: bool = False
    """Train only the decoding part, so that codes stay those of `start_from` and a policy that writes them
    stays valid; needs `start_from` and `continuous_steps: 0`. Source: this project."""


def load_recipe(path: str, overrides: Sequence[str]) -> SkinVAERecipe:
    """Read and check a stage-1 recipe; raises RecipeError."""
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
            "'continuous_steps' fits the quantiser's projections: 'model.fsq_dim' must differ from the "
            "number of 'model.fsq_levels'"
        )
    if recipe.continuous_steps and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            "'continuous_steps' changes weights that DeepSpeed holds copies of; launch without DeepSpeed, or "
            "set it to 0"
        )
    if recipe.frozen_encoder and (recipe.start_from is None or recipe.continuous_steps):
        raise RecipeError(
            "'frozen_encoder' keeps the codes of a trained skin VAE: set 'start_from' to its directory and "
            "'continuous_steps' to 0"
        )
    return recipe


class BoneExamples(Dataset[Batch]):
    """Example i: a mesh's point cloud, and encoder and query points of `bones_per_mesh` of its bones."""

    def __init__(self, recipe: SkinVAERecipe) -> None:
        self.recipe = recipe
        self.rigs = RigExamples(recipe.data)

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.recipe.data.first_seed, index, 1))
        return self.item(self.rigs[index], rng)

    def item(self, example: RigExample, rng: np.random.Generator) -> Batch:
        """The points of an example that a step sees."""
        recipe = self.recipe
        count = len(example.joints)
        bones = rng.choice(count, recipe.bones_per_mesh, replace=count < recipe.bones_per_mesh)
        encoder_rows = skin_points(example, bones, recipe.encoder_points, rng)
        query_rows = skin_points(example, bones, recipe.query_points, rng)
        return {
            "cond_points": torch.from_numpy(example.points[: example.uniform]),
            "cond_normals": torch.from_numpy(example.normals[: example.uniform]),
            **_gather(example, bones, encoder_rows, "encoder"),
            **_gather(example, bones, query_rows, "query"),
            "query_shares": torch.from_numpy(vertex_shares(example, bones, query_rows)),
        }


def _gather(example: RigExample, bones: np.ndarray, rows: np.ndarray, name: str) -> Batch:
    return {
        f"{name}_points": torch.from_numpy(example.points[rows]),
        f"{name}_normals": torch.from_numpy(example.normals[rows]),
        f"{name}_weights": torch.from_numpy(example.weights[rows, bones[:, None]]),
    }


def collate(items: list[Batch]) -> Batch:
    """Stack the meshes; bones of all meshes share one axis, and `mesh_index` maps them to their meshes."""
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    bones = batch["encoder_points"].shape[1]
    flat = {
        key: value.flatten(0, 1) if key.startswith(("encoder", "query")) else value
        for key, value in batch.items()
    }
    return {**flat, "mesh_index": torch.arange(len(items)).repeat_interleave(bones)}


def reconstruction_losses(logits: Tensor, weights: Tensor, shares: Tensor, recipe: SkinLossRecipe) -> Losses:
    """BCE, MSE, Dice, mask and Jaccard terms against the ground-truth weights, and their weighted sum `loss`.

    logits (B, Q) before the sigmoid, weights (B, Q) in [0, 1], shares (B, Q) as `vertex_shares` gives them.
    Dice per bone, squared denominators: 1 − (2 Σ p w + ε) / (Σ p² + Σ w² + ε). Mask: the cross entropy of
    w > t, with logits shifted so that p = t has probability one half; t is the threshold. Jaccard per bone,
    with q that probability, y whether w > t, and s the shares: 1 − (Σ s q y + ε) / (Σ s (q + y − q y) + ε).
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
    shifted = logits - math.log(threshold / (1 - threshold))
    mask = F.binary_cross_entropy_with_logits(shifted, inside)
    probable = shifted.sigmoid()
    both, either = probable * inside, probable + inside - probable * inside
    jaccard = (1 - ((shares * both).sum(-1) + epsilon) / ((shares * either).sum(-1) + epsilon)).mean()
    terms = {"bce": bce, "mse": mse, "dice": dice, "mask": mask, "jaccard": jaccard}
    total = sum((getattr(recipe, name) * term for name, term in terms.items()), torch.zeros_like(bce))
    return {"loss": total, **terms}


def skin_iou(predicted: Tensor, weights: Tensor, shares: Tensor, threshold: float = 1e-2) -> Tensor:
    """IoU of the points above `threshold`, weighted by `shares`, mean over bones; (B, Q) each.

    A bone with no such point on either side counts as 1.
    """
    a, b = predicted > threshold, weights > threshold
    both, either = (shares * (a & b)).sum(-1), (shares * (a | b)).sum(-1)
    return torch.where(either > 0, both / either.clamp(min=1e-9), 1.0).mean()


def skin_l1(predicted: Tensor, weights: Tensor, threshold: float = 1e-2) -> Tensor:
    """Mean absolute difference at the points where either side is above `threshold`, mean over bones.

    (B, Q) each. A bone with no such point counts as 0.
    """
    either = (predicted > threshold) | (weights > threshold)
    return (((predicted - weights).abs() * either).sum(-1) / either.sum(-1).clamp(min=1)).mean()


def mask_accuracy(predicted: Tensor, weights: Tensor, threshold: float = 1e-2) -> Tensor:
    """Share of the points (B, Q) where both weights are on the same side of `threshold`."""
    return ((predicted > threshold) == (weights > threshold)).float().mean()


def nested_tokens(step: int, recipe: SkinVAERecipe) -> int:
    """How many leading tokens `step` decodes (nested dropout).

    Uniform over the powers of two up to `sample_tokens`, `tokens_per_skin` and `sample_tokens`. Without
    nested dropout, and with perceivers, which have a single length, always `tokens_per_skin`.
    """
    model = recipe.model
    if not recipe.nested_dropout or model.has_perceivers:
        return model.tokens_per_skin
    powers = {2**k for k in range(model.sample_tokens.bit_length())}
    lengths = sorted(powers | {model.tokens_per_skin, model.sample_tokens})
    return int(np.random.default_rng((recipe.loop.seed, step)).choice(lengths))


def initial_model(recipe: SkinVAERecipe) -> SkinVAE:
    """The skin VAE to train: random from `loop.seed`, or the one in `start_from`, in float32.

    With `start_from`, the recipe may differ only where no weight changes shape: in `model.cond_tokens`, in
    `model.tokens_per_skin` (without perceivers) and in the values of `model.fsq_levels`, for a finer or
    coarser code. Raises RecipeError.
    """
    torch.manual_seed(recipe.loop.seed)
    model = SkinVAE(recipe.model)
    if recipe.start_from is None:
        return model
    try:
        start = SkinVAE.load(find_skin_vae(recipe.start_from, recipe.start_from), dtype=torch.float32)
    except PolicyError as error:
        raise RecipeError(f"'start_from': {error}") from error
    except (ValueError, SafetensorError) as error:
        raise RecipeError(f"'start_from': {error}; set it to the directory of a trained skin VAE") from error
    free = {"tokens_per_skin", "cond_tokens"}
    if len(start.config.fsq_levels) == len(recipe.model.fsq_levels) and not recipe.frozen_encoder:
        free.add("fsq_levels")
    own, configured = (
        {f"model.{key}": value for key, value in config.to_dict().items() if key not in free}
        for config in (start.config, recipe.model)
    )
    check_same_sizes(recipe.start_from, own, configured)
    model.load_state_dict(start.state_dict())
    if recipe.frozen_encoder:
        freeze_encoder(model)
    return model


def freeze_encoder(vae: SkinVAE) -> None:
    """Freeze everything that determines a bone's codes; decoder and mesh condition keep learning."""
    for module in vae.encoding_modules:
        module.requires_grad_(False)


def start_quantizing(vae: SkinVAE, examples: BoneExamples, recipe: SkinVAERecipe) -> None:
    """Fit the codes to the latents of the first 400 bones, which are the same in every process and resume."""
    meshes = -(-400 // recipe.bones_per_mesh)
    bones = collate([examples[index] for index in range(meshes)])
    device = vae.device
    initialise_quantiser(
        vae,
        bones["encoder_points"].to(device),
        bones["encoder_normals"].to(device),
        bones["encoder_weights"].to(device),
    )


def all_measures(model: nn.Module, batch: Batch, step: int, recipe: SkinVAERecipe, **options: Any) -> Losses:
    """The losses, and IoU, L1 and mask accuracy, of a batch as `step` decodes it.

    `options`: further arguments of the forward pass.
    """
    logits = model(
        batch["encoder_points"],
        batch["encoder_normals"],
        batch["encoder_weights"],
        batch["cond_points"],
        batch["cond_normals"],
        batch["query_points"],
        batch["query_normals"],
        mesh_index=batch["mesh_index"],
        quantized=step >= recipe.continuous_steps,
        **options,
    )
    predicted, weights, shares = logits.detach().sigmoid(), batch["query_weights"], batch["query_shares"]
    return {
        **reconstruction_losses(logits, weights, shares, recipe.loss),
        "iou": skin_iou(predicted, weights, shares),
        "l1": skin_l1(predicted, weights),
        "mask_accuracy": mask_accuracy(predicted, weights),
    }


def validation_of(recipe: SkinVAERecipe, examples: BoneExamples) -> Validation | None:
    """Held-out bones, decoded from `tokens_per_skin` SkinTokens; None if the recipe has no validation."""
    if not recipe.validation.every:
        return None

    def losses(model: nn.Module, batch: Batch, step: int) -> Losses:
        return all_measures(model, batch, step, recipe)

    measure = recipe.validation.chosen_measure(MEASURES)
    batches = held_out_batches(recipe.validation, recipe.data, examples.item, collate, recipe.loop.batch_size)
    return Validation(recipe.validation, batches, losses, measure, recipe.continuous_steps)


def train(recipe: SkinVAERecipe) -> Path:
    """Run stage 1, write the skin VAE to `<loop.output_dir>/skin_vae` and return that directory."""
    initial = initial_model(recipe)
    examples = BoneExamples(recipe)

    fitted = False

    def losses(model: nn.Module, batch: Batch, step: int) -> Losses:
        nonlocal fitted
        if 0 < recipe.continuous_steps == step and not fitted:  # once per step, whatever the accumulation
            start_quantizing(initial, examples, recipe)
            fitted = True
        rng = np.random.default_rng((recipe.loop.seed, step, 1))
        return all_measures(model, batch, step, recipe, tokens=nested_tokens(step, recipe), rng=rng)

    checks = validation_of(recipe, examples)
    with started_run(recipe, recipe.loop) as output, barrier_on_exit():
        target = output / "skin_vae"
        model = run_training(initial, examples, collate, losses, recipe.loop, "skin VAE", checks)
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
