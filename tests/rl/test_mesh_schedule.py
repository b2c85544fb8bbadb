"""The mesh schedule: every epoch has each mesh once, in an order of its own."""

from rl.mesh_schedule import mesh_schedule


def test_every_mesh_comes_once_an_epoch_in_changing_order():
    meshes = [3, 5, 8, 13, 21]
    order = mesh_schedule(meshes, 23, seed=1)
    passes = [order[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == meshes for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert len(order) == 23
    assert mesh_schedule(meshes, 7, seed=1) == order[:7]  # a longer run begins alike
    assert mesh_schedule(meshes, 23, seed=2) != order
