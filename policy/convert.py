"""`python -m policy.convert`: imports released `.ckpt` files as policy directories and exports them back."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from policy.bundle import atomic_directory, load_model
from policy.layers.finite import non_finite_names
from policy.policy_folder import (
    SKIN_VAE_FOLDER,
    NoSkinVAEError,
    PolicyError,
    adapter_base,
    check_replaceable,
    find_skin_vae,
    refuse_stand_ins,
)
from policy.released.checkpoint import (
    CheckpointError,
    file_sha256,
    read_checkpoint,
    read_safetensors,
    write_checkpoint,
    write_patched_copy,
    write_safetensors,
    write_sha256,
)
from policy.released.release import Release, parse_release
from policy.released.rig_settings import parse_rig_config, rig_hyper_parameters
from policy.released.tensors import (
    EMBEDDING,
    HEAD,
    VAE_PREFIX,
    check_finite,
    check_tensors,
    model_shapes,
    release_order,
    stored_dtypes,
    vae_shapes,
)
from policy.released.vae_settings import is_vae_checkpoint, parse_vae_config, vae_hyper_parameters
from policy.skintokens.configuration import SkinVAEConfig
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokens.text_tokenizer import build_text_tokenizer

WEIGHTS_FILE = "model.safetensors"

# Tensors of the skin VAE that pre-training needs and generation of rigs does not (specification, section 2).
_ENCODING_ONLY = ("model.encoder.", "model.quant.", "model.FSQ.project_in.", "down_perceiver.")


def import_checkpoint(
    checkpoint: str | Path, out: str | Path, vae: str | Path | None = None, rounded_constants: bool = True
) -> Release:
    """Convert a released or exported `.ckpt` to a policy directory.

    Weights keep their dtype and are copied from the memory-mapped file straight to the new one. The directory
    is written atomically and replaces an existing policy.

    Args:
        checkpoint: the TokenRig checkpoint.
        out: the policy directory to write.
        vae: the VAE checkpoint, read for its settings; released settings are assumed if not given.
        rounded_constants: decode with embedding constants rounded to bf16, as the release does.

    Raises:
        CheckpointError: a file cannot be read, holds something else, or has weights that are not finite.
        PolicyError: `out` exists and is not a policy.
    """
    target = Path(out)
    check_replaceable(target)
    rig = read_checkpoint(checkpoint)
    check_finite(rig.path, rig.tensors)
    release = parse_release(rig, None if vae is None else read_checkpoint(vae), rounded_constants)
    with atomic_directory(target) as folder:
        release.config.save_pretrained(folder)
        build_text_tokenizer(release.config.get_vocabulary()).save_pretrained(folder)
        write_safetensors(folder / WEIGHTS_FILE, release.model)
        skin = folder / SKIN_VAE_FOLDER
        skin.mkdir()
        (skin / "config.json").write_text(json.dumps(release.vae_config.to_dict(), indent=2) + "\n")
        write_safetensors(skin / WEIGHTS_FILE, release.vae)
        for path in (folder / WEIGHTS_FILE, skin / WEIGHTS_FILE):
            write_sha256(path)
    return release


def export_checkpoint(
    directory: str | Path,
    out: str | Path,
    like: str | Path | None = None,
    skin_vae: str | Path | None = None,
    vae_out: str | Path | None = None,
) -> str:
    """Convert a policy to a `.ckpt` that the released code loads.

    Args:
        directory: a policy directory or a trainer's `checkpoint-N`; PEFT adapters are merged.
        out: the file to write, atomically.
        like: the `.ckpt` that the policy was imported from. Its keys, dtypes, hyper-parameters and unchanged
            weights are kept byte for byte, and its VAE's weights if the directory has no skin VAE.
        skin_vae: a policy directory with the skin VAE, for a directory without one.
        vae_out: also write the VAE checkpoint here, for policies that were not imported.

    Returns:
        SHA-256 of `out`, hexadecimal; also written to `out.sha256`.

    Raises:
        CheckpointError: weights do not match the configuration or the original, or are not finite.
        PolicyError: the directory is not a policy, or there is no skin VAE.
    """
    source = Path(directory)
    config, tensors = _read_model(source)
    check_tensors(str(source), tensors, model_shapes(config))
    check_finite(source, tensors)
    try:
        folder = find_skin_vae(source, skin_vae)
    except NoSkinVAEError:
        if like is None or skin_vae is not None or vae_out is not None:
            raise
        folder = None
    vae_config = None
    if folder is not None:
        vae_config, skin = _read_skin_vae(folder)
        check_finite(folder, skin)
        tensors.update({VAE_PREFIX + name: tensor for name, tensor in skin.items()})
        if vae_out is not None:
            names = {"model." + name: tensor for name, tensor in _in_stored_dtypes(config, skin).items()}
            write_checkpoint(vae_out, names, vae_hyper_parameters(vae_config))
            write_sha256(vae_out)
    if like is not None:
        original = read_checkpoint(like)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_tensors(str(like), {name: t for name, t in original.tensors.items() if name in shapes}, shapes)
        write_patched_copy(out, like, tensors)
    else:
        assert vae_config is not None
        stored = _in_stored_dtypes(
            config, {name: tensors[name] for name in release_order(config, vae_config)}
        )
        if config.tie_word_embeddings:
            stored[HEAD] = stored[EMBEDDING]
        names = {"model." + name: tensor for name, tensor in stored.items()}
        write_checkpoint(out, names, rig_hyper_parameters(config, vae_config))
    return write_sha256(out)


def _read_model(source: Path) -> tuple[TokenRigConfig, dict[str, Tensor]]:
    """TokenRig's configuration and tensors, tied head included, of a policy, a `checkpoint-N` or adapters."""
    if adapter_base(source) is not None:
        model = load_model(source, torch.float32)  # merging adapters in bf16 would round twice
        return model.config, dict(model.state_dict())
    refuse_stand_ins(source)
    config = _read_config(source)
    tensors = read_safetensors(sorted(source.glob("model*.safetensors")))
    if not tensors:
        raise PolicyError(f"{source}: no {WEIGHTS_FILE}; the policy was not saved completely, save it again")
    if config.tie_word_embeddings and EMBEDDING in tensors:
        tensors[HEAD] = tensors[EMBEDDING]
    return config, tensors


