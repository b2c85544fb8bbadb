"""Folders of prepared rigs: one split at a time, empty sets, damaged manifests."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.mesh import MeshError
from data.prepare import PrepareSettings, prepare
from data.sets.prepared import MANIFEST, PreparedRigs, read_manifest, write_manifest


def test_prepared_rigs(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = prepare([raw], out, PrepareSettings(0.25))
    train, held_out, both = (PreparedRigs(out, which) for which in ("train", "eval", None))  # type: ignore[arg-type]
    assert (len(train), len(held_out), len(both)) == (3, 1, 4)
    assert [rigged.name for rigged in both] == [rig.name for rig in manifest.rigs]
    assert [rigged.name for rigged in train[1:]] == [train[1].name, train[-1].name]
    assert {rigged.name for rigged in train} & {rigged.name for rigged in held_out} == set()
    (out / train.entries[0].file).write_bytes(b"x")
    with pytest.raises(MeshError, match="not a complete NPZ"):
        train[0]


def test_empty_sets_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"python -m data\.prepare"):
        PreparedRigs(tmp_path / "missing")
    manifest = prepare([raw], tmp_path / "out", PrepareSettings(0))
    with pytest.raises(MeshError, match="no rigs in the 'eval' split"):
        PreparedRigs(tmp_path / "out", "eval")
    write_manifest(tmp_path / "out", replace(manifest, rigs=()))
    with pytest.raises(MeshError, match=": no rigs;"):
        PreparedRigs(tmp_path / "out")


def test_damaged_manifests(raw: Path, tmp_path: Path) -> None:
    prepare([raw], tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    good = json.loads(path.read_text())
    rig = good["rigs"][0]
    for content, reason in (
        ("{", "damaged"),
        ("[]", "not a manifest"),
        (json.dumps(good | {"version": 9}), "format version 9 is not supported, only 2"),
        (json.dumps(good | {"rigs": [{"name": "x"}]}), "an entry is damaged"),
        (json.dumps(good | {"rigs": [rig | {"file": "../../secret.npz"}]}), "an entry is damaged"),
        (json.dumps(good | {"rigs": [rig | {"split": "test"}]}), "an entry is damaged"),
        (json.dumps(good | {"rigs": [rig | {"pruned": {"tails": 1}}]}), "an entry is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(MeshError, match=reason):
            read_manifest(tmp_path / "out")
