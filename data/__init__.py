"""Meshes and rigs: files, procedural creatures, sampling, augmentation and data sets; no tokens."""

from data.augment.augment import AugmentRecipe, augmented
from data.creatures import CREATURE_KINDS, Creature, make_creature
from data.formats.load import (
    MAX_BYTES,
    MAX_FACES,
    MESH_SUFFIXES,
    Asset,
    Refusal,
    find_meshes,
    load_asset,
    load_mesh,
    load_meshes,
)
from data.formats.rig_formats import RigLimits, find_rigs, read_rigs
from data.formats.rig_npz import RiggedMesh, read_rig_npz, write_rig_npz
from data.formats.rig_repair import RepairedRig
from data.gltf.skinned import read_skinned_glb, write_skinned_glb
from data.mesh import Mesh, MeshError, normalise
from data.rig import Rig, depth_first
from data.sampling import sample_surface, sample_surface_indexed, vertex_normals
from data.sets.dataset import (
    EVAL_FIRST_SEED,
    TRAIN_FIRST_SEED,
    MeshSample,
    creature_samples,
    file_samples,
    make_sample,
    prepared_samples,
    split,
)
from data.sets.mixture import Mixture, MixtureSource, prepared_mixture
from data.sets.prepared import PreparedRigs, read_manifest

__all__ = [
    "CREATURE_KINDS",
    "EVAL_FIRST_SEED",
    "MAX_BYTES",
    "MAX_FACES",
    "MESH_SUFFIXES",
    "TRAIN_FIRST_SEED",
    "Asset",
    "AugmentRecipe",
    "Creature",
    "Mesh",
    "MeshError",
    "MeshSample",
    "Mixture",
    "MixtureSource",
    "PreparedRigs",
    "Refusal",
    "RepairedRig",
    "Rig",
    "RigLimits",
    "RiggedMesh",
    "augmented",
    "creature_samples",
    "depth_first",
    "file_samples",
    "find_meshes",
    "find_rigs",
    "load_asset",
    "load_mesh",
    "load_meshes",
    "make_creature",
    "make_sample",
    "normalise",
    "prepared_mixture",
    "prepared_samples",
    "read_manifest",
    "read_rig_npz",
    "read_rigs",
    "read_skinned_glb",
    "sample_surface",
    "sample_surface_indexed",
    "split",
    "vertex_normals",
    "write_rig_npz",
    "write_skinned_glb",
]
