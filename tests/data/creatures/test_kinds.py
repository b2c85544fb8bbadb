"""Kinds of creatures: none changes silently, seeds choose among the first twelve, recipes name groups."""

import numpy as np
import pytest

from data import make_creature
from data.creatures import CREATURE_KINDS, KIND_GROUPS, LIFELIKE_KINDS, expanded_kinds
from data.sets.dataset import creature_samples

# For seeds 0 and 1,000,003: joints, vertices, sum of the joints' absolute coordinates, and of the squared
# weights. The published evaluations rest on the first twelve kinds.
STORED = {
    "biped": ((20, 1318, 15.8332, 1175.02), (24, 1932, 18.1539, 1622.44)),
    "quadruped": ((22, 1570, 12.1537, 1435.91), (27, 632, 24.0881, 549.04)),
    "snake": ((7, 854, 6.0865, 720.77), (9, 1709, 6.8694, 1371.93)),
    "winged": ((18, 1582, 8.4387, 1391.88), (19, 1692, 10.7584, 1498.44)),
    "many_limbed": ((13, 1370, 5.4043, 1234.26), (27, 1523, 21.9650, 1320.37)),
    "humanoid": ((40, 1421, 46.9367, 1260.27), (40, 1582, 42.5472, 1396.77)),
    "dragon": ((27, 2198, 16.9850, 2011.31), (30, 1762, 23.0730, 1564.48)),
    "fish": ((13, 1302, 7.6320, 1131.00), (11, 1847, 5.7841, 1847.00)),
    "insect": ((24, 1889, 17.6853, 1662.95), (26, 2384, 21.9907, 2087.51)),
    "centipede": ((21, 1855, 13.5306, 1688.50), (40, 2674, 27.8303, 2370.18)),
    "hydra": ((36, 1048, 31.1757, 954.60), (33, 1245, 29.0688, 1245.00)),
    "tree": ((18, 1796, 12.9328, 1584.49), (14, 2286, 12.6068, 2120.70)),
    "character": ((45, 2624, 43.3915, 2037.21), (51, 3300, 51.9008, 2445.58)),
    "blob": ((14, 620, 9.9438, 425.53), (4, 378, 2.6918, 273.57)),
    "pack_quadruped": ((34, 1563, 26.1419, 834.73), (31, 1049, 28.9531, 968.34)),
    "pack_bird": ((10, 1145, 7.4398, 1123.95), (13, 762, 9.5383, 521.62)),
    "pack_fish": ((7, 1626, 4.5862, 1153.90), (13, 1882, 6.1895, 1793.35)),
    "pack_spider": ((23, 1253, 9.4217, 1228.03), (21, 1612, 14.7752, 1445.14)),
    "mech": ((8, 686, 5.9191, 686.00), (18, 1120, 21.0853, 1120.00)),
}


@pytest.mark.parametrize("kind", [*CREATURE_KINDS, *LIFELIKE_KINDS])
def test_no_kind_changes_silently(kind: str) -> None:
    for seed, (joints, vertices, places, weights) in zip((0, 1_000_003), STORED[kind], strict=True):
        made = make_creature(seed, kind)
        assert (len(made.rig.joints), len(made.mesh.vertices)) == (joints, vertices)
        assert np.abs(made.rig.joints).sum() == pytest.approx(places, abs=2e-3)
        assert (made.rig.weights**2).sum() == pytest.approx(weights, abs=0.1)


def test_seeds_choose_as_before() -> None:
    chosen = [make_creature(seed).kind for seed in range(12)]
    assert chosen == [
        "humanoid",
        "many_limbed",
        "quadruped",
        "biped",
        "hydra",
        "insect",
        "many_limbed",
        "humanoid",
        "quadruped",
        "centipede",
        "hydra",
        "biped",
    ]


def test_groups_stand_for_their_kinds() -> None:
    assert expanded_kinds([]) == ()
    assert expanded_kinds(["snake", "mech", "snake"]) == ("snake", "mech", "snake")
    assert expanded_kinds(["fish", "lifelike"]) == ("fish", *KIND_GROUPS["lifelike"])
    assert set(KIND_GROUPS["lifelike"]) == set(LIFELIKE_KINDS)
    assert not set(KIND_GROUPS) & {*CREATURE_KINDS, *LIFELIKE_KINDS}


def test_samples_cycle_through_a_group() -> None:
    samples = creature_samples(3, 7, 16, ["blob", "lifelike"])
    expected = ("blob", *KIND_GROUPS["lifelike"][:2])
    assert [each.name for each in samples] == [f"{kind}_{7 + k}" for k, kind in enumerate(expected)]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown creature kind 'cow'; choose from biped, .*mech, lifelike"):
        expanded_kinds(["blob", "cow"])
    # A group is no kind of a single creature.
    with pytest.raises(ValueError, match="unknown creature kind 'lifelike'"):
        make_creature(0, "lifelike")
