"""The policy: rig tokenizer and grammar, SkinTokens VAE, mesh encoder and the TokenRig language model.

Names are imported on first use: a scoring worker which needs the tokenizer does not load transformers. The
Auto classes of transformers know TokenRig once `policy.TokenRigForCausalLM` has been used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.bundle import DecodedRig as DecodedRig
    from policy.bundle import PolicyError as PolicyError
    from policy.bundle import RigPolicy as RigPolicy
    from policy.bundle import load as load
    from policy.configuration_tokenrig import TokenRigConfig as TokenRigConfig
    from policy.fsq import FSQ as FSQ
    from policy.grammar import Grammar as Grammar
    from policy.mesh_encoder import MeshEncoder as MeshEncoder
    from policy.mesh_encoder import MeshEncoderConfig as MeshEncoderConfig
    from policy.modeling_tokenrig import TokenRigForCausalLM as TokenRigForCausalLM
    from policy.modeling_tokenrig import TokenRigOutput as TokenRigOutput
    from policy.skin_vae import SkinVAE as SkinVAE
    from policy.skin_vae import SkinVAEConfig as SkinVAEConfig
    from policy.vocabulary import Vocabulary as Vocabulary

_HOME = {
    "DecodedRig": "bundle",
    "PolicyError": "bundle",
    "RigPolicy": "bundle",
    "load": "bundle",
    "TokenRigConfig": "configuration_tokenrig",
    "FSQ": "fsq",
    "Grammar": "grammar",
    "MeshEncoder": "mesh_encoder",
    "MeshEncoderConfig": "mesh_encoder",
    "TokenRigForCausalLM": "modeling_tokenrig",
    "TokenRigOutput": "modeling_tokenrig",
    "SkinVAE": "skin_vae",
    "SkinVAEConfig": "skin_vae",
    "Vocabulary": "vocabulary",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'policy' has no attribute '{name}'")
    return getattr(importlib.import_module(f"policy.{_HOME[name]}"), name)
