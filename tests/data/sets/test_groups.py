"""Groups from files and from the rigs: which entries match which rig, and what is refused."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.mesh import MeshError
from data.sets.groups import read_groups


@dataclass(frozen=True)
class Found:
    source: str
    name: str = "unlisted"
    part: str = ""
    class_name: str | None = None


MANIFEST = {
    "about": "families",
    "files": [
        {"name": "fox", "file": "train/fox.glb", "family": "dogs", "year": 2024, "tags": ["a"]},
        {"name": "fox", "file": "dev/fox.glb", "family": "cats", "year": 2023},
        {"name": "owl", "file": "dev/owl.glb", "family": ""},
        {"name": "elk", "file": "elk.fbx", "family": "deer", "year": 2024},
    ],
}


def written(folder: Path, content: Any, name: str = "m.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("rig", "group"),
    [
        (Found("/data/train/fox.glb"), "dogs"),
        (Found("/data/dev/fox.glb"), "cats"),
        (Found("dev\\fox.glb"), "cats"),
        (Found("/data/dev/owl.glb"), None),
        (Found("/converted/elk.glb"), "deer"),
        (Found("/converted/elk/raw_data.npz"), "deer"),
        (Found("/data/cow.glb"), None),
        (Found("/data/x.glb", "elk"), "deer"),
    ],
)
def test_entries_of_a_manifest(tmp_path: Path, rig: Found, group: str | None) -> None:
    for content in (MANIFEST, MANIFEST["files"]):
        groups = read_groups(f"family:{written(tmp_path, content)}")
        assert groups.of(rig) == group


def test_values_and_identifiers(tmp_path: Path) -> None:
    elk, fox = Found("elk.glb"), Found("a/train/fox.glb")
    assert read_groups(f"year:{written(tmp_path, MANIFEST)}").of(elk) == "2024"
    by_name = {"fox": {"family": "dogs"}, "elk": {"family": "deer"}}
    assert read_groups(f"family:{written(tmp_path, by_name)}").of(fox) == "dogs"
    for mapping in (
        {"train/fox.glb": "dogs", "elk": "deer"},
        {"fox": "dogs", "elk": "deer"},
        {"dogs": ["fox.glb"], "deer": ["elk.glb", "x.glb"]},
        [{"file": "fox.glb", "group": "dogs"}, {"file": "elk.glb", "group": "deer"}],
    ):
        groups = read_groups(str(written(tmp_path, mapping)))
        assert (groups.of(fox), groups.of(elk)) == ("dogs", "deer")
    for table in ("fox.glb,dogs\nelk.glb,deer\n", "\ufefffile,group\nfox.glb,dogs\n\nelk.glb, deer\n"):
        groups = read_groups(str(written(tmp_path, table, "g.csv")))
        assert (groups.of(fox), groups.of(elk)) == ("dogs", "deer")
    table = 'name,author,family\nfox,"A, B",dogs\nelk,C,deer\nowl,D\n'
    groups = read_groups(f"family:{written(tmp_path, table, 'g.csv')}")
    assert (groups.of(fox), groups.of(elk), groups.of(Found("owl.glb"))) == ("dogs", "deer", None)


def test_rigs_of_one_file_and_of_raw_data(tmp_path: Path) -> None:
    one, two = Found("xl.npz[0]", "xl_0a", "0a"), Found("xl.npz[1]", "xl_0b", "0b")
    groups = read_groups(str(written(tmp_path, {"0a": "dogs", "xl_0b": "cats"})))
    assert (groups.of(one), groups.of(two)) == ("dogs", "cats")
    assert read_groups(str(written(tmp_path, {"xl.npz": "all"}))).of(two) == "all"
    listed = {"a/fox/raw_data.npz": "dogs", "a/cat/raw_data.npz": "cats"}
    groups = read_groups(str(written(tmp_path, listed)))
    assert groups.of(Found("/x/a/fox/raw_data.npz")) == "dogs"
    assert groups.of(Found("/x/a/cow/raw_data.npz")) is None


def test_fields_of_the_rigs() -> None:
    folder = read_groups("folder")
    assert folder.of(Found("/x/dogs/fox.glb")) == "dogs"
    assert folder.of(Found("/x/dogs/fox/raw_data.npz")) == "dogs"
    assert folder.of(Found("/x/dogs/xl.npz[3]", part="3")) == "dogs"
    assert folder.of(Found("fox.glb")) is None
    assert read_groups("class").of(Found("a.txt", class_name="rignet")) == "rignet"
    with pytest.raises(MeshError, match="no rig has a class; group by folder or by a file"):
        read_groups("class").of_all([Found("a.glb")])


def test_ambiguous_entries(tmp_path: Path) -> None:
    groups = read_groups(f"family:{written(tmp_path, MANIFEST)}")
    with pytest.raises(MeshError, match="matches entries 'fox' of the groups 'cats' and 'dogs'; list the fi"):
        groups.of(Found("/elsewhere/fox"))
    with pytest.raises(MeshError, match=r"matches entries 'fox\.glb' of the groups"):
        groups.of(Found("/elsewhere/fox.glb"))


@pytest.mark.parametrize(
    ("text", "content", "reason"),
    [
        ("famly:{}", MANIFEST, "no entry has the field 'famly'; did you mean 'family'"),
        (
            "{}",
            MANIFEST,
            "no entry has the field 'group'; add it, or pass FIELD:.* name, file, family, year, tags",
        ),
        ("tags:{}", MANIFEST, r"the group of 'train/fox\.glb' is \['a'\]; use one string or number per rig"),
        ("family:{}", {"fox": "dogs"}, "its entries have no fields; add 'family', or pass .* without it"),
        ("{}", "{", "not a JSON file"),
        ("{}", 3, "holds no entries"),
        ("{}x", {}, "there is no file .*x; pass FILE, FIELD:FILE, or one of folder, class"),
        ("family:{}x", {}, "there is no file .*x; pass FILE"),
        ("family:/", {}, r"--group 'family:/': / is a folder; pass FILE"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, content: Any, reason: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(MeshError, match=reason):
        read_groups(text.format(path))


def test_unusable_tables(tmp_path: Path) -> None:
    for text, reason in (
        ("", "the file is empty"),
        ('a,"b\n', "not a CSV file"),
        ("a,b,c\nd,e,f\n", "no entry has"),
    ):
        with pytest.raises(MeshError, match=reason):
            read_groups(str(written(tmp_path, text, "g.csv")))
    (tmp_path / "g.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeshError, match="cannot be read"):
        read_groups(str(tmp_path / "g.csv"))


def test_nothing_matches(tmp_path: Path) -> None:
    groups = read_groups(str(written(tmp_path, {"fox.glb": "dogs"})))
    with pytest.raises(
        MeshError, match=r"none of the 1 rigs is listed; the file lists 'fox\.glb', a rig is 'a/b"
    ):
        groups.of_all([Found("a/b.glb")])
    assert groups.of_all([]) == {}
