"""Fuzz campaigns of 10,000 cases each: rigs through both services, damaged files, token sequences."""

from pathlib import Path

import numpy as np
import pytest

from data import MeshError
from data.formats.load import load_asset
from rewards import RewardSettings
from rewards.ray_service import RayRewardService
from rewards.service import InlineRewardService
from rewards.worker import GroupScore, RewardMesh, RolloutScore
from rl.scoring import read_rollout
from tests.rewards.rollouts import tiny_vae
from tests.rl.tiny import VOCABULARY
from tests.soak import damaged_files, extremes
from tests.soak.campaign import campaign

pytestmark = pytest.mark.soak

COUNT = 10_000
# A group scores ten rigs.
RIGS = 10
SETTINGS = RewardSettings(resolution=24, max_scoring_vertices=60)
# Meshes that are prepared together; Ray prepares them in parallel.
MESHES = 50


def check(score: RolloutScore) -> None:
    """Rewards in [0, 1] and finite diagnostics."""
    assert score.rewards is not None
    for name, value in score.rewards.items():
        assert 0 <= value <= 1, (name, value)
    assert all(np.isfinite(value) for value in score.diagnostics.values()), score.diagnostics


def outcome_of(group: GroupScore) -> str:
    assert group.failure is None
    for score in group.scores:
        check(score)
    return "scored" if all(score.valid for score in group.scores) else "some rigs refused"


def meshes_from(seed: int) -> list[RewardMesh]:
    return [
        extremes.mesh(np.random.default_rng([seed + number, 0]), f"mesh {seed + number}")
        for number in range(MESHES)
    ]


def rigs_of(seed: int) -> list:
    rng = np.random.default_rng([seed, 1])
    return [extremes.rig(rng) if rng.random() < 0.95 else None for _ in range(RIGS)]


def test_rigs_through_the_scoring_path():
    """One rig each with weights of its own: unbound vertices, one joint, next to nothing."""
    service = InlineRewardService(tiny_vae(), SETTINGS)

    def outcome(seed: int) -> str:
        rng = np.random.default_rng(seed)
        (reason,) = service.prepare_meshes([extremes.mesh(rng, f"mesh {seed}")])
        if reason is not None:
            assert reason.startswith(f"mesh {seed}: ")
            return "mesh refused"
        rig = extremes.rig(rng)
        given = extremes.weights(rng, len(service._prepared(0)[1].vertices), len(rig.joints))
        score = service.score_weights(0, rig, given, seed)
        check(score)
        return "scored" if score.valid else "rig refused"

    outcomes = campaign("rigs", outcome, COUNT)
    assert outcomes["scored"] > COUNT / 3, outcomes
    assert outcomes["mesh refused"] > COUNT / 20, outcomes


def test_rigs_through_both_services(tmp_path: Path):
    """Ten rigs on each of a thousand meshes, decoded and scored; Ray's scores equal the in-process ones."""
    tiny_vae().save(tmp_path / "skin_vae")
    inline = InlineRewardService(tiny_vae(), SETTINGS)
    ray = RayRewardService(tmp_path / "skin_vae", SETTINGS, workers=2)
    reasons: list[str | None] = []
    pending = []
    first = -1

    def outcome(seed: int) -> str:
        nonlocal first, reasons, pending
        if seed // MESHES != first:
            first = seed // MESHES
            meshes = meshes_from(first * MESHES)
            reasons = inline.prepare_meshes(meshes)
            assert ray.prepare_meshes(meshes) == reasons
            pending = [
                None if reason else ray.submit(number, rigs_of(first * MESHES + number), number)
                for number, reason in enumerate(reasons)
            ]
        number = seed % MESHES
        if pending[number] is None:
            return "mesh refused"
        group = pending[number].result()
        assert group.scores == inline.submit(number, rigs_of(seed), number).result().scores
        return outcome_of(group)

    try:
        outcomes = campaign("services", outcome, COUNT // RIGS)
        assert ray.health().restarts == 0
    finally:
        ray.close()
    assert outcomes["mesh refused"] > 0, outcomes
    assert sum(outcomes.values()) == COUNT // RIGS


def test_damaged_files(tmp_path: Path):
    """A damaged file gives a MeshError that names it, or a mesh of finite numbers."""
    files = list(damaged_files.good_files(tmp_path).items())

    def outcome(seed: int) -> str:
        rng = np.random.default_rng(seed)
        name, content = files[seed % len(files)]
        path = tmp_path / name
        path.write_bytes(damaged_files.damage(rng, content))
        try:
            asset = load_asset(path, rigged=bool(seed % 2))
        except MeshError as error:
            assert str(error).startswith(f"{path}: "), error  # noqa: PT017
            return "refused"
        assert np.isfinite(asset.mesh.vertices).all()
        assert np.abs(asset.mesh.vertices).max() <= 1 + 1e-6
        assert asset.mesh.faces.max() < len(asset.mesh.vertices)
        if asset.rig is not None:
            assert np.isfinite(asset.rig.joints).all()
            assert np.isfinite(asset.rig.weights).all()
        return "read"

    outcomes = campaign("files", outcome, COUNT)
    assert min(outcomes["read"], outcomes["refused"]) > COUNT / 20, outcomes


def test_token_sequences():
    """A completion is a rig with as many codes as joints, or None."""

    def valid(rng: np.random.Generator) -> list[int]:
        row: list[int] = []
        joints = int(rng.integers(1, 30))
        for joint in range(joints):
            if joint and rng.random() < 0.3 and len(row) >= 3:
                row += [VOCABULARY.branch, *row[-3:]]
            row += rng.integers(0, VOCABULARY.bins, 3).tolist()
        skin = rng.integers(0, VOCABULARY.codebook, joints * VOCABULARY.tokens_per_skin)
        return [*row, VOCABULARY.skeleton_eos, *(VOCABULARY.skin_first + skin).tolist(), VOCABULARY.eos]

    def outcome(seed: int) -> str:
        rng = np.random.default_rng(seed)
        row = extremes.tokens(rng, VOCABULARY.size, valid(rng))
        rig = read_rollout(row, VOCABULARY.class_id(None), VOCABULARY)
        if rig is None:
            return "no rig"
        assert np.isfinite(rig.joints).all()
        assert np.abs(rig.joints).max() <= 1
        assert len(rig.joints) == len(rig.parents) == len(rig.codes)
        assert (rig.parents < np.arange(len(rig.parents))).all()
        assert 0 <= rig.codes.min() <= rig.codes.max() < VOCABULARY.codebook
        return "rig"

    outcomes = campaign("tokens", outcome, COUNT)
    assert min(outcomes["rig"], outcomes["no rig"]) > COUNT / 20, outcomes
