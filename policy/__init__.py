"""The policy: rig tokenizer and grammar, TokenRig language model, skin VAE, and their pre-training.

Names are imported on first use, so a scoring worker that needs only the tokenizer does not load transformers.
`import policy.auto` registers TokenRig with transformers' Auto classes.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.bundle import DecodedRig as DecodedRig
    from policy.bundle import RigPolicy as RigPolicy
    from policy.bundle import load as load
    from policy.policy_folder import PolicyError as PolicyError
    from policy.skintokens.configuration import SkinVAEConfig as SkinVAEConfig
    from policy.skintokens.fsq import FSQ as FSQ
    from policy.skintokens.skin_vae import SkinVAE as SkinVAE
    from policy.tokenrig.configuration import TokenRigConfig as TokenRigConfig
    from policy.tokenrig.mesh_encoder import MeshEncoder as MeshEncoder
    from policy.tokenrig.mesh_encoder import MeshEncoderConfig as MeshEncoderConfig
    from policy.tokenrig.modeling import TokenRigForCausalLM as TokenRigForCausalLM
    from policy.tokenrig.modeling import TokenRigOutput as TokenRigOutput
    from policy.tokens.grammar import Grammar as Grammar
    from policy.tokens.vocabulary import Vocabulary as Vocabulary

_MODULES = {
    "DecodedRig": "bundle",
    "PolicyError": "policy_folder",
    "RigPolicy": "bundle",
    "load": "bundle",
    "TokenRigConfig": "tokenrig.configuration",
    "FSQ": "skintokens.fsq",
    "Grammar": "tokens.grammar",
    "MeshEncoder": "tokenrig.mesh_encoder",
    "MeshEncoderConfig": "tokenrig.mesh_encoder",
    "TokenRigForCausalLM": "tokenrig.modeling",
    "TokenRigOutput": "tokenrig.modeling",
    "SkinVAE": "skintokens.skin_vae",
    "SkinVAEConfig": "skintokens.configuration",
    "Vocabulary": "tokens.vocabulary",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'policy' has no attribute '{name}'")
    return getattr(importlib.import_module(f"policy.{_MODULES[name]}"), name)
