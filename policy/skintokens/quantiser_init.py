"""Initialises the FSQ projections of a skin VAE from latents that were trained without quantisation."""

import torch
from torch import Tensor

from policy.skintokens.skin_vae import SkinVAE

# Standard deviation of a projected latent: keeps most of them well inside the tanh's range.
PROJECTED_STD = 0.9
MAX_NEWTON_STEPS = 50
NEWTON_BONES = 100  # enough for a mean; every Newton step backpropagates through the encoder
TOLERANCE = 0.05  # levels


@torch.no_grad()
def initialise_quantiser(vae: SkinVAE, points: Tensor, normals: Tensor, weights: Tensor) -> None:
    """Fit the FSQ projections of `vae` to its latents, in place, and offset its learned queries.

    `project_in` becomes the principal components of the latents over bones, scaled to `PROJECTED_STD`;
    `project_out` the least-squares map from codes back to latents. Without quantisation, training leaves the
    tokens of a bone copies of each other, and four would carry no more information than one. Newton steps on
    the learned queries therefore offset the mean projection of token k from that of token 0 by a fraction of
    a level: 1/2, 1/4, 3/4, 1/8, … (van der Corput).

    Args:
        vae: a VAE with FSQ projections (`fsq_dim` differs from the number of levels).
        points, normals: `(B, N, 3)` float32, mesh frame; B at least a few hundred bones.
        weights: `(B, N)` float32 in [0, 1]; all three as `SkinVAE.encode_latents` takes them.

    Deterministic for a VAE with learned queries. Source: this project.
    """
    with torch.autocast(points.device.type, enabled=False):
        tokens = vae.config.compress_tokens if vae.config.has_perceivers else vae.config.sample_tokens
        latents = vae.encode_latents(points, normals, weights, tokens)
        _fit_projection_in(vae, latents)
        if vae.config.is_learned_queries and not vae.config.has_perceivers:
            few = slice(NEWTON_BONES)
            _offset_queries(vae, points[few], normals[few], weights[few])
        moved = vae.encode_latents(points, normals, weights, tokens)
        _fit_projection_out(vae, moved, latents)


def _fit_projection_in(vae: SkinVAE, latents: Tensor) -> None:
    """Set `project_in` to the principal components of (B, S, D) latents, centred per token."""
    layer = vae.model.FSQ.project_in
    assert layer is not None
    centred = (latents - latents.mean(0)).flatten(0, 1).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = len(vae.config.fsq_levels)
    # Largest variance first: recipes list the dimensions with the most levels first.
    scale = PROJECTED_STD / variances.flip(0)[:kept].clamp(min=1e-12).sqrt()
    weight = (directions.flip(1)[:, :kept] * scale).T
    layer.weight.copy_(weight)
    layer.bias.copy_(-weight @ latents.mean((0, 1)).double() - vae.model.FSQ.shift(layer.bias.device))


def _offset_queries(vae: SkinVAE, points: Tensor, normals: Tensor, weights: Tensor) -> None:
    """Gauss-Newton on the learned queries until the mean projections of tokens lie at their offsets."""
    queries = vae.model.encoder.learned_queries
    assert queries is not None
    levels = torch.tensor(vae.config.fsq_levels, device=points.device)
    # One level in units before the tanh, at 0 where the tanh is steepest.
    step = 2.0 / (levels - 1)
    fractions = [_van_der_corput(token) for token in range(len(queries))]
    offsets = torch.tensor(fractions, device=points.device)[:, None] * step
    offsets = offsets - offsets.mean(0)

    target: Tensor | None = None
    for _ in range(MAX_NEWTON_STEPS):
        jacobians, means = _query_jacobians(vae, points, normals, weights)
        if target is None:  # keep the mean over tokens where it is
            target = means.mean(0) + offsets
        residual = target - means
        if (residual / step).abs().max() < TOLERANCE:
            break
        queries.data += torch.einsum("sck,sk->sc", torch.linalg.pinv(jacobians), residual)


def _query_jacobians(vae: SkinVAE, points: Tensor, normals: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobian (S, K, C) of each token's mean projection by its own learned query, and the means (S, K).

    One backward pass per dimension serves all tokens: the small cross effects between tokens are attributed
    to the token whose query causes them.
    """
    queries = vae.model.encoder.learned_queries
    assert queries is not None
    with torch.enable_grad():
        latents = vae.encode_latents(points, normals, weights, len(queries))
        means = vae.model.FSQ.project(latents).mean(0)
        rows = [torch.autograd.grad(value, queries, retain_graph=True)[0] for value in means.sum(0)]
    return torch.stack(rows, dim=1), means.detach()


def _fit_projection_out(vae: SkinVAE, moved: Tensor, latents: Tensor) -> None:
    """Set `project_out` to the least-squares map from the codes of `moved` to `latents`, (B, S, D) each."""
    fsq = vae.model.FSQ
    assert fsq.project_out is not None
    codes = fsq.quantize(fsq.project(moved)).flatten(0, 1).double()
    ones = torch.ones(len(codes), 1, dtype=codes.dtype, device=codes.device)
    solution = torch.linalg.lstsq(torch.cat([codes, ones], dim=1), latents.flatten(0, 1).double()).solution
    fsq.project_out.weight.copy_(solution[:-1].T)
    fsq.project_out.bias.copy_(solution[-1])


def _van_der_corput(index: int) -> float:
    """Van der Corput sequence in base 2: 0, 1/2, 1/4, 3/4, 1/8, …, digits mirrored at the radix point."""
    value, place = 0.0, 0.5
    while index:
        value += place * (index % 2)
        index, place = index // 2, place / 2
    return value
