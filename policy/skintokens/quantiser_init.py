"""From latents trained without quantisation to codes: set the FSQ projections to what the latents need."""

import torch
from torch import Tensor

from policy.skintokens.skin_vae import SkinVAE

# Deviation of a projected latent: the tanh of most of them is then well inside its range.
SPREAD = 0.9
MAX_NEWTON_STEPS = 50
NEWTON_BONES = 100  # a mean over these will do, and each step goes back through the encoder
TOLERANCE = 0.05  # levels


@torch.no_grad()
def initialise_quantiser(vae: SkinVAE, points: Tensor, normals: Tensor, weights: Tensor) -> None:
    """Set, in place, the projections into and out of the code of `vae`, and spread its tokens.

    In: the directions in which latents of different bones differ most, at one deviation. Out: the least
    squares way back to the latents. Trained without quantisation, the tokens of a bone are copies of each
    other, and four would tell no more than one; so the learned queries are moved until token k lies a
    fraction of a level (1/2, 1/4, 3/4, 1/8, …) beside the first.

    points, normals (B, N, 3) float32, mesh frame, weights (B, N) float32 in [0, 1]: bones as
    `SkinVAE.encode_latents` takes them, B at least some hundred. The VAE must project into its code
    (`fsq_dim` other than the number of levels). Draws nothing at random for a VAE with learned queries.
    Source: this project.
    """
    with torch.autocast(points.device.type, enabled=False):
        tokens = vae.config.compress_tokens if vae.config.has_perceivers else vae.config.sample_tokens
        latents = vae.encode_latents(points, normals, weights, tokens)
        _fit_projection_in(vae, latents)
        if vae.config.is_learned_queries and not vae.config.has_perceivers:
            few = slice(NEWTON_BONES)
            _spread_tokens(vae, points[few], normals[few], weights[few])
        moved = vae.encode_latents(points, normals, weights, tokens)
        _fit_projection_out(vae, moved, latents)


def _fit_projection_in(vae: SkinVAE, latents: Tensor) -> None:
    """Principal directions of (B, S, D) latents about each token's mean, scaled to SPREAD."""
    layer = vae.model.FSQ.project_in
    assert layer is not None
    differences = (latents - latents.mean(0)).flatten(0, 1).double()
    variances, directions = torch.linalg.eigh(differences.T @ differences / len(differences))
    kept = len(vae.config.fsq_levels)
    # Levels are listed from many to few in recipes: so are the variances.
    scale = SPREAD / variances.flip(0)[:kept].clamp(min=1e-12).sqrt()
    weight = (directions.flip(1)[:, :kept] * scale).T
    layer.weight.copy_(weight)
    layer.bias.copy_(-weight @ latents.mean((0, 1)).double() - vae.model.FSQ.shift(layer.bias.device))


def _spread_tokens(vae: SkinVAE, points: Tensor, normals: Tensor, weights: Tensor) -> None:
    """Gauss-Newton on the learned queries: the mean projection of token k moves beside that of token 0."""
    queries = vae.model.encoder.learned_queries
    assert queries is not None
    levels = torch.tensor(vae.config.fsq_levels, device=points.device)
    # Fractions of a level, in the unit before the tanh, which is steepest at 0.
    step = 2.0 / (levels - 1)
    fractions = [_van_der_corput(token) for token in range(len(queries))]
    wanted = torch.tensor(fractions, device=points.device)[:, None] * step
    wanted = wanted - wanted.mean(0)

    target: Tensor | None = None
    for _ in range(MAX_NEWTON_STEPS):
        jacobians, means = _query_jacobians(vae, points, normals, weights)
        if target is None:  # tokens spread about where they begin
            target = means.mean(0) + wanted
        missing = target - means
        if (missing / step).abs().max() < TOLERANCE:
            break
        queries.data += torch.einsum("sck,sk->sc", torch.linalg.pinv(jacobians), missing)


def _query_jacobians(vae: SkinVAE, points: Tensor, normals: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(S, K, C) how each token's mean projection changes with its own learned query, and the means (S, K).

    A token's small effect on the others is counted as the others' own, so that all take one backward pass.
    """
    queries = vae.model.encoder.learned_queries
    assert queries is not None
    with torch.enable_grad():
        latents = vae.encode_latents(points, normals, weights, len(queries))
        means = vae.model.FSQ.project(latents).mean(0)
        rows = [torch.autograd.grad(value, queries, retain_graph=True)[0] for value in means.sum(0)]
    return torch.stack(rows, dim=1), means.detach()


def _fit_projection_out(vae: SkinVAE, moved: Tensor, latents: Tensor) -> None:
    """Least squares from the codes of `moved` latents to `latents`, (B, S, D) each."""
    fsq = vae.model.FSQ
    assert fsq.project_out is not None
    codes = fsq.quantize(fsq.project(moved)).flatten(0, 1).double()
    ones = torch.ones(len(codes), 1, dtype=codes.dtype, device=codes.device)
    solution = torch.linalg.lstsq(torch.cat([codes, ones], dim=1), latents.flatten(0, 1).double()).solution
    fsq.project_out.weight.copy_(solution[:-1].T)
    fsq.project_out.bias.copy_(solution[-1])


def _van_der_corput(index: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, …: the binary digits of `index` behind the point, in reverse."""
    value, place = 0.0, 0.5
    while index:
        value += place * (index % 2)
        index, place = index // 2, place / 2
    return value
