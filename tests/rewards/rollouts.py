"""Creature meshes, random rollouts and a tiny skin VAE for the tests of the reward service."""

import numpy as np
import torch

from data import MeshSample, creature_samples
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from rewards import RewardSettings
from rewards.worker import RewardMesh, RolloutRig

SETTINGS = RewardSettings(resolution=24, max_scoring_vertices=300)


def tiny_vae(seed: int = 0) -> SkinVAE:
    """A VAE of a few thousand parameters, scaled so that rollouts and meshes get different skins."""
    torch.manual_seed(seed)
    vae = SkinVAE(
        SkinVAEConfig(
            tokens_per_skin=2,
            cond_tokens=8,
            compress_tokens=4,
            sample_tokens=4,
            latent_channels=16,
            fsq_dim=16,
            num_attention_heads=2,
            width_encoder=16,
            width_decoder=16,
            num_layers_encoder=1,
            num_layers_decoder=1,
            fsq_levels=(8, 8),
        )
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(3)
    return vae.eval().requires_grad_(False)


def reward_mesh(sample: MeshSample) -> RewardMesh:
    return RewardMesh(sample.name, sample.mesh.vertices, sample.mesh.faces, sample.points, sample.normals)


def meshes(count: int, first_seed: int = 0) -> list[RewardMesh]:
    """Different creatures with 64 surface points each."""
    return [reward_mesh(sample) for sample in creature_samples(count, first_seed, points=64)]


def flat_mesh(name: str = "flat") -> RewardMesh:
    """A mesh that cannot be scored: its only face has no area."""
    line = np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=np.float32)
    cloud = np.zeros((64, 3), dtype=np.float32)
    return RewardMesh(name, line, np.array([[0, 1, 2]]), cloud, cloud)


def rig(rng: np.random.Generator, joints: int) -> RolloutRig:
    parents = np.array([-1, *(int(rng.integers(child)) for child in range(1, joints))])
    return RolloutRig(
        rng.uniform(-1, 1, (joints, 3)).astype(np.float32), parents, rng.integers(64, size=(joints, 2))
    )


def group(seed: int, size: int, invalid: float = 0.0) -> list[RolloutRig | None]:
    """Rollouts of 1 to 9 joints; each is None (invalid) with probability `invalid`."""
    rng = np.random.default_rng(seed)
    return [None if rng.random() < invalid else rig(rng, int(rng.integers(1, 10))) for _ in range(size)]
