"""Manifests: what is missing, truncated or changed is found."""

import json

import pytest

from data.manifest import damage, folder_bytes, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(range(200)))
    (tmp_path / "shards" / "rank_1.pt").write_bytes(b"state" * 100)
    (tmp_path / "empty").write_bytes(b"")
    write_manifest(tmp_path, {"step": 3})
    return tmp_path


def test_a_whole_folder(folder):
    manifest = read_manifest(folder)
    assert manifest["step"] == 3
    assert manifest["format"] == 1
    assert set(manifest["files"]) == {"model.safetensors", "shards/rank_1.pt", "empty"}
    # printf '' | sha256sum
    assert manifest["files"]["empty"] == {
        "bytes": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert damage(folder, manifest) is None
    assert folder_bytes(folder) == 700
    (folder / "notes.txt").write_text("mine")  # more than was saved does no harm
    assert damage(folder, manifest) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "shards/rank_1.pt is missing"),
        (lambda path: path.write_bytes(b"state" * 90), "shards/rank_1.pt has 450 bytes instead of 500"),
        (
            lambda path: path.write_bytes(b"stale" * 100),
            "shards/rank_1.pt does not have the content that was saved",
        ),
    ],
    ids=["missing", "truncated", "changed"],
)
def test_damage_is_reported(folder, change, message):
    change(folder / "shards" / "rank_1.pt")
    manifest = read_manifest(folder)
    assert damage(folder, manifest).startswith(message)
    assert (damage(folder, manifest, content=False) is None) == ("content" in message)


def test_a_git_lfs_pointer_is_called_one(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 200\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "model.safetensors: this is a Git LFS pointer" in damage(folder, read_manifest(folder))


def test_manifests_that_cannot_be_used(folder):
    assert read_manifest(folder / "shards") is None
    path = folder / "manifest.json"
    content = path.read_text()
    for text, message in (
        (content[:100], "."),
        ("[]", "lists no files"),
        ('{"format": 1}', "lists no files"),
        (json.dumps({**json.loads(content), "format": 2}), "its format is 2, this version reads 1"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_manifest(folder)
