"""Reports how well skin VAEs reconstruct held-out rigs from 1, 2, 4, … tokens, and their codebook use."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from tqdm import tqdm

from data.atomic import write_atomic
from data.command_line import run_command
from data.creatures import make_creature
from data.formats.load import Refusal
from data.formats.rig_formats import RigLimits, find_rigs, read_rigs, rigs_passed_over
from data.mesh import Mesh, MeshError
from data.rig import Rig, depth_first
from data.sets.dataset import EVAL_FIRST_SEED
from data.sets.prepared import PreparedRigs, is_prepared
from data.typed_recipe import PathText, RecipeError, build, read_recipe
from data.welding import weld_surface
from policy.policy_folder import PolicyError, find_skin_vae
from policy.pretraining.point_cloud import RigExample, make_example, skin_points
from policy.skintokens.skin_vae import SkinVAE

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SkinReportRecipe:
    """Which skin VAEs to compare, and on which held-out rigs."""

    skin_vaes: list[PathText] = field(default_factory=lambda: ["checkpoints/small/skin_vae"])
    """Skin VAE or policy directories to compare; at least one, each once. Source: this project."""

    rigs: PathText | list[PathText] | None = None
    """Rig files: a file, folder or pattern as `python -m data.prepare` takes them, or a list of them; a
    folder made by it gives its held-out split; null for procedural creatures. Source: this project."""

    first_seed: int = EVAL_FIRST_SEED
    """Seed of the first procedural creature; at least 1,000,000,000, because training uses the seeds below.
    Source: this project."""

    count: int = 64
    """Maximum number of rigs; files and prepared folders contribute their first ones; at least 1. Source:
    this project."""

    max_joints: int = 256
    """Rig files with more joints are skipped; at least 1. Source: this project."""

    tokens: list[int] | None = None
    """Numbers of SkinTokens per bone to compare, each at least 1; null for 1, 2, 4, … up to the VAE's learned
    queries. Source: this project."""

    points: int = 1024
    """Surface points per mesh from which the VAE's condition is encoded; at least 1. Source: specification,
    section 12.2 (54,000)."""

    dense_pool: int = 2048
    """Further surface points, from which points near a bone are taken; at least 0. Source: specification,
    section 12.2."""

    vertices: int = 2048
    """Maximum number of mesh vertices (welded) added to the points; at least 0. Source: specification,
    section 12.2 (16,384)."""

    encoder_points: int = 384
    """Points per bone that the encoder sees, half of them near the bone; at least 1. Source: this project."""

    threshold: float = 1e-2
    """Skinning weight above which a bone influences a vertex; at least 0. Source: this project."""

    seed: int = 0
    """Seed of the points; at least 0. Source: this project."""

    output_dir: PathText = "outputs/skin_report"
    """Directory for the JSON and CSV reports. Source: this project."""

    def __post_init__(self) -> None:
        for name, least in (
            *((name, 1) for name in ("count", "max_joints", "points", "encoder_points")),
            *((name, 0) for name in ("dense_pool", "vertices", "threshold", "seed")),
        ):
            if not getattr(self, name) >= least:
                raise RecipeError(f"'{name}' must be at least {least}, not {getattr(self, name)}")
        if self.first_seed < EVAL_FIRST_SEED:
            raise RecipeError(
                f"'first_seed' must be at least {EVAL_FIRST_SEED}, not {self.first_seed}: training uses the "
                "creatures below that"
            )
        if not self.skin_vaes:
            raise RecipeError("'skin_vaes' is empty; list at least one directory")
        if len(set(self.skin_vaes)) < len(self.skin_vaes):
            raise RecipeError("'skin_vaes' lists a directory twice; list each once")
        if self.tokens is not None and (not self.tokens or min(self.tokens) < 1):
            raise RecipeError(f"'tokens' must be integers of at least 1, not {self.tokens}")


@dataclass(frozen=True, eq=False)
class HeldOutRig:
    """A rig to reconstruct; mesh frame, depth-first joint order, float32.

    vertices, normals (V, 3): where weights are decoded, the places of the welded surface. Each counts once,
    however many vertices a file's texture seams or flat shading put there. weights (V, J): the ground truth
    there, that of the place's first vertex; vertices of one place rarely differ. `example`:
    the surface cloud. encoder_rows (J, K) int64: the rows of the cloud that the encoder sees of each bone.
    """

    name: str
    vertices: Floats
    normals: Floats
    weights: Floats
    example: RigExample
    encoder_rows: NDArray[np.int64]


@dataclass(frozen=True)
class WeightScores:
    """Agreement of two weight matrices (V, J), all means over bones (columns).

    iou: IoU of the vertices above the threshold, 1 if neither side has one. l1: mean absolute difference over
    the vertices where either side is above the threshold, 0 if there is none. l1_dense: mean absolute
    difference over all vertices. mask_accuracy: share of the vertices on the right side of the threshold.
    """

    iou: float
    l1: float
    l1_dense: float
    mask_accuracy: float


@dataclass(frozen=True)
class SkinReportRow:
    """One VAE at one number of tokens per bone; the fields of WeightScores are means over rigs.

    iou_error: standard error of the mean IoU over rigs. codes_written: codes in all. codes_used: distinct
    codes; utilisation: their share of the codebook; perplexity: exp of the entropy (nats) of the codes'
    frequencies; all three are bounded by `codes_written`. bits_per_bone: tokens × log2(codebook).
    compression: bits of the dense weights (32 per vertex and bone) over bits of the codes.
    compression_sparse: bits of the influences alone (32 each for vertex and weight) over bits of the codes.
    """

    skin_vae: str
    tokens: int
    rigs: int
    bones: int
    iou: float
    iou_error: float
    l1: float
    l1_dense: float
    mask_accuracy: float
    codes_written: int
    codes_used: int
    utilisation: float
    perplexity: float
    bits_per_bone: float
    compression: float
    compression_sparse: float


def load_recipe(path: str, overrides: Sequence[str]) -> SkinReportRecipe:
    """Read and check a report recipe; raises RecipeError."""
    return build(SkinReportRecipe, read_recipe(path, overrides))


def held_out_rig(mesh: Mesh, rig: Rig, recipe: SkinReportRecipe, index: int) -> HeldOutRig:
    """Sample the cloud of one rig; a function of the mesh, the recipe and `index` alone."""
    rng = np.random.default_rng((recipe.seed, index))
    example = make_example(mesh, rig, recipe.points, recipe.dense_pool, recipe.vertices, rng)
    rows = skin_points(example, np.arange(len(example.joints)), recipe.encoder_points, rng)
    surface = weld_surface(mesh.vertices, mesh.faces)
    weights = depth_first(rig).weights[surface.source]
    return HeldOutRig(mesh.name, surface.points, surface.normals, weights, example, rows)


def held_out_rigs(recipe: SkinReportRecipe) -> list[HeldOutRig]:
    """The rigs of a recipe; refused files are reported on standard error. MeshError if none is usable."""
    if recipe.rigs is None:
        seeds = range(recipe.first_seed, recipe.first_seed + recipe.count)
        creatures = (make_creature(seed) for seed in seeds)
        pairs = [(creature.mesh, creature.rig) for creature in creatures]
    else:
        names = [recipe.rigs] if isinstance(recipe.rigs, str) else recipe.rigs
        folders = [name for name in names if is_prepared(name)]
        held_out = [one for folder in folders for one in PreparedRigs(folder, "eval")[: recipe.count]]
        pairs = [(one.mesh, one.rig) for one in held_out[: recipe.count]]
        files = [name for name in names if name not in folders]
        if files and len(pairs) < recipe.count:
            limits = RigLimits(max_joints=recipe.max_joints)
            pairs += _rigs_of_files(files, recipe.count - len(pairs), limits)
    return [held_out_rig(mesh, rig, recipe, index) for index, (mesh, rig) in enumerate(pairs)]


def _rigs_of_files(patterns: list[str], count: int, limits: RigLimits) -> list[tuple[Mesh, Rig]]:
    pairs: list[tuple[Mesh, Rig]] = []
    files = find_rigs(patterns)
    for line in rigs_passed_over(patterns):
        print(f"note: {line}", file=sys.stderr)
    for path in files:
        for one in read_rigs(path, limits):
            if isinstance(one, Refusal):
                print(f"skipped: {one}", file=sys.stderr)
            elif len(pairs) < count:
                pairs.append((one.rigged.mesh, one.rigged.rig))
        if len(pairs) == count:
            break
    if not pairs:
        why = f"none of the {len(files)} files contains a usable rig" if files else "no file matches"
        names = ", ".join(patterns)
        raise MeshError(f"{names}: {why}; check the path or pattern (quote patterns in the shell)")
    return pairs


def weight_scores(predicted: Floats, truth: Floats, threshold: float = 1e-2) -> WeightScores:
    """Compare weights (V, J) with V, J >= 1; predictions need not be normalised. See `WeightScores`.

    Raises ValueError for wrong or different shapes.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2 or not predicted.size:
        raise ValueError(
            f"weights must be two (V, J) arrays of the same shape, got {predicted.shape}, {truth.shape}"
        )
    a, b = predicted > threshold, truth > threshold
    both, either = (a & b).sum(axis=0), (a | b).sum(axis=0)
    difference = np.abs(predicted.astype(np.float64) - truth)
    some = np.maximum(either, 1)
    return WeightScores(
        iou=float(np.where(either > 0, both / some, 1.0).mean()),
        l1=float(((difference * (a | b)).sum(axis=0) / some).mean()),
        l1_dense=float(difference.mean()),
        mask_accuracy=float((a == b).mean()),
    )


