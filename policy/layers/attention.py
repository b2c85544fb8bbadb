"""Scaled dot-product attention: torch's fused kernel, or plain matrix products where those are faster."""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention without a mask: (B, H, Q, d), (B, H, T, d), (B, H, T, d) to (B, H, Q, d).

    On a CPU in bfloat16, the fused kernel's backward pass takes several times as long as the plain products
    (half of a training step of the small skin VAE), so training there uses the products.
    """
    trained = torch.is_grad_enabled() and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if not trained:
        return F.scaled_dot_product_attention(query, key, value)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)
