"""`python -m rl.push` against a local stand-in for the Hub: what arrives there, and what is refused."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from rl import push
from tests.rl.commands import ROOT, TIMEOUT
from tests.rl.hub_stand_in import LARGE, READER, WRITER, Hub, running_hub

NAME = "someone/rigs"
CARD = "---\nlicense: mit\nlibrary_name: tokenrig-rl\n---\n\n# A policy\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, to which this process's huggingface_hub speaks with a token that may write."""
    with running_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # LFS, which the stand-in speaks
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield found


@pytest.fixture
def run(policy_path: Path, tmp_path: Path) -> Path:
    """The output directory of a finished run with a best policy, as far as an upload looks at it."""
    output = tmp_path / "run"
    output.mkdir()
    (output / "recipe.yaml").write_text("output_dir: run\n")
    for name in ("policy", "policy_best"):
        shutil.copytree(policy_path, output / name)
        (output / name / "README.md").write_text(CARD.replace("A policy", name))
    (output / "policy" / ".cache").mkdir()
    (output / "policy" / ".cache" / "left").write_text("not part of it")
    return output


def files_of(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


@pytest.mark.parametrize("protocol", ["lfs", "xet"])
def test_the_command_uploads_a_run_byte_for_byte_to_a_private_repository(run, tmp_path, protocol):
    """As a user runs it: in a process of its own, which knows the Hub from its environment alone."""
    if protocol == "xet":
        pytest.importorskip("hf_xet", reason="huggingface_hub uploads by LFS without hf_xet")
    expected = files_of(run / "policy")
    sizes = {len(content) >= LARGE for name, content in expected.items() if name.endswith(".safetensors")}
    assert sizes == {True, False}, "one file is to go whole, the other in parts"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    with running_hub() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home")}
        own["HF_HUB_DISABLE_XET"] = str(int(protocol == "lfs"))
        result = subprocess.run(
            [sys.executable, "-m", "rl.push", run, NAME],
            cwd=tmp_path,
            env={**kept, **own, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    assert result.returncode == 0, result.stderr
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.branches == {"main": expected}
    assert repository.commits == ["Upload run/policy"]
    in_parts = any(request.startswith("PUT") and request.endswith("/2") for request in hub.requests)
    assert in_parts == (protocol == "lfs")
    assert bool(hub.chunks) == (protocol == "xet")
    size = sum(map(len, expected.values())) / 1e6
    lines = result.stdout.splitlines()
    assert lines[0] == f"{NAME} (private), branch main: {len(expected)} files, {size:.1f} MB"
    assert lines[1].startswith(f"{hub.url}/{NAME}/commit/")


def test_a_branch_of_its_own_and_the_best_policy(hub, run, capsys):
    assert push.main([str(run), NAME, "--message", "first"]) == 0
    assert push.main([str(run), NAME, "--best", "--revision", "best so far", "--message", "second"]) == 0
    repository = hub.repositories[NAME]
    assert repository.branches["main"]["README.md"].endswith(b"# policy\n")
    assert repository.branches["best so far"] == files_of(run / "policy_best")
    assert repository.commits == ["first", "second"]
    assert f"{NAME} (private), branch best so far: " in capsys.readouterr().out


def test_a_policy_directory_again_changes_nothing_and_stale_weights_go(hub, run, capsys):
    folder = run / "policy"
    for name in ("first", "second"):
        assert push.main([str(folder), NAME, "--message", name]) == 0
    repository = hub.repositories[NAME]
    assert repository.commits == ["first"]  # the second would have been empty
    stale = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}"}
    repository.branches["main"] |= {**stale, "figure.png": b"theirs", "skin_vae/old.safetensors": b"2"}
    capsys.readouterr()
    assert push.main([str(folder), NAME, "--message", "third"]) == 0
    assert repository.branches["main"] == {**files_of(folder), "figure.png": b"theirs"}
    removed = ", ".join([*stale, "skin_vae/old.safetensors"])
    assert f"removed weights of an earlier policy: {removed}\n" in capsys.readouterr().out


def test_public_only_if_asked(hub, run, capsys):
    assert push.main([str(run), "someone/shown", "--public"]) == 0
    assert not hub.repositories["someone/shown"].private
    assert "someone/shown (public)" in capsys.readouterr().out
    before = list(hub.requests)
    assert push.main([str(run), "someone/shown"]) == 2
    assert "someone/shown exists and is public; pass --public" in capsys.readouterr().err
    assert not any(request.startswith("P") for request in hub.requests[len(before) :])
    assert push.main([str(run), NAME]) == 0
    assert push.main([str(run), NAME, "--public", "--message", "again"]) == 0
    assert hub.repositories[NAME].private
    assert f"{NAME} (private)" in capsys.readouterr().out


def test_a_policy_without_a_card_is_noted(hub, policy_path, capsys):
    assert push.main([str(policy_path), NAME]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == f"note: {policy_path} has no model card (README.md)"
    assert hub.repositories[NAME].branches["main"] == files_of(policy_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", NAME], "nowhere: no such directory; give a run's output_dir or a policy directory"),
        (["empty", NAME], "empty: not a policy directory; it has no TokenRig model"),
        (["early", NAME], "early has no policy/ yet; let the run finish (the same command resumes it)\n"),
        (["early", NAME, "--best"], "early has no policy_best/; a run keeps it with eval.every=N"),
        (["going", NAME], "resumes it), or upload the best policy so far with --best\n"),
        (["run/policy", NAME, "--best"], "is no run's output_dir, and --best needs one; leave it out"),
        (["half", NAME], "half has no skin VAE (skin_vae/), so it is no whole policy; give"),
        (["pointer", NAME], "model.safetensors"),
        (["run", "rigs"], "'rigs' is not the name of a repository (it has no account); write ACCOUNT/NAME"),
        (["run", "some one/rigs"], "'some one/rigs' is not the name of a repository"),
        (["run", "a/b/c"], "'a/b/c' is not the name of a repository"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before_the_hub_is_asked(
    hub, run, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "early", "going"):
        Path(name).mkdir()
    for name in ("early", "going"):
        shutil.copy(run / "recipe.yaml", name)
    shutil.copytree(run / "policy_best", "going/policy_best")
    shutil.copytree(run / "policy", "half")
    shutil.rmtree("half/skin_vae")
    shutil.copytree(run / "policy", "pointer")
    Path("pointer/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert push.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        (None, 2, "error: there is no Hugging Face token; run `hf auth login`, or set HF_TOKEN to one that"),
        ("hf_wrong", 2, f"error: the token may not write to {NAME} (401: "),
        (READER, 2, f"error: the token may not write to {NAME} (403: "),
    ],
)
def test_a_token_that_may_write_is_needed(hub, run, monkeypatch, capsys, token, status, message):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert push.main([str(run), NAME]) == status
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert shown.count("\n") == 1
    assert hub.repositories == {}


def test_no_network_is_a_failed_run(hub, run, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert push.main([str(run), NAME]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"failed: {address} cannot be reached (")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("request_path", ["repos/create", "commit/main"])
def test_a_hub_that_fails_leaves_no_commit(hub, run, capsys, request_path):
    hub.failing = request_path
    assert push.main([str(run), NAME]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown == "failed: the Hub failed (500: out of order); nothing was committed, try again"
    assert all(repository.commits == [] for repository in hub.repositories.values())


def test_offline_mode_is_named(hub, run, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push.main([str(run), NAME]) == 2
    assert "HF_HUB_OFFLINE is set, and an upload needs the Hub; unset it" in capsys.readouterr().err


def test_help_loads_neither_torch_nor_the_hub():
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rl.push", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert "ACCOUNT/NAME" in shown.stdout
    loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "data.command_line" in loaded
    assert not loaded & {"torch", "huggingface_hub"}
