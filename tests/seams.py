"""Meshes as exporters write them: vertices split at texture seams, or at every face (flat shading)."""

from dataclasses import replace

import numpy as np

from data import Mesh, Rig


def split_at_random(
    vertices: np.ndarray, faces: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same surface with one to three copies of each vertex, shuffled; each corner uses any of them.

    Returns (vertices, faces, original vertex of each).
    """
    original = rng.permutation(np.repeat(np.arange(len(vertices)), rng.integers(1, 4, len(vertices))))
    choices = [np.flatnonzero(original == vertex) for vertex in range(len(vertices))]
    split = np.array([[rng.choice(choices[vertex]) for vertex in face] for face in faces])
    return vertices[original], split, original


def flat_shaded(mesh: Mesh, rig: Rig) -> tuple[Mesh, Rig]:
    """The mesh with three vertices of its own for every triangle."""
    corners = mesh.faces.ravel()
    soup = Mesh(
        mesh.vertices[corners],
        np.arange(len(corners)).reshape(-1, 3),
        f"flat {mesh.name}",
        mesh.centre,
        mesh.scale,
    )
    return soup, replace(rig, weights=rig.weights[corners])
