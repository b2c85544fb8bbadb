"""The committed tree is what the files say of themselves."""

import pytest

from tests.docs.pages import ROOT, load_program

make_tree = load_program("make_tree")
STALE = "out of date; run python docs/make_tree.py"


def test_tree_is_that_of_the_files():
    assert (ROOT / "docs" / "tree.md").read_text("utf-8") == make_tree.tree_page(), STALE


def test_readme_has_the_table_of_folders():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme == make_tree.with_table(readme, make_tree.folder_table()), STALE


def test_tree_answers_the_newcomers_questions():
    page = make_tree.tree_page()
    for file, word in (
        ("rl/rollout.py", "sampl"),
        ("policy/tokens/grammar.py", "grammar"),
        ("data/gltf/skinned.py", "glb"),
        ("rewards/coverage.py", "r_vj"),
        ("rewards/containment.py", "r_vk"),
        ("rewards/sparsity.py", "r_sc"),
        ("rewards/smoothness.py", "r_mo"),
    ):
        line = next(line for line in page.splitlines() if f"(../{file})" in line)
        assert word in line.lower()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", '"""One thing: another.\n\nMore.\n"""\n', "One thing: another."),
        (
            "a.py",
            '"""`python -m data.prepare IN… --out DIR`: rigs of any format.\n"""\n',
            "Rigs of any format.",
        ),
        ("a.py", '"""glTF files in and out."""\n', "glTF files in and out."),
        ("a.yaml", "# A run\n# of two lines. And more.\nkey: 1\n", "A run of two lines."),
        ("a.yaml", "# A run on a GPU:\n#   accelerate launch rl/train_grpo.py\nkey: 1\n", "A run on a GPU"),
        ("a.md", "# Title\n\nWhat [it](b.md) says. More.\n\nElse.\n", "What it says."),
        ("Makefile", "# The usual commands; one each.\nall:\n", "The usual commands; one each."),
    ],
)
def test_phrase(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text)
    assert make_tree.phrase(path) == expected


@pytest.mark.parametrize(
    ("name", "text"), [("a.py", "x = 1\n"), ("a.yaml", "key: 1\n"), ("a.md", "# Title\n")]
)
def test_a_file_without_a_first_line_is_an_error(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(make_tree.TreeError, match="has no first line that says what it is for; add one"):
        make_tree.phrase(path)


def test_folders_without_files_and_hidden_files_are_not_shown(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cached" / "__pycache__").mkdir(parents=True)
    (tmp_path / ".hidden.py").write_text('"""No."""\n')
    (tmp_path / "shown.py").write_text('"""Yes."""\nif __name__ == "__main__":\n    pass\n')
    assert make_tree.folder_lines(tmp_path, 0, tmp_path) == ["- [shown.py](../shown.py) – Yes. *(command)*"]


def test_a_folder_that_says_nothing_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.py").write_text('"""Yes."""\n')
    with pytest.raises(make_tree.TreeError, match="is not a package; add its phrase to FOLDERS"):
        make_tree.folder_lines(tmp_path, 0, tmp_path)


def test_readme_without_markers_is_an_error():
    with pytest.raises(make_tree.TreeError, match="lacks the markers"):
        make_tree.with_table("# Title\n", "| a |")


def test_check_finds_what_is_out_of_date(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"# Title\n{make_tree.BEGIN}\n{make_tree.END}\n")
    monkeypatch.setattr(make_tree, "ROOT", tmp_path)
    monkeypatch.setattr(make_tree, "tree_page", lambda: "tree\n")
    monkeypatch.setattr(make_tree, "folder_table", lambda: "table")
    assert make_tree.main(["--check"]) == 1
    assert capsys.readouterr().out.count("is out of date; run python docs/make_tree.py") == 2
    assert not (tmp_path / "docs" / "tree.md").exists()
    assert make_tree.main([]) == 0
    assert (tmp_path / "docs" / "tree.md").read_text() == "tree\n"
    assert (tmp_path / "README.md").read_text().splitlines() == [
        "# Title",
        make_tree.BEGIN,
        "table",
        make_tree.END,
    ]
    assert make_tree.main(["--check"]) == 0
