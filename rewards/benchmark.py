"""`python -m rewards.benchmark`: times the optimised scoring against straightforward implementations.

Meshes are procedural and rigs random, so that anyone can repeat it. Times are medians; the two sides of a
ratio alternate, so that a busy machine slows both.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.containment import bone_points
from rewards.lbs import skinning_matrices
from rewards.occupancy import build_occupancy
from rewards.references import fill_projection_reference
from rewards.score import RewardSettings, RigScore, ScoringMesh, prepare_scoring_mesh, score_group, score_rig
from rewards.smoothness import LENGTH_EPSILON

Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]


class RandomRig:
    """A random rig like a decoder's: every weight is a sigmoid, so none is exactly 0."""

    def __init__(self, rng: np.random.Generator, joints: int, vertices: NDArray[np.float32]) -> None:
        self.joints = rng.uniform(-0.6, 0.6, (joints, 3)).astype(np.float32)
        self.parents = np.array([-1] + [int(rng.integers(0, i)) for i in range(1, joints)])
        distance = np.linalg.norm(vertices[:, None] - self.joints, axis=2)
        self.weights = (1 / (1 + np.exp(40 * (distance - 0.25)))).astype(np.float32)


def bumpy_sphere(faces: int, slimness: float = 1.0) -> Mesh:
    """A closed, lobed surface with about `faces` triangles, longest side spanning [-1, 1].

    `slimness` divides its other two sides: at 1 it fills a quarter of the grid, at 4 about as much as the
    Fox.
    """
    rings = max(3, round((faces / 4) ** 0.5))
    theta = np.linspace(0, np.pi, rings + 1)[:, None]
    phi = np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False)[None, :]
    radius = 1 + 0.3 * np.sin(5 * phi) * np.sin(theta) ** 2 + 0.1 * np.cos(9 * theta)
    x, y, z = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi
    vertices = (radius[..., None] * np.stack([x, y, z], axis=-1)).reshape(-1, 3)
    vertices[:, 1:] /= slimness
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (vertices - (low + high) / 2) * 2 / (high - low).max()
    i, j = np.meshgrid(np.arange(rings), np.arange(2 * rings), indexing="ij")
    k = (j + 1) % (2 * rings)
    a, b, c, d = (r * 2 * rings + s for r, s in ((i, j), (i, k), (i + 1, j), (i + 1, k)))
    quads = [np.stack([a, c, b], axis=-1), np.stack([b, c, d], axis=-1)]
    return vertices, np.concatenate([q.reshape(-1, 3) for q in quads])


def trimesh_occupancy(mesh: Mesh, resolution: int) -> Any:
    """The trimesh way: `voxelized(pitch).fill()`."""
    import trimesh

    vertices, faces = mesh
    return (
        trimesh.Trimesh(vertices, faces, process=False)
        .voxelized(np.ptp(vertices, axis=0).max() / resolution)
        .fill()
    )


def open3d_occupancy(mesh: Mesh, resolution: int) -> NDArray[np.bool_]:
    """The Open3D way: its surface voxels, filled by projection in NumPy."""
    import open3d

    vertices, faces = mesh
    shape = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(vertices), open3d.utility.Vector3iVector(faces.astype(np.int32))
    )
    grid = open3d.geometry.VoxelGrid.create_from_triangle_mesh(
        shape, np.ptp(vertices, axis=0).max() / resolution
    )
    index = np.array([voxel.grid_index for voxel in grid.get_voxels()])
    surface = np.zeros(index.max(axis=0) + 1, dtype=np.bool_)
    surface[tuple(index.T)] = True
    return fill_projection_reference(surface)


def numpy_scipy_score(
    centres: NDArray[np.float64],
    cell: float,
    contains: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
    mesh: ScoringMesh,
    rig: RandomRig,
    rotations: NDArray[np.float64],
    settings: RewardSettings,
) -> tuple[float, float, float, float]:
    """The four rewards in plain NumPy and SciPy, from the centres (N, 3) of the occupied cells."""
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(rig.joints).query(centres)
    coverage = np.exp(-settings.alpha * distance / cell).mean()
    containment = contains(bone_points(rig.joints, rig.parents, settings.samples_per_bone)).mean()
    uninfluenced = (rig.weights < settings.threshold).all(axis=1).mean()
    overinfluenced = ((rig.weights > settings.threshold).sum(axis=1) > settings.max_influences).mean()
    matrices = skinning_matrices(rig.joints, rig.parents, rotations)
    poses, joints = matrices.shape[:2]
    weights = rig.weights / rig.weights.sum(axis=1, keepdims=True)
    blended = (weights @ matrices.transpose(1, 0, 2, 3).reshape(joints, -1)).reshape(-1, poses, 3, 4)
    rest = mesh.vertices.astype(np.float64)
    posed = (blended[..., :3] @ rest[:, None, :, None])[..., 0] + blended[..., 3]
    first, second = mesh.edges.T
    rest_length = np.linalg.norm(rest[first] - rest[second], axis=1)
    stretch = np.linalg.norm(posed[first] - posed[second], axis=2) / (rest_length + LENGTH_EPSILON)[:, None]
    smoothness = 1 / (1 + np.maximum(stretch, 1).max(axis=0).mean())
    sparsity = 1 - uninfluenced / 2 - overinfluenced / 2
    return float(coverage), float(containment), float(sparsity), float(smoothness)