def codebook_use(codes: NDArray[np.integer], size: int) -> tuple[int, float, float]:
    """(distinct codes, their share of `size`, perplexity) of a non-empty array of codes in [0, size)."""
    counts = np.bincount(np.ravel(codes), minlength=size)
    shares = counts[counts > 0] / counts.sum()
    return len(shares), len(shares) / size, float(np.exp(-(shares * np.log(shares)).sum()))


def token_lengths(vae: SkinVAE) -> list[int]:
    """Powers of two up to the number of learned queries, and that number; a single length with perceivers."""
    config = vae.config
    if config.has_perceivers:
        return [config.tokens_per_skin]
    return sorted({2**k for k in range(config.sample_tokens.bit_length())} | {config.sample_tokens})


@torch.no_grad()
def reconstruct(
    vae: SkinVAE, rig: HeldOutRig, lengths: Sequence[int]
) -> list[tuple[NDArray[np.int64], Floats]]:
    """(codes (J, tokens), decoded weights (V, J) at the vertices) for each number of tokens."""

    def tensor(values: Floats) -> torch.Tensor:
        return torch.from_numpy(values).to(vae.device)

    example, rows = rig.example, rig.encoder_rows
    cloud = (tensor(example.points[: example.uniform]), tensor(example.normals[: example.uniform]))
    condition = vae.encode_condition(*cloud)
    bones = np.arange(len(rows))[:, None]
    points, directions = tensor(example.points[rows]), tensor(example.normals[rows])
    encoder_weights = tensor(example.weights[rows, bones])
    vertices, normals = tensor(rig.vertices), tensor(rig.normals)
    result = []
    for tokens in lengths:
        codes = vae.encode_skin(points, directions, encoder_weights, tokens=tokens)
        weights = vae.decode(codes, condition, vertices, normals)
        result.append((codes.cpu().numpy(), weights.T.contiguous().cpu().numpy()))
    return result


