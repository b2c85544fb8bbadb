"""The package's names: each is imported on first use, and the type checker sees the same ones."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import data


def test_names_are_those_of_their_modules():
    for name in data.__all__:
        assert getattr(data, name) is getattr(import_module(data._MODULES[name]), name)
    assert set(data.__all__) <= set(dir(data))
    with pytest.raises(AttributeError, match="module 'data' has no attribute 'make_creatures'"):
        data.make_creatures  # noqa: B018


def test_the_type_checker_sees_the_same_names():
    source = Path(data.__file__).read_text(encoding="utf-8")
    seen = {
        alias.name: node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("data.")
        for alias in node.names
    }
    assert seen == data._MODULES


def test_a_module_is_imported_without_the_others():
    script = "import sys, data.welding; print(sorted(sys.modules))"
    root = Path(data.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    for heavy in ("trimesh", "pygltflib", "scipy.spatial", "omegaconf", "PIL", "torch"):
        assert f"'{heavy}'" not in done.stdout
