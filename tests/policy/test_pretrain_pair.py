"""The chain from rig files to the pair: whole, interrupted, finished, and refusals, at sizes of a second."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from data import make_creature, read_manifest, write_skinned_glb
from policy import load as load_policy
from policy import pretrain_pair, pretrain_skin_vae, pretrain_tokenrig
from policy.pretrain_pair import StageRun, load_recipe, main, planned, sources
from tests.policy.tiny_recipes import SKIN_VAE, TOKENRIG, metrics

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("stop_signal_handlers")

# Runs the command, and dies in the fifth step of stage 2 as if killed.
KILLED = """
import os, signal, sys
from policy import pretrain_pair, pretrain_tokenrig

left, whole = iter(range(6)), pretrain_tokenrig.rig_losses  # of 4 steps and of the validation after 3

def until_killed(*arguments):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)

pretrain_tokenrig.rig_losses = until_killed
sys.exit(pretrain_pair.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rigs of two families, of which one is held out, and one that must not be used."""
    folder = tmp_path_factory.mktemp("rigs")
    for seed in range(5):
        creature = make_creature(seed, "snake")
        write_skinned_glb(folder / f"{'secret_' if seed == 4 else ''}{seed}.glb", creature.mesh, creature.rig)
    sides = ["train", "train", "dev", "dev", "train"]
    entries = [
        {"file": f"{'secret_' if seed == 4 else ''}{seed}.glb", "family": f"f{seed // 2}", "split": side}
        for seed, side in enumerate(sides)
    ]
    (folder / "MANIFEST.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, rigs: Path) -> str:
    """A chain of two runs of stage 1 and one of stage 2, without an output directory."""
    folder = tmp_path_factory.mktemp("chain")
    validation = {"validation": {"every": 3, "creatures": 2, "keep": "best"}}
    for name, recipe in (("vae", SKIN_VAE), ("rig", TOKENRIG)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, **validation}))
    runs = [
        {"stage": "skin_vae", "recipe": "vae.yaml", "rigs_share": 0.5},
        {"stage": "skin_vae", "recipe": "vae.yaml", "overrides": ["loop.max_steps=3"]},
        {"stage": "tokenrig", "recipe": "rig.yaml"},
    ]
    whole: dict[str, Any] = {"rigs": str(rigs), "skip": ["secret_*", "unused_*"], "runs": runs}
    (folder / "pair.yaml").write_text(yaml.safe_dump(whole))
    return str(folder / "pair.yaml")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, chain: str) -> Path:
    """The output directory of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "pair"
    assert main([chain, f"output_dir={folder}"]) == 0
    return folder


def results(folder: Path) -> dict[str, bytes]:
    models = ("skin_vae/skin_vae", "skin_vae_2/skin_vae", "tokenrig/policy", "policy", "policy/skin_vae")
    return {name: (folder / name / "model.safetensors").read_bytes() for name in models}


def test_the_pair_comes_from_all_runs(whole, capsys):
    manifest = read_manifest(whole / "rigs")
    assert {rig.name: (rig.split, rig.group) for rig in manifest.rigs} == {
        "0": ("train", "f0"),
        "1": ("train", "f0"),
        "2": ("eval", "f1"),
        "3": ("eval", "f1"),
    }
    files = results(whole)
    assert files["policy"] == files["tokenrig/policy"]
    assert files["skin_vae_2/skin_vae"] != files["skin_vae/skin_vae"]
    policy = load_policy(whole / "policy")
    assert policy.vocabulary.codebook == 64
    for name, steps in (("skin_vae", [2, 3, 4, 6]), ("skin_vae_2", [2, 3]), ("tokenrig", [2, 3, 4, 6])):
        lines = metrics(whole / name)
        assert [line["step"] for line in lines] == steps
        assert "validation/rigs/loss" in lines[-1]  # the held-out rigs
        assert "validation/creatures/loss" in lines[-1]


def test_a_finished_chain_trains_nothing(whole, chain, capsys, monkeypatch):
    before = results(whole)
    for stage in pretrain_pair._STAGES:
        untrained = replace(pretrain_pair._STAGES[stage], train=pytest.fail)
        monkeypatch.setitem(pretrain_pair._STAGES, stage, untrained)
    assert main([chain, f"output_dir={whole}"]) == 0
    assert results(whole) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pair ")]
    size = sum(len(before[name]) for name in ("policy", "policy/skin_vae"))
    assert lines == [
        f"pair 1/5 rigs: 2 for training, 2 held out, 0 refused; in {whole}/rigs",
        f"pair 2/5 skin VAE: {whole}/skin_vae, finished earlier",
        f"pair 3/5 skin VAE: {whole}/skin_vae_2, finished earlier",
        f"pair 4/5 TokenRig: {whole}/tokenrig, finished earlier",
        f"pair 5/5 policy and skin VAE: {whole}/policy, {size / 1e6:.1f} MB",
    ]


def test_a_killed_command_resumes_to_the_same_pair(tmp_path, chain, whole, capsys):
    arguments = [chain, f"output_dir={tmp_path / 'pair'}"]
    command = [sys.executable, "-c", KILLED, *arguments]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "pair" / "tokenrig" / "state-3").is_dir()
    assert not (tmp_path / "pair" / "policy").exists()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("finished earlier") == 2
    assert results(tmp_path / "pair") == results(whole)
    for name in ("skin_vae", "skin_vae_2", "tokenrig"):
        assert metrics(tmp_path / "pair" / name) == metrics(whole / name)