def report(
    vae: SkinVAE,
    rigs: Sequence[HeldOutRig],
    lengths: Sequence[int],
    name: str = "skin VAE",
    threshold: float = 1e-2,
    progress: bool = False,
) -> list[SkinReportRow]:
    """One row per number of tokens: how well the leading tokens reconstruct the rigs' weights.

    All rigs weigh the same, and so do the bones of a rig. `vae` is in evaluation mode on any device; at least
    one rig.
    """
    codes: list[list[NDArray[np.int64]]] = [[] for _ in lengths]
    scores: list[list[WeightScores]] = [[] for _ in lengths]
    for rig in tqdm(rigs, desc=name, file=sys.stderr, disable=not progress):
        for place, (written, weights) in enumerate(reconstruct(vae, rig, lengths)):
            codes[place].append(written.ravel())
            scores[place].append(weight_scores(weights, rig.weights, threshold))
    size = vae.config.codebook_size
    dense = sum(rig.weights.size * 32 for rig in rigs)
    sparse = sum(int((rig.weights > threshold).sum()) * 64 for rig in rigs)
    rows = []
    for tokens, all_codes, all_scores in zip(lengths, codes, scores, strict=True):
        flat = np.concatenate(all_codes)
        bits = len(flat) * math.log2(size)
        used, utilisation, perplexity = codebook_use(flat, size)
        means = {
            one.name: float(np.mean([getattr(score, one.name) for score in all_scores]))
            for one in fields(WeightScores)
        }
        ious = np.array([score.iou for score in all_scores])
        rows.append(
            SkinReportRow(
                skin_vae=name,
                tokens=tokens,
                rigs=len(rigs),
                bones=sum(rig.weights.shape[1] for rig in rigs),
                **means,
                iou_error=float(ious.std(ddof=1) / math.sqrt(len(ious))) if len(ious) > 1 else 0.0,
                codes_written=len(flat),
                codes_used=used,
                utilisation=utilisation,
                perplexity=perplexity,
                bits_per_bone=tokens * math.log2(size),
                compression=dense / bits,
                compression_sparse=sparse / bits,
            )
        )
    return rows


