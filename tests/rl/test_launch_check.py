"""Launches that training refuses, and output directories that machines do not share."""

from types import SimpleNamespace

import pytest
import yaml

from data.typed_recipe import RecipeError
from rl import launch_check
from rl.launch_check import check_launch, check_shared
from tests.rl.commands import ROOT

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def arguments(stage: int | None = None, saves: bool = True, fsdp: object = None) -> SimpleNamespace:
    config = {"zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": saves}}
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage, deepspeed_config=config)
    return SimpleNamespace(fsdp=fsdp, deepspeed_plugin=plugin)


@pytest.mark.parametrize(
    ("environment", "args", "sentence"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, arguments(), r"FSDP 1 .*'fsdp_version: 2'"),
        ({**FSDP2, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, arguments(), "set it to NO_WRAP"),
        ({**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, arguments(), "set it to FULL_STATE_DICT"),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, arguments(), "'fsdp_offload_params: true'"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, arguments(), "multi_gpu.yaml"),
        ({}, arguments(fsdp=["full_shard"]), r"'train\.fsdp' .*fsdp2\.yaml"),
        ({}, arguments(3, saves=False), r"'zero3_save_16bit_model: true'.*zero3\.yaml"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, arguments(), r"'ray\.address'"),
    ],
)
def test_unsupported_launches_are_refused_by_name(environment, args, sentence, make_recipe, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=sentence):
        check_launch(args, make_recipe({"workers": {"backend": "ray", "count": 1}}))


def test_the_given_configurations_are_accepted(make_recipe, monkeypatch):
    check_launch(arguments(), make_recipe())
    check_launch(arguments(2, saves=False), make_recipe())
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_launch(arguments(3), make_recipe({"workers": {"backend": "ray"}, "ray.address": "auto"}))
    settings = yaml.safe_load((ROOT / "recipes/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for key, value in settings.items():
        monkeypatch.setenv(key.upper(), str(value))
    check_launch(arguments(), make_recipe())


@pytest.mark.parametrize("shared", [True, False])
def test_machines_must_share_the_output_directory(shared, tmp_path, monkeypatch):
    """The second machine sees the first one's directory, or another of the same name."""
    first, second = tmp_path / "first", tmp_path / "first" if shared else tmp_path / "second"
    first.mkdir()
    second.mkdir(exist_ok=True)
    name: list[str] = []
    first_machine_writes = SimpleNamespace(
        is_main_process=False, wait_for_everyone=lambda: (first / name[0]).touch()
    )
    monkeypatch.setattr(launch_check, "several_machines", lambda: True)
    monkeypatch.setattr(launch_check, "broadcast_object_list", name.extend)
    monkeypatch.setattr(launch_check, "gather_object", lambda found: found)
    monkeypatch.setattr(launch_check, "PartialState", lambda: first_machine_writes)
    if shared:
        check_shared(second)
    else:
        with pytest.raises(RecipeError, match=f"'output_dir' {second} is not the same directory on "):
            check_shared(second)