def _read_config(source: Path) -> TokenRigConfig:
    path = source / "config.json"
    if not path.is_file():
        raise PolicyError(f"{source}: no config.json; pass a policy directory or a .ckpt file")
    try:
        values = json.loads(path.read_text())
        kind = values.get("model_type")
        if kind != "tokenrig":
            raise PolicyError(f"{source}: holds a model of type {kind!r}; pass a TokenRig policy")
        return TokenRigConfig.from_dict(values)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: not a JSON object ({error}); restore the file") from error


def _read_skin_vae(folder: Path) -> tuple[SkinVAEConfig, dict[str, Tensor]]:
    config = SkinVAEConfig.from_dict(json.loads((folder / "config.json").read_text()))
    tensors = read_safetensors([folder / WEIGHTS_FILE])
    check_tensors(str(folder), tensors, vae_shapes(config))
    return config, tensors


def _in_stored_dtypes(config: TokenRigConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors converted to the dtypes of the imported file."""
    dtypes = stored_dtypes(config, tensors)
    return {name: tensor.to(dtypes[name]).contiguous() for name, tensor in tensors.items()}


# ----------------------------------------------------------------- summary


def describe(path: str | Path) -> list[str]:
    """Summarise a TokenRig or VAE checkpoint or a policy directory, as lines of text.

    Raises CheckpointError and PolicyError for any other path.
    """
    source = Path(path)
    if source.is_dir():
        return _describe_directory(source)
    checkpoint = read_checkpoint(source)
    lines = [f"{source}: {len(checkpoint.tensors)} tensors"]
    if is_vae_checkpoint(checkpoint):
        vae_config = parse_vae_config(checkpoint)
        extra = check_tensors(str(source), checkpoint.tensors, vae_shapes(vae_config))
        lines += [*_weights_lines({"skin VAE": checkpoint.tensors}), *_vae_lines(vae_config)]
    else:
        config = parse_rig_config(checkpoint)
        skin = {name: t for name, t in checkpoint.tensors.items() if name.startswith(VAE_PREFIX)}
        own = {name: t for name, t in checkpoint.tensors.items() if name not in skin}
        extra = check_tensors(str(source), own, model_shapes(config))
        if config.tie_word_embeddings:
            del own[HEAD]
        lines += [*_weights_lines({**_by_part(own), "skin VAE": skin}), *_config_lines(config)]
    lines += _unused_lines(extra, checkpoint.other_entries)
    return [*lines, *_checksum_lines([source])]


def _describe_directory(source: Path) -> list[str]:
    lines = [f"{source}: policy directory"]
    base = adapter_base(source)
    if base is not None:
        adapters = read_safetensors(sorted(source.glob("adapter_model*.safetensors")))
        lines = [f"{source}: PEFT adapters of {base}", *_weights_lines({"adapters": adapters})]
    home = source if base is None else base
    config, tensors = _read_model(home)
    check_tensors(str(home), tensors, model_shapes(config))
    tensors = {name: t for name, t in tensors.items() if not (config.tie_word_embeddings and name == HEAD)}
    try:
        folder = find_skin_vae(source)
    except NoSkinVAEError:
        return [
            *lines,
            *_weights_lines(_by_part(tensors)),
            *_config_lines(config),
            "  no skin VAE in this directory",
        ]
    vae_config, skin = _read_skin_vae(folder)
    lines += [*_weights_lines({**_by_part(tensors), "skin VAE": skin}), *_config_lines(config)]
    return [*lines, *_vae_lines(vae_config), *_checksum_lines([home / WEIGHTS_FILE, folder / WEIGHTS_FILE])]


def _release_lines(release: Release) -> list[str]:
    encoder_only = [name for name in release.vae if name.startswith(_ENCODING_ONLY)]
    parts = {**_by_part(release.model), "skin VAE": release.vae}
    return [
        *_weights_lines(parts),
        *_config_lines(release.config),
        *_vae_lines(release.vae_config),
        f"  {len(encoder_only)} tensors of the skin VAE are used for encoding only, not for rigging",
    ]


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    titles = {"mesh_encoder": "mesh encoder", "output_proj": "projection", "transformer": "language model"}
    return {
        title: {name: tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
        for part, title in titles.items()
    }


def _weights_lines(parts: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    lines = []
    for title, tensors in parts.items():
        count = sum(tensor.numel() for tensor in tensors.values())
        dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
        lines.append(f"  {title:15} {count:>13,} parameters in {len(tensors)} tensors, {', '.join(dtypes)}")
        bad = non_finite_names(tensors.items())
        if bad:
            lines.append(f"  {'':15} {len(bad)} of them NOT FINITE, such as {bad[0]}")
    return lines


def _config_lines(config: TokenRigConfig) -> list[str]:
    vocabulary, encoder = config.get_vocabulary(), config.get_mesh_encoder()
    return [
        f"  vocabulary {vocabulary.size:,}: {vocabulary.skin_first} skeleton tokens, codebook "
        f"{vocabulary.codebook:,}, final eos; {vocabulary.tokens_per_skin} SkinTokens per bone; classes "
        f"{', '.join(vocabulary.classes)}",
        f"  language model: {config.num_hidden_layers} layers, {config.num_attention_heads}/"
        f"{config.num_key_value_heads} heads, hidden {config.hidden_size}; "
        f"mesh encoder: {encoder.heads} heads, {encoder.tokens} tokens",
    ]


def _vae_lines(config: SkinVAEConfig) -> list[str]:
    constants = "rounded to bf16" if config.rounded_constants else "in full precision"
    return [
        f"  skin VAE: FSQ levels {list(config.fsq_levels)}, {config.num_attention_heads} heads, "
        f"{config.cond_tokens} condition latents; embedding constants {constants}"
    ]


def _unused_lines(tensors: Iterable[str], entries: Iterable[str]) -> list[str]:
    lines = []
    for title, names in (("tensors", list(tensors)), ("entries", list(entries))):
        if names:
            lines.append(f"  unused {title}: {', '.join(names)}")
    return lines or ["  no unused tensors or entries"]


def _checksum_lines(paths: Iterable[Path]) -> list[str]:
    lines = []
    for path in paths:
        checksum = path.with_name(path.name + ".sha256")
        if checksum.is_file():
            matches = checksum.read_text().split(" ")[0] == file_sha256(path)
            lines.append(f"  {path}: {'matches' if matches else 'DIFFERS FROM'} {checksum.name}")
    return lines


# ------------------------------------------------------------ command line


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of `python -m policy.convert`."""
    parser = argparse.ArgumentParser(
        prog="python -m policy.convert",
        description="Import released .ckpt checkpoints as policy directories and export policies as .ckpt.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    reader = commands.add_parser("import", help="convert a .ckpt to a policy directory")
    reader.add_argument("checkpoint", metavar="CKPT", help="TokenRig checkpoint, such as grpo_1400.ckpt")
    reader.add_argument(
        "--vae", metavar="VAE_CKPT", help="VAE checkpoint, such as skin_vae_2_10_32768/last.ckpt"
    )
    reader.add_argument("--out", metavar="DIR", required=True, help="policy directory to write")
    reader.add_argument(
        "--exact-constants",
        action="store_true",
        help="decode with embedding constants in full precision; the release rounds them to bf16",
    )
    writer = commands.add_parser("export", help="convert a policy directory or checkpoint-N to a .ckpt")
    writer.add_argument("directory", metavar="DIR", help="policy directory or a trainer's checkpoint-N")
    writer.add_argument("--out", metavar="CKPT", required=True, help="file to write")
    writer.add_argument(
        "--like", metavar="ORIGINAL_CKPT", help="copy this file and replace only the changed weights"
    )
    writer.add_argument(
        "--skin-vae", metavar="DIR", help="policy directory that provides the skin VAE of a checkpoint-N"
    )
    writer.add_argument("--vae-out", metavar="VAE_CKPT", help="also write a VAE checkpoint")
    viewer = commands.add_parser("info", help="summarise a .ckpt or a policy directory")
    viewer.add_argument("path", metavar="PATH")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 with one line on stderr for an error that the user can fix."""
    options = build_parser().parse_args(arguments)
    try:
        with torch.no_grad():
            for line in _run(options):
                print(line)
    except (CheckpointError, PolicyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> list[str]:
    if options.command == "info":
        return describe(options.path)
    if options.command == "import":
        release = import_checkpoint(
            options.checkpoint, options.out, options.vae, rounded_constants=not options.exact_constants
        )
        return [
            f"{options.out}: imported {options.checkpoint}",
            *_release_lines(release),
            *_unused_lines(release.unused, release.other_entries),
            *(f"note: {note}" for note in release.notes),
        ]
    digest = export_checkpoint(
        options.directory, options.out, options.like, options.skin_vae, options.vae_out
    )
    return [f"{options.out}: exported {options.directory}", f"  sha256 {digest}"]


if __name__ == "__main__":
    sys.exit(main())
