"""Reads a glTF file for drawing: surfaces with textures, posed by turning joints as any viewer would."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.gltf.document import Gltf, NodeTree, add_outside, malformed, read_gltf, scene_tree

Floats = NDArray[np.float64]

_TRIANGLES = 4


@dataclass(frozen=True, eq=False)
class Material:
    """The base colour of a surface (glTF 2.0, section 3.9.2); all colours are linear RGB and alpha in [0, 1].

    Attributes:
        factor: (4,) float64.
        texture: (H, W, 4) float32, row 0 at v = 0; None for a plain colour.
        alpha_mode: "OPAQUE", "MASK" or "BLEND", with `alpha_cutoff`.
        double_sided: whether back faces are drawn.
    """

    factor: Floats
    texture: NDArray[np.float32] | None = None
    alpha_mode: str = "OPAQUE"
    alpha_cutoff: float = 0.5
    double_sided: bool = False


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles in the world frame, ready to draw.

    Attributes:
        points: (V, 3) float64.
        faces: (F, 3) int64, counter-clockwise from outside.
        normals: (V, 3) float64 unit normals; None for flat shading.
        uv: (V, 2) float64 texture coordinates, transformed.
        colours: (V, 4) float64 vertex colours, linear.
        material: its material.
    """

    points: Floats
    faces: NDArray[np.int64]
    normals: Floats | None
    uv: Floats
    colours: Floats
    material: Material


@dataclass(frozen=True, eq=False)
class _Stored:
    """A primitive as stored: its surface in its own frame, and the matrices that place its vertices."""

    surface: Surface
    node: int
    joints: NDArray[np.int64] | None  # (V, K) node indices
    weights: Floats | None  # (V, K)
    bind: Floats | None  # (V, K, 4, 4) inverse bind matrices


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The joints of all skins of a file.

    Attributes:
        nodes: (J,) int64 node indices.
        names: J names, "" for none.
        positions: (J, 3) float64 in the node pose, world frame.
        parents: (J,) int64, the nearest joint above; -1 for a root.
    """

    nodes: NDArray[np.int64]
    names: tuple[str, ...]
    positions: Floats
    parents: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scene:
    """A glTF file's default scene; see `read_scene`."""

    skeleton: Skeleton
    _stored: tuple[_Stored, ...]
    _tree: NodeTree

    def posed(self, turns: Mapping[int, Floats] | None = None) -> tuple[list[Surface], Floats]:
        """The surfaces and the joints' positions (J, 3), with joints turned.

        `turns`: by place in `skeleton`, a rotation (3, 3) about the joint along the world's axes. What
        hangs on a joint turns with it; a skinned vertex stands where the weighted sum of world(joint) ·
        inverse bind puts it (glTF 2.0, section 3.7.3.3).
        """
        by_node = {int(self.skeleton.nodes[joint]): turn for joint, turn in (turns or {}).items()}
        moved: dict[int, Floats] = {-1: np.eye(4)}
        # Parents stand before their children in the tree.
        for node, world in self._tree.worlds.items():
            moved[node] = moved[self._tree.parents[node]]
            if node in by_node:
                place = world[:3, 3]
                about = np.eye(4)
                about[:3, :3] = by_node[node]
                about[:3, 3] = place - by_node[node] @ place
                moved[node] = moved[node] @ about
        worlds = {node: moved[node] @ world for node, world in self._tree.worlds.items()}
        joints = np.array([worlds[int(node)][:3, 3] for node in self.skeleton.nodes]).reshape(-1, 3)
        return [_placed(stored, worlds) for stored in self._stored], joints


def read_scene(path: str | Path) -> Scene:
    """Read the default scene of a .glb or .gltf file with its textures; only triangle lists are drawn.

    Raises MeshError naming the file if it is damaged, OSError if it cannot be opened.
    """
    gltf = read_gltf(Path(path))
    images: dict[int, NDArray[np.float32]] = {}
    stored = []
    with malformed(gltf):
        tree = scene_tree(gltf)
        add_outside(gltf, tree, [node for skin in gltf.items("skins") for node in skin["joints"]])
        tree.require(tree.worlds)
        for node in tree.scene:
            entry = gltf.item("nodes", node)
            if "mesh" not in entry:
                continue
            for primitive in gltf.item("meshes", entry["mesh"])["primitives"]:
                if primitive.get("mode", _TRIANGLES) == _TRIANGLES:
                    stored.append(_primitive(gltf, node, entry.get("skin"), primitive, images))
        skeleton = _skeleton(gltf, tree)
    return Scene(skeleton, tuple(stored), tree)


def _skeleton(gltf: Gltf, tree: NodeTree) -> Skeleton:
    nodes = list(dict.fromkeys(node for skin in gltf.items("skins") for node in skin["joints"]))
    place = {node: index for index, node in enumerate(nodes)}

    def joint_above(node: int) -> int:
        return next((place[above] for above in tree.chain(tree.parents[node]) if above in place), -1)

    return Skeleton(
        np.array(nodes, dtype=np.int64),
        tuple(str(gltf.item("nodes", node).get("name", "")) for node in nodes),
        np.array([tree.worlds[node][:3, 3] for node in nodes]).reshape(-1, 3),
        np.array([joint_above(node) for node in nodes], dtype=np.int64),
    )


