"""One step's inputs, shared by both sides: policy, meshes, embeddings, scoring meshes and poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.creatures import make_creature
from policy.bundle import RigPolicy
from policy.tokenrig.log_probs import row_uniforms
from rewards.score import RewardSettings, ScoringMesh, prepare_scoring_mesh
from rl.benchmarks.bounded_grammar import BoundedGrammar
from rl.benchmarks.sizes import Size, random_policy
from rl.rollout import row_seeds


@dataclass(frozen=True, eq=False)
class Workload:
    """M meshes with a group of rollouts each.

    Attributes:
        size, policy, grammar, device: as named.
        embeds: (M, T, hidden) conditioning.
        mesh_index: (B,) int64, rows of one mesh are neighbours.
        class_id: of the prompt.
        uniforms: (B, L) float64.
        condition: (C, latent) of the skin decoder; points, normals: (P, 3), where it decodes.
        scoring_mesh, settings, rotations: of the rewards.
    """

    size: Size
    policy: RigPolicy
    grammar: BoundedGrammar
    device: torch.device
    embeds: Tensor
    mesh_index: Tensor
    class_id: int
    uniforms: Tensor
    condition: Tensor
    points: Tensor
    normals: Tensor
    scoring_mesh: ScoringMesh
    settings: RewardSettings
    rotations: NDArray[np.float64]

    @property
    def prompt(self) -> Tensor:
        """(1, 2) int64, `<bos> <class>`."""
        return torch.tensor([[self.grammar.vocabulary.bos, self.class_id]], device=self.device)


def make_workload(size: Size, device: torch.device) -> Workload:
    """Random weights and embeddings, and one procedural creature as every mesh's surface."""
    policy = random_policy(size, device)
    vocabulary = size.vocabulary
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(size.meshes, size.mesh_tokens, size.hidden, generator=generator).to(device)
    creature = make_creature(5)
    settings = RewardSettings(max_scoring_vertices=size.points)
    mesh = prepare_scoring_mesh(creature.mesh.vertices, creature.mesh.faces, settings, "creature")
    places = torch.arange(size.points) % len(mesh.vertices)  # a creature may have fewer vertices
    points = torch.from_numpy(np.asarray(mesh.vertices, dtype=np.float32))[places].to(device)
    normals = torch.from_numpy(np.asarray(mesh.normals, dtype=np.float32))[places].to(device)
    with torch.no_grad():
        condition = policy.skin_vae.encode_condition(points, normals)[0]
    return Workload(
        size=size,
        policy=policy,
        grammar=BoundedGrammar(vocabulary, *size.joints),
        device=device,
        embeds=embeds,
        mesh_index=torch.arange(size.meshes).repeat_interleave(size.group),
        class_id=vocabulary.class_id("articulation"),
        uniforms=row_uniforms(row_seeds(size.rows, 0), size.most_tokens),
        condition=condition,
        points=points,
        normals=normals,
        scoring_mesh=mesh,
        settings=settings,
        rotations=settings.rotations(size.joints[1], 0),
    )
