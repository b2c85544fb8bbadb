"""Parses a released TokenRig checkpoint: checked configurations and tensors of TokenRig and its skin VAE."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policy.released.checkpoint import Checkpoint, CheckpointError
from policy.released.rig_settings import parse_rig_config, rig_model_settings
from policy.released.tensors import EMBEDDING, HEAD, VAE_PREFIX, check_tensors, model_shapes, vae_shapes
from policy.released.vae_settings import infer_vae_config, parse_vae_config
from policy.skintokens.configuration import SkinVAEConfig
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.modeling import TokenRigForCausalLM


@dataclass(frozen=True)
class Release:
    """A released TokenRig checkpoint, parsed and checked.

    Attributes:
        config, vae_config: configurations of TokenRig and the skin VAE.
        model, vae: their tensors by this project's names, in the stored dtypes, without a tied head.
        unused, other_entries: names of the file's tensors and top-level entries that are dropped.
        notes: sentences for the user about assumed settings.
    """

    config: TokenRigConfig
    vae_config: SkinVAEConfig
    model: dict[str, Tensor]
    vae: dict[str, Tensor]
    unused: tuple[str, ...]
    other_entries: tuple[str, ...]
    notes: tuple[str, ...]


def parse_release(rig: Checkpoint, vae: Checkpoint | None = None, rounded_constants: bool = True) -> Release:
    """Parse a TokenRig checkpoint and check its tensors against its configuration.

    Args:
        rig: the TokenRig checkpoint, which also holds the VAE's weights.
        vae: the VAE checkpoint, read for its settings; released settings are assumed if not given.
        rounded_constants: see `SkinVAEConfig`.

    Raises:
        CheckpointError: unsupported settings, missing or unexpected tensors, wrong shapes.
    """
    notes: list[str] = []
    settings = rig_model_settings(rig)
    tokens_per_skin = int(settings["tokens_per_skin"])
    if vae is not None:
        vae_config = parse_vae_config(vae, tokens_per_skin, rounded_constants)
        cond_tokens = settings.get("tokens_skin_cond", vae_config.cond_tokens)
        if cond_tokens != vae_config.cond_tokens:
            notes.append(
                f"the TokenRig checkpoint sets {cond_tokens} condition latents, the VAE checkpoint "
                f"{vae_config.cond_tokens}: using the VAE's"
            )
    else:
        vae_config = infer_vae_config(rig, settings, tokens_per_skin, rounded_constants)
        notes.append(
            f"no --vae given: assumed the released {vae_config.num_attention_heads} heads, FSQ levels "
            f"{list(vae_config.fsq_levels)}, frequencies with pi and PMPE for the skin VAE"
        )
    config = parse_rig_config(rig, vae_config.codebook_size)
    expected = {
        **{VAE_PREFIX + name: shape for name, shape in vae_shapes(vae_config).items()},
        **model_shapes(config),
    }
    unused = check_tensors(str(rig.path), rig.tensors, expected, vae_assumed=vae is None)
    tensors = {name: rig.tensors[name] for name in expected}
    if config.tie_word_embeddings:
        if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
            raise CheckpointError(
                f"{rig.path}: {HEAD} differs from {EMBEDDING} although the configuration ties them; set "
                "tie_word_embeddings to False in its model_config.llm"
            )
        del tensors[HEAD]
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    common = max(set(dtypes.values()), key=list(dtypes.values()).count)
    config.dtype = getattr(torch, common)
    config.architectures = [TokenRigForCausalLM.__name__]
    config.release = {
        "dtype": common,
        "other_dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != common},
        **_serialise(rig.hyper_parameters),
    }
    return Release(
        config=config,
        vae_config=vae_config,
        model={name: t for name, t in tensors.items() if not name.startswith(VAE_PREFIX)},
        vae={name[len(VAE_PREFIX) :]: t for name, t in tensors.items() if name.startswith(VAE_PREFIX)},
        unused=unused,
        other_entries=rig.other_entries,
        notes=tuple(notes),
    )


def _serialise(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as an entry of config.json: JSON, or a Python literal if JSON would change them."""
    plain = dict(hyper_parameters)
    try:
        if json.loads(json.dumps(plain)) == plain:
            return {"hyper_parameters": plain}
    except (TypeError, ValueError):
        pass
    text = repr(plain)
    try:
        unchanged = ast.literal_eval(text) == plain
    except (ValueError, SyntaxError):
        unchanged = False
    # Anything else is rebuilt from the configuration at export, or kept exactly by `--like`.
    return {"hyper_parameters_literal": text} if unchanged else {}
