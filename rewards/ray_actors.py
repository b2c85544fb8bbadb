"""Ray actors of the reward service: mesh registry, skin decoder, scorer. Their client is ray_service.py."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from rewards.score import RewardSettings, ScoringMesh
from rewards.warm_up import compile_kernels
from rewards.worker import LRUCache, RewardMesh, RolloutRig, RolloutScore, prepare, score_rollouts

if TYPE_CHECKING:
    from rewards.skin_decoder import DecoderDtype

# Meshes that an actor keeps unpacked: a grid takes up to 7.5 MB. The others stay in the object store.
_MESHES_KEPT = 64


class StoredMesh(NamedTuple):
    """A prepared mesh: why it cannot be scored, or its objects in Ray's store."""

    key: str
    reason: str | None
    source: Any  # reference to a RewardMesh
    ready: Any  # reference to a ScoringMesh


class MeshRegistry:
    """Actor that holds the prepared meshes by key, so that no process of the job prepares one twice."""

    def __init__(self) -> None:
        self._meshes: dict[str, StoredMesh] = {}
        self._latest: list[StoredMesh] = []

    def find(self, keys: list[str]) -> dict[str, StoredMesh]:
        """The meshes that are already prepared, by key."""
        return {key: self._meshes[key] for key in keys if key in self._meshes}

    def publish(self, meshes: list[StoredMesh], order: list[str]) -> list[StoredMesh]:
        """Add meshes, unless another process was first; return those of `order`, the latest from now on."""
        for mesh in meshes:
            self._meshes.setdefault(mesh.key, mesh)
        self._latest = [self._meshes[key] for key in order]
        return self._latest

    def latest(self) -> list[StoredMesh]:
        """The meshes published last, for a process that joins."""
        return self._latest


class DecoderActor:
    """Actor that turns the SkinTokens of a group into skinning weights; it may decode several at once."""

    def __init__(self, skin_vae: str, device: str, dtype: DecoderDtype) -> None:
        # Only this actor imports torch: the scorers do without its memory.
        import torch

        from policy.skintokens.skin_vae import SkinVAE
        from rewards.skin_decoder import SkinDecoder

        torch.set_num_threads(1)
        self._decoder = SkinDecoder(SkinVAE.load(skin_vae), device, 1, dtype)
        self._meshes: LRUCache[tuple[RewardMesh, Any, Any]] = LRUCache(_MESHES_KEPT)

    def decode(self, mesh: StoredMesh, codes: list[Any], chunks: int) -> Any:
        """Decode a whole group in one batch; returns `chunks` objects of (seconds, weights)."""
        start = time.perf_counter()
        weights = self._decoder.decode(*self._meshes.get(mesh.key, lambda: self._fetch(mesh)), codes)
        seconds = (time.perf_counter() - start) / chunks
        parts = [(seconds, weights[part]) for part in even_slices(len(codes), chunks)]
        return parts[0] if chunks == 1 else parts

    @staticmethod
    def _fetch(mesh: StoredMesh) -> tuple[RewardMesh, Any, Any]:
        source, ready = ray.get([mesh.source, mesh.ready])
        return source, ready.vertices, ready.normals


class ScoringActor:
    """Actor that prepares meshes and scores decoded rigs."""

    def __init__(self, settings: RewardSettings) -> None:
        compile_kernels(settings)
        self._settings = settings
        self._meshes: LRUCache[ScoringMesh] = LRUCache(_MESHES_KEPT)

    def prepare(self, mesh: RewardMesh) -> tuple[str | None, ScoringMesh | None]:
        """Reason and scoring mesh, one of them None: two objects, so that the first can be fetched alone."""
        ready = prepare(mesh, self._settings)
        return (ready, None) if isinstance(ready, str) else (None, ready)

    def score(
        self, mesh: StoredMesh, rigs: list[RolloutRig], decoded: tuple[float, list[Any]], seed: int
    ) -> tuple[list[RolloutScore], float, float]:
        """Score one chunk of a group; returns (scores, seconds of decoding, seconds of scoring)."""
        start = time.perf_counter()
        decode_seconds, weights = decoded
        ready = self._meshes.get(mesh.key, lambda: ray.get(mesh.ready))
        scores = score_rollouts(ready, rigs, weights, seed, self._settings)
        return scores, decode_seconds, time.perf_counter() - start


def even_slices(count: int, chunks: int) -> list[slice]:
    """`chunks` slices of nearly equal size that cover range(count)."""
    bounds = [round(i * count / chunks) for i in range(chunks + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