def _primitive(
    gltf: Gltf, node: int, skin: int | None, primitive: Any, images: dict[int, NDArray[np.float32]]
) -> _Stored:
    attributes = primitive["attributes"]
    points = gltf.accessor(attributes["POSITION"]).astype(np.float64)
    if "indices" in primitive:
        indices = gltf.accessor(primitive["indices"])[:, 0].astype(np.int64)
    else:
        indices = np.arange(len(points))
    faces = indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if faces.size and faces.max() >= len(points):
        raise gltf.error(f"a face refers to vertex {faces.max()} of {len(points)}")
    normals = gltf.accessor(attributes["NORMAL"]).astype(np.float64) if "NORMAL" in attributes else None
    material, uv_set, transform = _material(gltf, primitive.get("material"), images)
    uv = np.zeros((len(points), 2))
    if f"TEXCOORD_{uv_set}" in attributes:
        flat = gltf.accessor(attributes[f"TEXCOORD_{uv_set}"]).astype(np.float64)
        uv = flat[:, :2] @ transform[:2, :2].T + transform[:2, 2]
    else:
        material = replace(material, texture=None)
    colours = np.ones((len(points), 4))
    if "COLOR_0" in attributes:
        given = gltf.accessor(attributes["COLOR_0"]).astype(np.float64)
        colours[:, : given.shape[1]] = given
    surface = Surface(points, faces, normals, uv, colours, material)
    if skin is None or "JOINTS_0" not in attributes:
        return _Stored(surface, node, None, None, None)
    entry = gltf.item("skins", skin)
    joints = np.array(entry["joints"], dtype=np.int64)
    bind = np.tile(np.eye(4), (len(joints), 1, 1))
    if "inverseBindMatrices" in entry:
        bind = gltf.accessor(entry["inverseBindMatrices"]).astype(np.float64).reshape(-1, 4, 4)
        bind = bind.transpose(0, 2, 1)
    sets = range(sum(name.startswith("JOINTS_") for name in attributes))
    places = np.hstack([gltf.accessor(attributes[f"JOINTS_{i}"]).astype(np.int64) for i in sets])
    weights = np.hstack([gltf.accessor(attributes[f"WEIGHTS_{i}"]).astype(np.float64) for i in sets])
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return _Stored(surface, node, joints[places], weights, bind[places])


def _placed(stored: _Stored, worlds: Mapping[int, Floats]) -> Surface:
    """The primitive in the world frame."""
    surface = stored.surface
    if stored.joints is None or stored.weights is None or stored.bind is None:
        matrices = np.broadcast_to(worlds[stored.node], (len(surface.points), 4, 4))
        mirrored = np.linalg.det(worlds[stored.node][:3, :3]) < 0
    else:
        table = np.zeros((max(worlds) + 1, 4, 4))
        for node, world in worlds.items():
            table[node] = world
        matrices = np.einsum(
            "vk,vkij->vij", stored.weights, table[stored.joints] @ stored.bind, optimize=True
        )
        mirrored = np.linalg.det(matrices[:, :3, :3]).mean() < 0
    points = np.einsum("vij,vj->vi", matrices[:, :3, :3], surface.points) + matrices[:, :3, 3]
    normals = surface.normals
    if normals is not None:
        turned = np.einsum("vij,vj->vi", matrices[:, :3, :3], normals)
        normals = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
    faces = surface.faces[:, ::-1] if mirrored else surface.faces
    return replace(surface, points=points, normals=normals, faces=faces)


def _material(
    gltf: Gltf, index: int | None, images: dict[int, NDArray[np.float32]]
) -> tuple[Material, int, Floats]:
    """A material, its texture's set of coordinates and their transform (3, 3)."""
    identity = np.eye(3)
    if index is None:
        return Material(np.ones(4)), 0, identity
    entry = gltf.item("materials", index)
    glossy = entry.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    if glossy is not None:
        factor, used = glossy.get("diffuseFactor"), glossy.get("diffuseTexture")
    else:
        rough = entry.get("pbrMetallicRoughness", {})
        factor, used = rough.get("baseColorFactor"), rough.get("baseColorTexture")
    material = Material(
        np.array(factor if factor is not None else (1, 1, 1, 1), dtype=np.float64),
        None,
        entry.get("alphaMode", "OPAQUE"),
        entry.get("alphaCutoff", 0.5),
        entry.get("doubleSided", False),
    )
    source = None if used is None else gltf.item("textures", used["index"]).get("source")
    if used is None or source is None:
        return material, 0, identity
    if source not in images:
        images[source] = _image(gltf, source)
    moved = used.get("extensions", {}).get("KHR_texture_transform", {})
    uv_set = moved.get("texCoord", used.get("texCoord", 0))
    return replace(material, texture=images[source]), uv_set, _uv_transform(moved)


def _uv_transform(moved: Mapping[str, Any]) -> Floats:
    """KHR_texture_transform: translation · rotation · scale."""
    angle, (u, v) = moved.get("rotation", 0.0), moved.get("scale", (1, 1))
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(3)
    matrix[:2, :2] = np.array([[cosine, sine], [-sine, cosine]]) * np.array([u, v])
    matrix[:2, 2] = moved.get("offset", (0, 0))
    return matrix


def _image(gltf: Gltf, index: int) -> NDArray[np.float32]:
    """An image as (H, W, 4) float32, linear RGB and alpha."""
    try:
        with Image.open(io.BytesIO(gltf.image(index))) as image:
            pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / np.float32(255)
    except (OSError, ValueError) as problem:
        raise gltf.error(f"images[{index}] cannot be read ({problem})") from problem
    pixels[..., :3] = to_linear(pixels[..., :3])
    return pixels


def to_linear(srgb: NDArray[Any]) -> Any:
    """sRGB values in [0, 1] as linear light."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: NDArray[Any]) -> Any:
    """Linear light as sRGB values in [0, 1]; clipped."""
    light = np.clip(linear, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