def print_report(rows: Sequence[SkinReportRow], threshold: float, console: Console) -> None:
    """Print a table that lists, for each number of tokens, the VAEs (as letters) below each other."""
    first = rows[0]
    title = (
        f"reconstruction of {first.rigs} held-out rigs, {first.bones} bones; influence: above {threshold:g}"
    )
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))  # within 80 columns
    for heading in ("tokens", "", "IoU", "L1", "mask", "codes", "perplexity", "bits", "smaller"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = list(dict.fromkeys(row.skin_vae for row in rows))
    letters = {name: _letter(place) for place, name in enumerate(names)}
    for row in sorted(rows, key=lambda row: (row.tokens, names.index(row.skin_vae))):
        table.add_row(
            str(row.tokens),
            letters[row.skin_vae],
            f"{row.iou:.3f} ±{row.iou_error:.3f}",
            f"{row.l1:.4f}",
            f"{row.mask_accuracy:.1%}",
            f"{row.utilisation:.1%}",
            f"{row.perplexity:.0f}",
            f"{row.bits_per_bone:.0f}",
            f"{row.compression:.0f}×",
        )
    console.print(table)
    console.print("mask: accuracy; codes: share of the codebook used; smaller: than dense float32 weights")
    for name, letter in letters.items():
        console.print(f"{letter}: {name}", highlight=False, markup=False, soft_wrap=True)


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def write_report(rows: Sequence[SkinReportRow], folder: Path) -> None:
    """Write the rows to `skin_report.json` and `skin_report.csv`."""
    values = [asdict(row) for row in rows]
    write_atomic(folder / "skin_report.json", (json.dumps(values, indent=2) + "\n").encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(values[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    write_atomic(folder / "skin_report.csv", text.getvalue().encode())


def run(recipe: SkinReportRecipe, console: Console | None = None) -> list[SkinReportRow]:
    """Evaluate the recipe's skin VAEs; print the table and write JSON and CSV."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vaes = {name: _load_vae(name, device) for name in recipe.skin_vaes}
    lengths = {name: _lengths(recipe, name, vae) for name, vae in vaes.items()}
    output = Path(recipe.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"'output_dir' {output} cannot be created ({error}); choose another") from error
    rigs = held_out_rigs(recipe)
    rows = []
    for name, vae in vaes.items():
        rows += report(vae, rigs, lengths[name], name, recipe.threshold, progress=True)
    write_report(rows, output)
    print_report(rows, recipe.threshold, console or Console())
    return rows


def _load_vae(name: str, device: torch.device) -> SkinVAE:
    try:
        return SkinVAE.load(find_skin_vae(name, name), device, torch.float32)
    except (PolicyError, ValueError, SafetensorError) as error:
        raise RecipeError(f"'skin_vaes': {error}") from error


def _lengths(recipe: SkinReportRecipe, name: str, vae: SkinVAE) -> list[int]:
    if recipe.tokens is None:
        return token_lengths(vae)
    config = vae.config
    if config.has_perceivers:
        possible = [config.tokens_per_skin]
    elif config.is_learned_queries:
        possible = list(range(1, config.sample_tokens + 1))
    else:
        return recipe.tokens
    wrong = [tokens for tokens in recipe.tokens if tokens not in possible]
    if wrong:
        raise RecipeError(
            f"'tokens': '{name}' supports {possible[0]} to {possible[-1]} per bone, not {wrong[0]}"
        )
    return recipe.tokens


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m policy.skin_report recipes/skin_report.yaml 'skin_vaes=[A,B]'`."""
    return run_command(__doc__ or "", load_recipe, run, argv, "python -m policy.skin_report")


if __name__ == "__main__":
    sys.exit(main())
