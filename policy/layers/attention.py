"""Attention of the mesh encoder and the skin VAE: torch's fused kernel, or products where it is slow."""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention without mask: (B, H, Q, d), (B, H, T, d), (B, H, T, d) to (B, H, Q, d).

    On a CPU the backward pass of the fused kernel takes several times as long in bfloat16 as the products
    it is made of (half of a training step of the small skin VAE), so that training there spells them out.
    """
    trained = torch.is_grad_enabled() and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if not trained:
        return F.scaled_dot_product_attention(query, key, value)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)
