"""The `loop` section of pre-training recipes: length, optimizer, precision, logging, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.typed_recipe import PathText, RecipeError


def loader_workers(workers: int | Literal["auto"], cores: int, cuda: bool, processes: int = 1) -> int:
    """Number of loading processes of one of `processes` training processes on a machine with `cores`."""
    if workers != "auto":
        return workers
    return max(1, (cores - 2 if cuda else cores // 4) // processes)


@dataclass(frozen=True)
class LoopRecipe:
    """How long and how fast to train, in which precision, and where results go."""

    max_steps: int = 1000
    """Optimizer steps of the run; at least 1. Source: this project."""

    batch_size: int = 8
    """Meshes per process and backward pass; at least 1. Source: this project."""

    learning_rate: float = 1e-3
    """Peak learning rate of Muon and AdamW; above 0. Source: this project."""

    min_learning_rate_ratio: float = 0.05
    """Final learning rate as a share of the peak; 0 to 1. Source: this project."""

    warmup_steps: int = 50
    """Steps of linear warm-up before the cosine decay; at least 0. Source: this project; the cosine is the
    paper's."""

    weight_decay: float = 0.01
    """Decoupled weight decay of the matrices in the blocks and of those that Muon trains; at least 0. Source:
    this project."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; above 0. Source: this project."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon` trains matrices with Muon and all other weights with AdamW, and needs torch 2.9; `adamw` trains
    all weights with AdamW. Source: paper (Muon with AdamW)."""

    muon_matrices: Literal["blocks", "attention"] = "blocks"
    """Matrices that Muon trains: all those of the stacked `blocks`, or only the projections of `attention`
    layers. Source: paper (`attention`); `blocks` is this project's."""

    gradient_accumulation_steps: int = 1
    """Batches per process and optimizer step; at least 1. Source: this project."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory; stage 2 only. Source: this project."""

    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    """Precision of computation, with weights in float32: `no` for float32, `bf16`, or `auto` for bf16 on GPUs
    that support it. Source: paper (bf16)."""

    compile: bool | Literal["auto"] = "auto"
    """Compile the layers of encoders and decoders with `torch.compile`; `auto` does on a GPU. The first steps
    then take a minute. Source: this project."""

    dataloader_workers: int | Literal["auto"] = 1
    """Processes that load examples, for each training process; at least 0, and 0 loads in the training
    process. `auto`: on a GPU, all CPU cores but two; otherwise a quarter of them, at least 1. Source: this
    project."""

    logging_steps: int = 20
    """Steps between lines of `metrics.jsonl`, each a mean over them; at least 1. Source: this project."""

    save_steps: int = 500
    """Steps between checkpoints, of which the last is kept; at least 1. Source: this project."""

    report_to: list[Literal["wandb", "tensorboard"]] = field(default_factory=list)
    """Trackers that also receive the metrics; each needs its package. Source: this project."""

    seed: int = 0
    """Seed of the initial weights and of all random draws during training; at least 0. Source: this
    project."""

    output_dir: PathText = "outputs/pretrain"
    """Directory for checkpoints, metrics and the trained model. Source: this project."""

    resume: bool = True
    """Resume from the last checkpoint in `output_dir`, if there is one; false starts over. Source: this
    project."""

    def __post_init__(self) -> None:
        for least, names in (
            (1, ("max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps")),
            (0, ("warmup_steps", "weight_decay", "seed")),
        ):
            for name in names:
                if not getattr(self, name) >= least:
                    raise RecipeError(f"'loop.{name}' must be at least {least}, not {getattr(self, name)}")
        if self.dataloader_workers != "auto" and self.dataloader_workers < 0:
            raise RecipeError(
                f"'loop.dataloader_workers' must be at least 0 or auto, not {self.dataloader_workers}"
            )
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"'loop.{name}' must be above 0, not {getattr(self, name)}")
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise RecipeError(
                f"'loop.min_learning_rate_ratio' must be between 0 and 1, not {self.min_learning_rate_ratio}"
            )
