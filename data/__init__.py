"""Meshes, rigs, sampling, files and procedural creatures: everything that knows no tokens."""

from data.creatures import CREATURE_KINDS, Creature, make_creature
from data.mesh import Mesh, MeshError, normalise
from data.rig import Rig, depth_first
from data.sampling import sample_surface, sample_surface_indexed, vertex_normals

__all__ = [
    "CREATURE_KINDS",
    "Creature",
    "Mesh",
    "MeshError",
    "Rig",
    "depth_first",
    "make_creature",
    "normalise",
    "sample_surface",
    "sample_surface_indexed",
    "vertex_normals",
]
