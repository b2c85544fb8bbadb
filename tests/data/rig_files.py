"""One small rig in every format that data.formats reads, and how tests read it back."""

from pathlib import Path
from typing import Any

import numpy as np

from data.creatures import make_creature
from data.formats.load import Refusal
from data.formats.rig_formats import RigLimits, read_rigs
from data.formats.rig_npz import RiggedMesh, write_rig_npz
from data.formats.rig_repair import RepairedRig
from data.gltf.skinned import write_skinned_glb
from data.mesh import normalise
from data.rig import Rig

# Two triangles, a box of 4 x 2 x 0 around (2, 1, 0): mesh frame = (p - (2, 1, 0)) / 2. Vertex 4 is unused.
POINTS = np.array([[0.0, 0, 0], [4, 0, 0], [0, 2, 0], [4, 2, 0], [100, 0, 0]])


FACES = np.array([[0, 1, 2], [2, 1, 3]])


JOINTS = np.array([[0.0, 1, 0], [2, 1, 0], [4, 1, 0]])


SKIN = np.array([[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.25, 0.75], [1, 0, 0]])


NAMES = ["hip", "knee", "foot"]


PARENTS: list[int | None] = [None, 0, 1]


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def matrices(joints: np.ndarray = JOINTS) -> np.ndarray:
    result = np.tile(np.eye(4), (len(joints), 1, 1))
    result[:, :3, 3] = joints
    return result


def plain_npz(folder: Path, **changes: Any) -> Path:
    arrays = {
        "vertices": POINTS,
        "faces": FACES,
        "joint_names": np.array(NAMES),
        "parents": np.array([-1, 0, 1]),
        "matrix_local": matrices(),
        "skin": SKIN,
    }
    return saved(folder / "small.npz", arrays | changes)


def unirig(folder: Path, **changes: Any) -> Path:
    """Half precision, object arrays, None for missing values: as written by UniRig."""
    arrays = {
        "vertices": POINTS.astype(np.float16),
        "vertex_normals": np.zeros((5, 3), dtype=np.float16),
        "faces": FACES,
        "joints": JOINTS.astype(np.float16),
        "tails": JOINTS.astype(np.float16) + 1,
        "skin": SKIN.astype(np.float16),
        "no_skin": None,
        "parents": objects(PARENTS),
        "names": objects(NAMES),
        "matrix_local": matrices().astype(np.float32),
        "path": "models/small.glb",
        "cls": None,
    }
    (folder / "small").mkdir(exist_ok=True)
    return saved(folder / "small" / "raw_data.npz", arrays | changes)


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    """None stands for a 0-d object array, a missing array is written as ...."""
    np.savez(path, **{key: value for key, value in arrays.items() if value is not ...})
    return path


def articulation_entry(**changes: Any) -> dict[str, Any]:
    rows, columns = np.nonzero(SKIN)
    entry = {
        "uuid": "0a1b",
        "vertices": POINTS.astype(np.float32),
        "faces": FACES.astype(np.int32),
        "normals": np.zeros((5, 3)),
        "joints": JOINTS.astype(np.float32),
        "bones": np.array([[0, 1], [1, 2]]),
        "root_index": 0,
        "joint_names": NAMES,
        "pc_w_norm": np.zeros((4, 6)),
        "skinning_weights_value": SKIN[rows, columns],
        "skinning_weights_row": rows.astype(np.int32),
        "skinning_weights_col": columns.astype(np.int32),
        "skinning_weights_shape": SKIN.shape,
    }
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def articulation(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "xl.npz"
    np.savez(path, objects(list(entries or (articulation_entry(),))))
    return path


RIG_TEXT = """joints hip 0 1 0
joints knee 2 1 0
joints foot 4 1 0
root hip
skin 0 hip 1.0
skin 1 foot 1.0
skin 2 hip 0.5 knee 0.5
skin 3 knee 0.25 foot 0.75
skin 4 hip 1.0
hier hip knee
hier knee foot
"""


OBJ_TEXT = "v 0 0 0\nv 4 0 0\nv 0 2 0\nv 4 2 0\nv 100 0 0\nf 1 2 3\nf 3/1 2/1 4/1\n"


def rignet(folder: Path, text: str = RIG_TEXT, obj: str = OBJ_TEXT) -> Path:
    for name in ("rig_info_remesh", "obj_remesh"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "obj_remesh" / "small.obj").write_text(obj)
    (folder / "rig_info_remesh" / "small.txt").write_text(text)
    return folder / "rig_info_remesh" / "small.txt"


def small() -> tuple[Any, Rig]:
    mesh = normalise(POINTS[:4], FACES, "small")
    return mesh, Rig((JOINTS - [2, 1, 0]) / 2, np.array([-1, 0, 1]), SKIN[:4], tuple(NAMES))


def glb(folder: Path) -> Path:
    write_skinned_glb(folder / "small.glb", *small())
    return folder / "small.glb"


def own(folder: Path) -> Path:
    write_rig_npz(folder / "small.npz", RiggedMesh(*small(), "vroid", "first.glb"))
    return folder / "small.npz"


def only(path: Path, limits: RigLimits | None = None) -> RepairedRig:
    found = list(read_rigs(path, limits))
    assert len(found) == 1
    assert isinstance(found[0], RepairedRig), str(found[0])
    return found[0]


def refusal(path: Path, limits: RigLimits | None = None) -> str:
    found = list(read_rigs(path, limits))
    assert len(found) == 1
    assert isinstance(found[0], Refusal)
    assert found[0].file.startswith(str(path))
    assert ";" in found[0].reason, "the reason includes the fix"
    return found[0].reason


def nan_at(array: np.ndarray, *place: int) -> np.ndarray:
    copy = array.astype(np.float64)
    copy[place] = np.nan
    return copy


def write_unirig(folder: Path, seed: int, nan: bool = False) -> Path:
    """A creature as UniRig's raw_data.npz in `folder`, with a NaN weight if `nan`."""
    creature = make_creature(seed)
    weights = creature.rig.weights.copy()
    if nan:
        weights[0, 0] = np.nan
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "raw_data.npz",
        vertices=creature.mesh.vertices,
        faces=creature.mesh.faces,
        joints=creature.rig.joints,
        parents=np.array([None, *creature.rig.parents[1:].tolist()], dtype=object),
        names=list(creature.rig.names),
        skin=weights,
        cls=None,
    )
    return folder / "raw_data.npz"