def per_rollout_score(
    source: Mesh, mesh: ScoringMesh, rig: RandomRig, rotations: NDArray[np.float64], settings: RewardSettings
) -> tuple[float, float, float, float]:
    """The same with nothing shared: trimesh voxelises the mesh for every rollout."""
    grid = trimesh_occupancy(source, settings.resolution)
    points = np.asarray(grid.points)
    return numpy_scipy_score(
        points, float(grid.pitch.max()), lambda p: _is_filled(grid, p), mesh, rig, rotations, settings
    )


def _is_filled(grid: Any, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(grid.is_filled(points.reshape(-1, 3))).reshape(points.shape[:-1])


def alternate(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function over `repeats` rounds, after one round that compiles and warms up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for round_ in range(repeats + 1):
        for times, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            function()
            if round_:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def benchmark_grid(faces: int, repeats: int) -> list[dict[str, Any]]:
    """Building the grid at resolution 196, against trimesh and, if it is installed, Open3D."""
    mesh = bumpy_sphere(faces)
    alternatives: dict[str, Callable[[], Any]] = {
        "trimesh voxelized().fill()": lambda: trimesh_occupancy(mesh, 196)
    }
    if _open3d_imports():
        alternatives["Open3D grid + NumPy projection"] = lambda: open3d_occupancy(mesh, 196)
    rows = []
    for name, alternative in alternatives.items():
        ours, theirs = alternate(repeats, lambda: build_occupancy(*mesh), alternative)
        rows.append(_row(f"grid, {len(mesh[1]):,} faces", name, ours, theirs))
    return rows


def benchmark_group(
    rollouts: int, joints: int, faces: int, slimness: float, repeats: int
) -> list[dict[str, Any]]:
    """All four rewards for a group of rollouts of one mesh."""
    settings = RewardSettings()
    source = bumpy_sphere(faces, slimness)
    mesh = prepare_scoring_mesh(*source, settings)
    rng = np.random.default_rng(0)
    rigs = [RandomRig(rng, joints, mesh.vertices) for _ in range(rollouts)]
    rotations = settings.rotations(joints, 0)
    centres = mesh.grid.centres()

    def shared(rig: RandomRig) -> tuple[float, ...]:
        return numpy_scipy_score(centres, mesh.grid.cell, mesh.grid.contains, mesh, rig, rotations, settings)

    scored = score_group(mesh, rigs, rotations, settings)
    for rig, score in zip(rigs[:2], scored, strict=False):
        assert isinstance(score, RigScore)
        np.testing.assert_allclose(list(score.rewards.values()), shared(rig), atol=1e-5)
    label = (
        f"group of {rollouts}, {joints} joints, {len(mesh.vertices):,} vertices, {mesh.grid.count:,} cells"
    )
    ours, theirs = alternate(
        repeats, lambda: score_group(mesh, rigs, rotations, settings), lambda: [shared(rig) for rig in rigs]
    )
    rows = [_row(label, "NumPy/SciPy, grid shared", ours, theirs)]
    # With mesh preparation on our side as well; on theirs one rollout, times the size of the group.
    ours, one = alternate(
        1,
        lambda: score_group(prepare_scoring_mesh(*source, settings), rigs, rotations, settings),
        lambda: per_rollout_score(source, mesh, rigs[0], rotations, settings),
    )
    rows.append(_row(f"{label}, mesh included", "trimesh + SciPy per rollout", ours, one * rollouts))
    return rows


def benchmark_parts(repeats: int) -> list[dict[str, Any]]:
    """Seconds of each part of one rig's score; no alternatives."""
    from rewards.coverage import joint_coverage
    from rewards.diagnostics import rig_diagnostics
    from rewards.kernels.weights import owned_vertices
    from rewards.lbs import skin
    from rewards.locality import locality_of
    from rewards.smoothness import stretch_of
    from rewards.sparsity import skin_sparsity
    from rewards.volume import volume_of

    settings = RewardSettings()
    source = bumpy_sphere(20_000)
    mesh = prepare_scoring_mesh(*source, settings)
    rig = RandomRig(np.random.default_rng(0), 40, mesh.vertices)
    rotations = settings.rotations(40, 0)
    rest = mesh.vertices.astype(np.float64)
    matrices = skinning_matrices(rig.joints, rig.parents, rotations)
    posed = skin(rest, rig.weights, matrices)
    owned = owned_vertices(rig.weights)
    joints, coarse = rig.joints.astype(np.float64), mesh.coarse
    parts: dict[str, Callable[[], Any]] = {
        "prepare_scoring_mesh": lambda: prepare_scoring_mesh(*source, settings),
        "joint_coverage": lambda: joint_coverage(mesh.grid, rig.joints),
        "bone_containment": lambda: mesh.grid.contains(bone_points(rig.joints, rig.parents)),
        "skin_sparsity": lambda: skin_sparsity(rig.weights),
        "skinning_matrices": lambda: skinning_matrices(rig.joints, rig.parents, rotations),
        "linear blend skinning": lambda: skin(rest, rig.weights, matrices),
        "edge stretch": lambda: stretch_of(rest, mesh.edges, posed),
        "diagnostics": lambda: rig_diagnostics(joints, rig.parents, rig.weights, owned, 1.0),
        "volume_preservation (guard)": lambda: volume_of(rig.weights, matrices),
        "weight_locality (guard)": lambda: locality_of(coarse, rest, joints, rig.parents, rig.weights),
        "score_rig": lambda: score_rig(mesh, rig.joints, rig.parents, rig.weights, rotations, settings),
    }
    times = alternate(repeats, *parts.values())
    return [_row(f"part: {name}", "", seconds, None) for name, seconds in zip(parts, times, strict=True)]


_WORKER = """
import pickle, re, sys
import rewards
from rewards.benchmark import RandomRig, bumpy_sphere
import numpy as np
settings = rewards.RewardSettings()
if sys.argv[1] == "prepare":
    mesh = rewards.prepare_scoring_mesh(*bumpy_sphere(300_000), settings)
    pickle.dump(mesh, sys.stdout.buffer)
else:
    mesh = pickle.load(sys.stdin.buffer)
    rigs = [RandomRig(np.random.default_rng(0), 40, mesh.vertices) for _ in range(6)]
    rewards.score_group(mesh, rigs, settings.rotations(40, 0), settings)
# VmHWM, not ru_maxrss, which starts at the parent's peak.
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
print(int(peak[1]) // 1024, file=sys.stderr)
"""


def worker_memory() -> dict[str, int]:
    """Peak resident MB of a process that prepares a 300k-face mesh, and of one that scores a group on it."""
    prepared = subprocess.run([sys.executable, "-c", _WORKER, "prepare"], capture_output=True, check=True)
    scored = subprocess.run(
        [sys.executable, "-c", _WORKER, "score"], input=prepared.stdout, capture_output=True, check=True
    )
    return {
        "prepare_mb": int(prepared.stderr),
        "score_mb": int(scored.stderr),
        "pickled_mesh_kb": len(prepared.stdout) // 1024,
    }


def _open3d_imports() -> bool:
    """Whether Open3D is installed and finds its system libraries."""
    try:
        import open3d
    except ImportError:
        return False
    return bool(open3d.__version__)


def _row(task: str, alternative: str, ours: float, theirs: float | None) -> dict[str, Any]:
    ratio = None if theirs is None else theirs / ours
    return {"task": task, "alternative": alternative, "ours_s": ours, "theirs_s": theirs, "ratio": ratio}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m rewards.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, nargs="+", default=[5_000, 50_000, 300_000], help="mesh sizes")
    parser.add_argument("--rollouts", type=int, default=24, help="rigs in the group")
    parser.add_argument("--joints", type=int, default=40, help="joints per rig")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median is reported")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)

    rows = [row for faces in options.faces for row in benchmark_grid(faces, options.repeats)]
    # A closed mesh has half as many vertices as faces: 20,000 faces give the 10,000 scoring vertices.
    for slimness in (4.0, 1.0):
        rows += benchmark_group(options.rollouts, options.joints, 20_000, slimness, options.repeats)
    rows += benchmark_parts(4 * options.repeats)
    print(f"{'task':<78} {'alternative':<32} {'ours ms':>9} {'theirs ms':>10} {'ratio':>7}")
    for row in rows:
        theirs = "" if row["theirs_s"] is None else f"{row['theirs_s'] * 1e3:.1f}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.1f}x"
        print(
            f"{row['task']:<78} {row['alternative']:<32} {row['ours_s'] * 1e3:>9.2f} {theirs:>10} {ratio:>7}"
        )
    memory = worker_memory()
    print(
        f"worker memory (peak): preparing a 300k-face mesh {memory['prepare_mb']} MB, scoring on it "
        f"{memory['score_mb']} MB; the prepared mesh pickles to {memory['pickled_mesh_kb']} KB"
    )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "memory": memory}, indent=1))


if __name__ == "__main__":
    main()