def test_ctrl_c_in_stage_1_resumes(tmp_path, chain, whole, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        left, losses = iter(range(5)), pretrain_skin_vae.reconstruction_losses

        def until_stopped(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return losses(*arguments)

        patch.setattr(pretrain_skin_vae, "reconstruction_losses", until_stopped)
        assert main([chain, f"output_dir={tmp_path}"]) == 130
    assert "interrupted; " in capsys.readouterr().err
    assert main([chain, f"output_dir={tmp_path}"]) == 0
    assert results(tmp_path) == results(whole)


def test_creatures_alone_without_a_folder(chain, tmp_path, capsys):
    assert (
        main([chain, "rigs=", f"output_dir={tmp_path}", "every_run=[loop.max_steps=1,validation.keep=last]"])
        == 0
    )
    assert "pair 1/5 rigs: none, training on procedural creatures alone" in capsys.readouterr().err
    assert not (tmp_path / "rigs").exists()
    recipe = pretrain_tokenrig.load_recipe(str(tmp_path / "tokenrig" / "recipe.yaml"), [])
    assert [source.creatures for source in recipe.data.sources] == [True]
    assert recipe.validation.rigs is None


def test_rigs_without_a_manifest_are_split_by_themselves(chain, tmp_path, capsys):
    for seed in range(4):
        creature = make_creature(seed, "snake")
        (tmp_path / "mine" / str(seed % 2)).mkdir(parents=True, exist_ok=True)
        write_skinned_glb(tmp_path / "mine" / str(seed % 2) / f"{seed}.glb", creature.mesh, creature.rig)
    recipe = load_recipe(chain, [f"rigs={tmp_path / 'mine'}", f"output_dir={tmp_path}", "eval_share=0.5"])
    pretrain_pair.prepare_rigs(recipe, "1/5")
    assert f"{tmp_path}/mine/MANIFEST.json does not exist, so 50% of the rigs" in capsys.readouterr().err
    sides = {(rig.group, rig.split) for rig in read_manifest(tmp_path / "rigs").rigs}
    assert sides in ({("0", "train"), ("1", "eval")}, {("1", "train"), ("0", "eval")})


RIGS, PLAIN, LIFELIKE = {"prepared": "rigs"}, {"creatures": True}, {"creatures": True, "kinds": ["lifelike"]}


@pytest.mark.parametrize(
    ("rigs_share", "lifelike_share", "with_rigs", "without"),
    [
        (0.5, 0.0, [(PLAIN, 0.5), (RIGS, 0.5)], [(PLAIN, 0.5)]),
        (0.5, 0.25, [(PLAIN, 0.25), (LIFELIKE, 0.25), (RIGS, 0.5)], [(PLAIN, 0.25), (LIFELIKE, 0.25)]),
        (0.4, 0.6, [(LIFELIKE, 0.6), (RIGS, 0.4)], [(LIFELIKE, 0.6)]),
        (0.0, 0.0, [(PLAIN, 1.0)], [(PLAIN, 1.0)]),
        (1.0, 0.0, [(RIGS, 1.0)], [(PLAIN, None)]),
    ],
)
def test_sources_of_a_run(rigs_share, lifelike_share, with_rigs, without):
    run = StageRun("skin_vae", "x.yaml", rigs_share, lifelike_share)
    for rigs, expected in ((Path("rigs"), with_rigs), (None, without)):
        wanted = [source | ({} if weight is None else {"weight": weight}) for source, weight in expected]
        assert sources(run, rigs) == wanted


def test_a_gpu_has_settings_of_its_own(chain, monkeypatch):
    recipe = load_recipe(chain, ["every_run=[loop.seed=5]"])
    runs = json.loads(json.dumps([vars(run) for run in recipe.runs]))
    runs[0]["on_cuda"] = ["loop.batch_size=3", "loop.seed=4"]
    for available, size in ((False, 2), (True, 3)):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        first, *_, last = planned(load_recipe(chain, [f"runs={json.dumps(runs)}", "every_run=[loop.seed=5]"]))
        assert (first.recipe.loop.batch_size, first.recipe.loop.seed) == (size, 5)
        assert last.recipe.loop.batch_size == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rigs=NOWHERE"],
            "error: 'rigs': there is no folder 'NOWHERE'; name one with skinned GLB files, such",
        ),
        (["runs=[]"], "error: 'runs' must begin with a run of stage skin_vae and end with one of tokenrig"),
        (["runs=[{stage: tokenrig, recipe: rig.yaml}]"], "error: 'runs' must begin with a run of stage skin"),
        (["runs=[{stage: skin_vae}]"], "error: 'runs[0]': 'recipe' is missing; name the stage's recipe file"),
        (
            ["runs=[{stage: skin_vae, recipe: vae.yaml, rigs_share: 1.5}]"],
            "error: 'runs[0]': 'rigs_share' must be between 0 and 1, not 1.5",
        ),
        (
            ["runs=[{stage: skin_vae, recipe: vae.yaml, rigs_share: 0.6, lifelike_share: 0.5}]"],
            "error: 'runs[0]': 'rigs_share' and 'lifelike_share' are 0.6 + 0.5, more than 1; lower one",
        ),
        (["every_run=[loop.max_step=3]"], "error: 'runs[0]': unknown key 'loop.max_step'; the nearest"),
        (
            ["every_run=[loop.output_dir=x]"],
            "error: 'runs[0]': override 'loop.output_dir=x': the chain sets 'loop.output_dir'; remove the",
        ),
        (
            ["runs=[{stage: skin_vae, recipe: vae.yaml}, {stage: tokenrig, recipe: none.yaml}]"],
            "error: 'runs[1]': recipe 'CHAIN/none.yaml' does not exist; pass the path of a YAML file",
        ),
        (
            [
                "runs=[{stage: skin_vae, recipe: vae.yaml, on_cuda: [loop.steps=3]}, {stage: tokenrig, "
                "recipe: rig.yaml}]"
            ],
            "error: 'runs[0]': unknown key 'loop.steps'",  # also where there is no GPU
        ),
        (["eval_share=0"], "error: 'eval_share' must be above 0 and below 1, not 0.0"),
        (["skip=['*']"], "error: the patterns to skip match every file, so no rig is left; omit one of them"),
        (["output_dir=FILE"], "error: 'output_dir': 'FILE' cannot be written"),
        (["output_dir=OTHER"], "error: 'output_dir': OTHER/policy: exists and is not a policy directory"),
    ],
)
def test_wrong_input_ends_with_2_and_one_sentence(chain, tmp_path, capsys, overrides, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "other" / "policy").mkdir(parents=True)
    (tmp_path / "other" / "policy" / "notes.txt").write_text("")
    places = {
        "NOWHERE": str(tmp_path / "nowhere"),
        "FILE": str(tmp_path / "file"),
        "OTHER": str(tmp_path / "other"),
        "CHAIN": str(Path(chain).parent),
    }
    for name, place in places.items():
        overrides = [one.replace(name, place) for one in overrides]
        message = message.replace(name, place)
    assert main([chain, f"output_dir={tmp_path / 'out'}", *overrides]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            ["train"] * 4,
            "error: 'rigs': none of the 4 rigs in 'RIGS' is held out for validation; correct the ",
        ),
        (["dev"] * 4, "error: 'rigs': none of the 4 rigs in 'RIGS' is for training; correct the splits in "),
        (
            ["train"] * 3,
            "error: 'manifest' split:RIGS/MANIFEST.json: RIGS/3.glb has no split; add it there, or",
        ),
        (
            ["train", "dev"] * 2,
            "error: 'manifest' split:RIGS/MANIFEST.json: the group 'f0' is on both sides ",
        ),
        ([], "error: RIGS/MANIFEST.json: holds no entries;"),
    ],
)
def test_manifests_that_cannot_be_used(chain, rigs, tmp_path, capsys, splits, message):
    folder = tmp_path / "rigs"
    folder.mkdir()
    for seed in range(4):
        (folder / f"{seed}.glb").write_bytes((rigs / f"{seed}.glb").read_bytes())
    entries = [{"file": f"{k}.glb", "family": f"f{k // 2}", "split": one} for k, one in enumerate(splits)]
    (folder / "MANIFEST.json").write_text(json.dumps(entries))
    assert main([chain, f"rigs={folder}", f"output_dir={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message.replace("RIGS", str(folder)))
    assert error.count("\n") == 1


def test_results_of_other_recipes_and_rigs_are_not_mixed(whole, chain, tmp_path, rigs, capsys):
    other = whole.parent / "copy"
    if not other.exists():
        shutil.copytree(whole, other)
        for name in ("skin_vae", "skin_vae_2", "tokenrig"):  # as if made there
            written = other / name / "recipe.yaml"
            written.write_text(written.read_text().replace(str(whole), str(other)))
    place = f"output_dir={other}"
    assert main([chain, place, "every_run=[loop.save_steps=2]"]) == 0  # does not change the result
    assert main([chain, place, "every_run=[loop.learning_rate=0.5]"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: 'output_dir': '{other}/skin_vae' holds a run with another 'loop.learning_rate'"
    )
    (tmp_path / "fewer").mkdir()
    for name in ("0.glb", "2.glb", "MANIFEST.json"):
        (tmp_path / "fewer" / name).write_bytes((rigs / name).read_bytes())
    assert main([chain, place, f"rigs={tmp_path / 'fewer'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: 'output_dir': '{other}/skin_vae' was made from other rigs; delete it and"
    )


def test_the_shipped_chain_is_valid():
    recipe = load_recipe(str(ROOT / "recipes" / "small_pair.yaml"), [])
    vae, policy = planned(recipe)
    assert (vae.recipe.validation.keep, policy.recipe.validation.keep) == ("best", "best")
    assert vae.recipe.model.codebook_size == 4096
    assert policy.recipe.skin_vae == "outputs/small_pair/skin_vae/skin_vae"
    assert policy.recipe.skeleton_only_steps < policy.recipe.own_token_start < policy.recipe.loop.max_steps
    for gpu in recipe.runs:
        assert gpu.on_cuda
