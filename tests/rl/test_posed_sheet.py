"""Posed sheets: a skeleton, the skin in its bones' colours, and poses."""

import numpy as np
import pytest

from data import make_creature
from data.rig import Rig
from rewards.poses import random_rotations
from rl.pictures import bone_colours
from rl.posed_sheet import posed_sheet

BACKGROUND = np.round(np.array([0.94, 0.95, 0.965]) * 255)


@pytest.fixture(scope="module")
def creature():
    return make_creature(1)


def panels(picture, count, foot=0):
    """The panels (H, W, 3) below their titles."""
    pixels = np.asarray(picture).astype(float)[34 : picture.height - foot]
    return np.split(pixels, count, axis=1)


def test_a_sheet_has_the_skeleton_the_skin_and_the_poses(creature):
    rotations = random_rotations(3, len(creature.rig.joints), 30.0, 4)
    picture = posed_sheet(creature.mesh, creature.rig, rotations, "beast")
    assert picture.width == 5 * 300
    shown = panels(picture, 5, foot=22)
    drawn = [np.abs(panel - BACKGROUND).sum(axis=2) > 30 for panel in shown]
    assert all(panel.mean() > 0.02 for panel in drawn)
    assert all(not panel[:, [0, -1]].any() for panel in drawn)  # nothing is cut off
    joints = np.abs(shown[0] - [214, 40, 57]).max(axis=2) < 30
    assert joints.sum() > 20
    colourful = [(np.ptp(panel, axis=2) > 60).mean() for panel in shown[1:]]
    assert min(colourful) > 0.02
    assert all((shown[1] != panel).any() for panel in shown[2:])
    assert posed_sheet(creature.mesh, creature.rig, rotations, "beast").tobytes() == picture.tobytes()


def test_the_rest_pose_is_the_mesh_itself(creature):
    still = np.tile(np.eye(3), (1, len(creature.rig.joints), 1, 1))
    _, skin, pose = panels(posed_sheet(creature.mesh, creature.rig, still), 3)
    assert (skin == pose).mean() > 0.999


def test_vertices_without_weight_stay_grey(creature):
    bare = Rig(creature.rig.joints, creature.rig.parents, np.zeros_like(creature.rig.weights))
    still = np.tile(np.eye(3), (1, len(bare.joints), 1, 1))
    _, skin, _ = panels(posed_sheet(creature.mesh, bare, still), 3)
    assert np.ptp(skin, axis=2).max() < 40


def test_neighbouring_bones_differ_in_colour():
    colours = bone_colours(60)
    assert ((colours >= 0) & (colours <= 1)).all()
    assert np.abs(colours[1:] - colours[:-1]).max(axis=1).min() > 0.2
