"""Skin decoder: batches over rollouts, condition latents per mesh, one thread."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rewards.skin_decoder import SkinDecoder, tf32_products
from rewards.worker import LRUCache
from tests.rewards.rollouts import meshes, rig, tiny_vae


@pytest.fixture
def decoder() -> SkinDecoder:
    return SkinDecoder(tiny_vae())


def queries(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    return points, points / np.linalg.norm(points, axis=1, keepdims=True)


def test_weights_are_the_vaes_split_by_rollout(decoder):
    mesh = meshes(1)[0]
    codes = [rig(np.random.default_rng(seed), joints).codes for seed, joints in enumerate((3, 1, 5))]
    points, normals = queries(17)
    weights = decoder.decode(mesh, points, normals, codes)
    vae = tiny_vae()
    condition = vae.encode_condition(torch.tensor(mesh.points), torch.tensor(mesh.normals))
    assert [part.shape for part in weights] == [(17, 3), (17, 1), (17, 5)]
    for part, own in zip(weights, codes, strict=True):
        expected = vae.decode(torch.tensor(own), condition, torch.tensor(points), torch.tensor(normals))
        np.testing.assert_allclose(part, expected.numpy().T, atol=1e-6)
        assert part.dtype == np.float32
        assert part.flags["C_CONTIGUOUS"]
    assert np.ptp(weights[0]) > 0.01  # not a constant, which any condition would give


def test_nothing_to_decode(decoder):
    assert decoder.decode(meshes(1)[0], *queries(5), []) == []


def test_conditions_are_computed_once_per_mesh_and_never_taken_from_another(decoder, monkeypatch):
    encoded = []
    whole = decoder.skin_vae.encode_condition
    monkeypatch.setattr(
        decoder.skin_vae, "encode_condition", lambda *cloud: encoded.append(1) or whole(*cloud)
    )
    first, second = meshes(2)
    codes = [rig(np.random.default_rng(0), 3).codes]

    def decode(mesh):
        return decoder.decode(mesh, *queries(9), codes)[0]

    before = decode(first)
    assert np.array_equal(decode(first), before)
    assert not np.array_equal(decode(second), before)
    assert len(encoded) == 2
    # The same mesh with another point cloud is another mesh.
    moved = replace(first, points=second.points)
    assert not np.array_equal(decode(moved), before)
    assert len(encoded) == 3
    assert np.array_equal(decode(first), before)
    assert len(encoded) == 3


def test_an_evicted_condition_is_recomputed_and_equal(decoder):
    decoder._conditions = LRUCache(1)
    first, second = meshes(2)
    codes = [rig(np.random.default_rng(0), 3).codes]
    before = decoder.decode(first, *queries(9), codes)[0]
    decoder.decode(second, *queries(9), codes)
    assert np.array_equal(decoder.decode(first, *queries(9), codes)[0], before)


def test_decoding_uses_one_thread_and_restores_the_thread_count(decoder, monkeypatch):
    seen = []
    whole = decoder.skin_vae.decode
    monkeypatch.setattr(
        decoder.skin_vae,
        "decode",
        lambda *args, **options: seen.append(torch.get_num_threads()) or whole(*args, **options),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        decoder.decode(meshes(1)[0], *queries(5), [rig(np.random.default_rng(0), 2).codes])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_bfloat16_rounds_products_only():
    mesh = meshes(1)[0]
    codes = [rig(np.random.default_rng(seed), 4).codes for seed in range(3)]
    exact = SkinDecoder(tiny_vae())
    rounded = SkinDecoder(tiny_vae(), dtype="bfloat16")
    found = rounded.decode(mesh, *queries(60), codes)
    expected = exact.decode(mesh, *queries(60), codes)
    assert all(part.dtype == np.float32 and part.shape == (60, 4) for part in found)
    difference = np.abs(np.concatenate(found, axis=1) - np.concatenate(expected, axis=1))
    assert 0 < difference.mean() < 0.02
    assert difference.max() < 0.3  # the tiny VAE's weights are three times their usual size
    # What every rig of the mesh shares is float32: equal condition latents.
    assert torch.equal(rounded._conditions.get(mesh.key, None), exact._conditions.get(mesh.key, None))


def test_the_copied_weights_are_those_at_the_start():
    vae = tiny_vae()
    decoder = SkinDecoder(vae)
    mesh, codes = meshes(1)[0], [rig(np.random.default_rng(0), 4).codes]
    before = decoder.decode(mesh, *queries(9), codes)[0]
    with torch.no_grad():
        vae.model.decoder.proj_out.bias += 1
    assert np.array_equal(decoder.decode(mesh, *queries(9), codes)[0], before)


def test_tf32_needs_cuda():
    with pytest.raises(ValueError, match=r"tf32 needs a CUDA device, not 'cpu'; use float32 or bfloat16"):
        SkinDecoder(tiny_vae(), dtype="tf32")


def test_tf32_is_limited_to_its_block():
    matmul = torch.backends.cuda.matmul
    assert not matmul.allow_tf32
    with tf32_products():
        assert matmul.allow_tf32
    assert not matmul.allow_tf32
    with pytest.raises(RuntimeError, match="decoding failed"), tf32_products():
        raise RuntimeError("decoding failed")
    assert not matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        with tf32_products():
            assert matmul.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = False


def test_tf32_covers_decoding_but_not_the_condition(monkeypatch):
    decoder = SkinDecoder(tiny_vae())
    decoder._tf32 = True  # the switch has no effect on a CPU's products
    vae, seen = decoder.skin_vae, {}
    for name in ("decode", "encode_condition"):
        whole = getattr(vae, name)

        def recorded(*args, name=name, whole=whole, **options):
            seen[name] = torch.backends.cuda.matmul.allow_tf32
            return whole(*args, **options)

        monkeypatch.setattr(vae, name, recorded)
    decoder.decode(meshes(1)[0], *queries(5), [rig(np.random.default_rng(0), 2).codes])
    assert seen == {"encode_condition": False, "decode": True}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("tf32", 5e-2), ("bfloat16", 0.3)])
def test_cuda_gives_the_cpus_weights(decoder, dtype, tolerance):
    mesh = meshes(1)[0]
    codes = [rig(np.random.default_rng(seed), 4).codes for seed in range(3)]
    found = SkinDecoder(tiny_vae(), "cuda", dtype=dtype).decode(mesh, *queries(60), codes)
    for own, expected in zip(found, decoder.decode(mesh, *queries(60), codes), strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=tolerance)


def test_read_only_and_unaligned_arrays_give_the_same_weights(decoder):
    mesh = meshes(1)[0]
    codes = [rig(np.random.default_rng(0), 4).codes]
    points, normals = queries(50)
    expected = decoder.decode(mesh, points, normals, codes)[0]
    raw = np.zeros(50 * 3 * 4 + 4, dtype=np.uint8)
    shifted = raw[4:].view(np.float32).reshape(50, 3)  # 4 bytes off the allocator's alignment
    shifted[:] = points
    shifted.flags.writeable = False
    assert np.array_equal(decoder.decode(mesh, shifted, normals, codes)[0], expected)
