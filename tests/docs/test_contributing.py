"""CONTRIBUTING.md's worked example runs, and names the files that a reward touches."""

import os
import subprocess
import sys

from tests.docs.pages import ROOT, code_blocks, section, table_rows

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PACKAGE = "import rewards\n\nrewards.__path__.append({folder!r})\n"


def run(folder, *command):
    """Run Python where modules in `folder` belong to the package rewards."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_worked_example_runs(tmp_path):
    example = section(TEXT, "## Add a reward")
    function, test, use = code_blocks(example, "python")
    (tmp_path / "symmetry.py").write_text(function)
    (tmp_path / "test_symmetry.py").write_text(test)
    (tmp_path / "conftest.py").write_text(PACKAGE.format(folder=str(tmp_path)))
    (tmp_path / "use.py").write_text(PACKAGE.format(folder=str(tmp_path)) + use)
    tested = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "8 passed" in tested.stdout
    used = run(tmp_path, "use.py")
    assert used.returncode == 0, used.stderr
    name, value = used.stdout.split(": ")
    assert name == "quadruped_0"
    assert 0.5 < float(value) < 1  # a quadruped in mid-stride


def test_files_of_a_reward_are_all_named():
    listed = {row[0].strip("`") for row in table_rows(section(TEXT, "### 4. Wire it into a run"), "file")}
    touched = {
        path.relative_to(ROOT).as_posix()
        for folder in ("data", "policy", "rewards", "rl", "tests/rewards", "tests/rl/recipe", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md")
        and "joint_count_prior" in path.read_text("utf-8")
        and path.relative_to(ROOT).as_posix() not in ("docs/recipe.md",)  # generated from the recipe
    }
    assert listed == touched
