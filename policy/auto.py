"""Registers TokenRig with transformers: `import policy.auto`, then `AutoModelForCausalLM.from_pretrained`.

`AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer` then take a policy directory, or the name of a
repository on the Hugging Face Hub that holds one. They load the language model with its mesh encoder;
`policy.load` also loads the skin VAE, which turns SkinTokens into skinning weights.
"""

# Each class registers itself where it is defined.
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.modeling import TokenRigForCausalLM

__all__ = ["TokenRigConfig", "TokenRigForCausalLM"]
