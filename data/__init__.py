"""Meshes and rigs: files, procedural creatures, sampling, augmentation and data sets; no tokens.

Names are imported on first use: a scoring worker needs `data.welding` alone, and the file readers would cost
it 64 MB.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.augment.augment import AugmentRecipe as AugmentRecipe
    from data.augment.augment import augmented as augmented
    from data.creatures import CREATURE_KINDS as CREATURE_KINDS
    from data.creatures import Creature as Creature
    from data.creatures import make_creature as make_creature
    from data.formats.load import MAX_BYTES as MAX_BYTES
    from data.formats.load import MAX_FACES as MAX_FACES
    from data.formats.load import MESH_SUFFIXES as MESH_SUFFIXES
    from data.formats.load import Asset as Asset
    from data.formats.load import Refusal as Refusal
    from data.formats.load import find_meshes as find_meshes
    from data.formats.load import load_asset as load_asset
    from data.formats.load import load_mesh as load_mesh
    from data.formats.load import load_meshes as load_meshes
    from data.formats.rig_formats import RigLimits as RigLimits
    from data.formats.rig_formats import find_rigs as find_rigs
    from data.formats.rig_formats import read_rigs as read_rigs
    from data.formats.rig_npz import RiggedMesh as RiggedMesh
    from data.formats.rig_npz import read_rig_npz as read_rig_npz
    from data.formats.rig_npz import write_rig_npz as write_rig_npz
    from data.formats.rig_repair import RepairedRig as RepairedRig
    from data.gltf.skinned import read_skinned_glb as read_skinned_glb
    from data.gltf.skinned import write_skinned_glb as write_skinned_glb
    from data.mesh import Mesh as Mesh
    from data.mesh import MeshError as MeshError
    from data.mesh import normalise as normalise
    from data.rig import Rig as Rig
    from data.rig import depth_first as depth_first
    from data.sampling import sample_surface as sample_surface
    from data.sampling import sample_surface_indexed as sample_surface_indexed
    from data.sets.dataset import EVAL_FIRST_SEED as EVAL_FIRST_SEED
    from data.sets.dataset import TRAIN_FIRST_SEED as TRAIN_FIRST_SEED
    from data.sets.dataset import MeshSample as MeshSample
    from data.sets.dataset import creature_samples as creature_samples
    from data.sets.dataset import file_samples as file_samples
    from data.sets.dataset import make_sample as make_sample
    from data.sets.dataset import prepared_samples as prepared_samples
    from data.sets.dataset import split as split
    from data.sets.mixture import Mixture as Mixture
    from data.sets.mixture import MixtureSource as MixtureSource
    from data.sets.mixture import prepared_mixture as prepared_mixture
    from data.sets.prepared import PreparedRigs as PreparedRigs
    from data.sets.prepared import read_manifest as read_manifest
    from data.welding import vertex_normals as vertex_normals

_MODULES = {
    "Asset": "data.formats.load",
    "AugmentRecipe": "data.augment.augment",
    "CREATURE_KINDS": "data.creatures",
    "Creature": "data.creatures",
    "EVAL_FIRST_SEED": "data.sets.dataset",
    "MAX_BYTES": "data.formats.load",
    "MAX_FACES": "data.formats.load",
    "MESH_SUFFIXES": "data.formats.load",
    "Mesh": "data.mesh",
    "MeshError": "data.mesh",
    "MeshSample": "data.sets.dataset",
    "Mixture": "data.sets.mixture",
    "MixtureSource": "data.sets.mixture",
    "PreparedRigs": "data.sets.prepared",
    "Refusal": "data.formats.load",
    "RepairedRig": "data.formats.rig_repair",
    "Rig": "data.rig",
    "RigLimits": "data.formats.rig_formats",
    "RiggedMesh": "data.formats.rig_npz",
    "TRAIN_FIRST_SEED": "data.sets.dataset",
    "augmented": "data.augment.augment",
    "creature_samples": "data.sets.dataset",
    "depth_first": "data.rig",
    "file_samples": "data.sets.dataset",
    "find_meshes": "data.formats.load",
    "find_rigs": "data.formats.rig_formats",
    "load_asset": "data.formats.load",
    "load_mesh": "data.formats.load",
    "load_meshes": "data.formats.load",
    "make_creature": "data.creatures",
    "make_sample": "data.sets.dataset",
    "normalise": "data.mesh",
    "prepared_mixture": "data.sets.mixture",
    "prepared_samples": "data.sets.dataset",
    "read_manifest": "data.sets.prepared",
    "read_rig_npz": "data.formats.rig_npz",
    "read_rigs": "data.formats.rig_formats",
    "read_skinned_glb": "data.gltf.skinned",
    "sample_surface": "data.sampling",
    "sample_surface_indexed": "data.sampling",
    "split": "data.sets.dataset",
    "vertex_normals": "data.welding",
    "write_rig_npz": "data.formats.rig_npz",
    "write_skinned_glb": "data.gltf.skinned",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'data' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
