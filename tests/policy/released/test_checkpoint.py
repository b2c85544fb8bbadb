import shutil
import sys
from pathlib import Path

import pytest
import torch

from policy.convert import main as convert
from policy.released.checkpoint import CheckpointError, read_checkpoint
from tests.policy.checkpoint_pairs import RIG


class MaliciousImport:
    def __reduce__(self):
        return shutil.rmtree, ("/nowhere", True)


def test_a_refused_type_is_reported(tmp_path):
    torch.save({"state_dict": {}, "x": MaliciousImport()}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"refers to shutil\.rmtree"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_containers_of_training_frameworks_are_read(tmp_path, monkeypatch):
    module = type(sys)("lightning.fabric.utilities.data")
    kind = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = kind
    for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {"state_dict": {}, "hyper_parameters": kind(where=Path("a/b"), n=3)}
    torch.save(content, tmp_path / "x.ckpt")
    found = read_checkpoint(tmp_path / "x.ckpt").hyper_parameters
    assert type(found) is dict
    assert found == {"where": "a/b", "n": 3}


def test_damaged_file(tmp_path):
    content = bytearray(RIG.read_bytes())
    content[900_000] ^= 1  # inside the embedding
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r": entry .*data/\d+ is damaged"):
        read_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("version", ["2.8.0", "2.9.1+cu128", "2.10.0a0+git1234"])
def test_torch_before_its_unpickling_fix_is_refused(version, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the file was read"))
    with pytest.raises(CheckpointError, match=r"torch 2\..*install torch 2\.10 or newer") as error:
        read_checkpoint(RIG)
    assert str(RIG) in str(error.value)
    assert version in str(error.value)
    assert convert(["import", str(RIG), "--out", str(tmp_path / "policy")]) == 2
    assert capsys.readouterr().err == f"error: {error.value}\n"


@pytest.mark.parametrize("version", ["2.10.0+cu128", "2.10.1", "2.13.0", "3.0"])
def test_torch_since_its_unpickling_fix_is_used(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    assert read_checkpoint(RIG).tensors
