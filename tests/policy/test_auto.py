"""`import policy.auto`: transformers loads an exported policy in a fresh process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from policy.bundle import RigPolicy
from tests.rl import tiny
from tests.rl.hub_stand_in import READER, Repository, running_hub

ROOT = Path(__file__).resolve().parents[2]

# Reads the directory, then checks model, tokenizer and a step of generation; prints what the test compares.
PROGRAM = """
import json, sys
import policy.auto
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
points = torch.linspace(-1, 1, 3 * 64).reshape(1, 64, 3)
embeds = model.encode_mesh(points, torch.nn.functional.normalize(points.flip(1), dim=-1))
prompt = torch.tensor([[config.bos_token_id, config.get_vocabulary().class_id("articulation")]])
ids = model.generate(input_ids=prompt, mesh_embeds=embeds, max_new_tokens=4, do_sample=False)
print(json.dumps({
    "config": type(config).__name__,
    "model": type(model).__name__,
    "absent": [*found["missing_keys"], *found["unexpected_keys"]],
    "tokens": len(tokenizer),
    "ids": ids[0].tolist(),
    "text": tokenizer.decode(prompt[0]),
    "logits": model.next_token_logits(embeds, prompt).double().sum().item(),
}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, RigPolicy]:
    folder = tmp_path_factory.mktemp("exported") / "policy"
    policy = tiny.make_policy()
    policy.save(folder)
    return folder, policy


def python(program: str, place: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(place)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_fresh_process_loads_an_exported_policy(exported):
    folder, policy = exported
    check(python(PROGRAM, folder, folder.parent), policy)


def test_a_fresh_process_loads_a_policy_from_the_hub(exported, tmp_path):
    folder, policy = exported
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    with running_hub() as hub:
        hub.repositories["someone/rigs"] = Repository(
            True, {"main": {n: p.read_bytes() for n, p in files.items()}}
        )
        own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": READER, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        check(python(PROGRAM, "someone/rigs", tmp_path, **own), policy)
    assert any("resolve/" in request and "model.safetensors" in request for request in hub.requests)


def check(result: subprocess.CompletedProcess[str], policy: RigPolicy) -> None:
    """PROGRAM's output is what the policy itself computes."""
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    points = torch.linspace(-1, 1, 3 * 64).reshape(1, 64, 3)
    embeds = policy.encode_mesh(points, torch.nn.functional.normalize(points.flip(1), dim=-1))
    vocabulary = policy.vocabulary
    prompt = torch.tensor([[vocabulary.bos, vocabulary.class_id("articulation")]])
    expected = policy.model.generate(input_ids=prompt, mesh_embeds=embeds, max_new_tokens=4, do_sample=False)
    assert found == {
        "config": "TokenRigConfig",
        "model": "TokenRigForCausalLM",
        "absent": [],
        "tokens": vocabulary.size,
        "ids": expected[0].tolist(),
        "text": "<bos> <class:articulation>",
        "logits": pytest.approx(policy.next_token_logits(embeds, prompt).double().sum().item(), rel=1e-5),
    }


def test_the_import_is_needed(exported):
    result = python(PROGRAM.replace("import policy.auto\n", ""), exported[0], exported[0].parent)
    assert result.returncode != 0
    assert "tokenrig" in result.stderr


def test_the_documented_program_loads_the_directory(exported):
    """The lines in docs/publishing.md, as they stand there."""
    page = (ROOT / "docs" / "publishing.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(import policy\.auto.*?)```", page, re.DOTALL)
    program = block.replace('"outputs/quickstart/policy"', "__import__('sys').argv[1]")
    assert program != block
    result = python(program, exported[0], exported[0].parent)
    assert result.returncode == 0, result.stderr
