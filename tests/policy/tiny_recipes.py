"""Recipes of both pre-training stages small enough to run in a second, and what a run leaves behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from data import make_creature, write_skinned_glb
from data.prepare import PrepareSettings, prepare
from data.sets.prepared import write_manifest

SKIN_VAE = {
    "model": {
        "tokens_per_skin": 2,
        "cond_tokens": 6,
        "compress_tokens": 4,
        "sample_tokens": 4,
        "latent_channels": 16,
        "fsq_dim": 16,
        "num_attention_heads": 2,
        "width_encoder": 16,
        "width_decoder": 16,
        "num_layers_encoder": 1,
        "num_layers_decoder": 1,
        "fsq_levels": [8, 8],
    },
    "data": {"points": 48, "dense_pool": 48, "vertices": 48},
    "bones_per_mesh": 3,
    "encoder_points": 20,
    "query_points": 24,
    "loop": {
        "max_steps": 6,
        "batch_size": 2,
        "warmup_steps": 2,
        "logging_steps": 2,
        "save_steps": 3,
        "dataloader_workers": 0,
    },
}

TOKENRIG = {
    "mesh_encoder": {"width": 16, "heads": 2, "num_encoder_layers": 1, "token_num": 6},
    "language_model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 32,
    },
    "data": {"points": 48, "dense_pool": 48, "vertices": 48},
    "encoder_points": 20,
    "skeleton_only_steps": 3,
    "loop": SKIN_VAE["loop"],
}


def write(folder: Path, recipe: dict[str, Any], name: str = "recipe.yaml") -> str:
    """Write a recipe with its output directory inside `folder`; the file's path."""
    loop = {**recipe["loop"], "output_dir": str(folder / "run")}
    path = folder / name
    path.write_text(yaml.safe_dump({**recipe, "loop": loop}))
    return str(path)


UNUSABLE = ("nowhere", "empty", "broken", "all held out", "prepared as files", "too large")


def unusable_source(folder: Path, kind: str) -> tuple[str, str]:
    """Override with rigs of one of the UNUSABLE kinds, and the start of the error message it must give."""
    rigs = folder / "rigs"
    rigs.mkdir()
    if kind == "empty":
        return f"data.sources=[{{files: {rigs}}}]", f"error: {rigs}: no file matches; check the path"
    if kind == "broken":
        (rigs / "cut.glb").write_bytes(b"glTF")
        (rigs / "nothing.glb").write_bytes(b"")
        override = f"data.sources=[{{files: {rigs}}}]"
        return override, f"error: {rigs}: none of the 2 files is a usable rig; fix or replace them:"
    if kind == "nowhere":
        expected = (
            f"error: {rigs}/manifest.json: cannot be read (No such file or directory); create the folder"
        )
        return f"data.sources=[{{prepared: {rigs}}}]", expected
    for seed in range(2):
        creature = make_creature(seed)
        write_skinned_glb(rigs / f"{seed}.glb", creature.mesh, creature.rig)
    prepared = folder / "prepared"
    manifest = prepare([rigs], prepared, PrepareSettings(eval_share=0.5))
    override = f"data.sources=[{{prepared: {prepared}}}]"
    if kind == "prepared as files":
        expected = f"error: {prepared}: this is a folder of prepared rigs; use 'prepared'"
        return override.replace("prepared:", "files:"), expected
    if kind == "too large":
        override = f"data={{sources: [{{prepared: {prepared}}}], max_joints: 1}}"
        return override, f"error: {prepared}: all 1 training rigs have more than 1 joints"
    held_out = tuple(replace(rig, split="eval") for rig in manifest.rigs)
    write_manifest(prepared, replace(manifest, rigs=held_out))
    return (
        override,
        f"error: {prepared}: no rigs in the 'train' split; run `python -m data.prepare` with more rigs or "
        "a different --eval",
    )


def metrics(output: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without their timings."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("seconds_per_step") > 0 for line in lines)
    return lines
