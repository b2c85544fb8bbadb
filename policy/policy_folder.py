"""A policy directory's files: finds the skin VAE and an adapter's base, refuses damaged and foreign files."""

import json
from pathlib import Path

from data.file_content import stand_in_at

# No torch and no transformers: the reward service starts with this while they are loaded.

SKIN_VAE_FOLDER = "skin_vae"


class PolicyError(ValueError):
    """A directory that is not a usable policy; the message names the directory and the fix."""


class NoSkinVAEError(PolicyError):
    """A directory without a skin VAE, such as a trainer's checkpoint."""


def find_skin_vae(directory: str | Path, given: str | Path | None = None) -> Path:
    """The `skin_vae` folder of `given`, otherwise of a policy directory or checkpoint.

    Raises NoSkinVAEError if there is none, PolicyError if the directory is missing or its files are no files
    of a policy.
    """
    source = Path(directory)
    places = [source / SKIN_VAE_FOLDER]
    base = adapter_base(source)
    if base is not None:
        places.append(base / SKIN_VAE_FOLDER)
    if given is not None:
        places = [Path(given), Path(given) / SKIN_VAE_FOLDER]
    for place in places:
        if (place / "model.safetensors").is_file() and model_type(place) is None:
            refuse_stand_ins(place)
            return place
    if given is not None:
        raise NoSkinVAEError(
            f"{given}: no skin VAE found; pass a policy or skin_vae directory with config.json and "
            "model.safetensors"
        )
    if source.is_file():
        raise PolicyError(
            stand_in_at(source)
            or f"{source}: this is a file; pass a policy directory (see `python -m policy.convert import`)"
        )
    if not source.is_dir():
        raise PolicyError(f"{source}: no such directory; pass a policy directory")
    raise NoSkinVAEError(
        f"{source}: no {SKIN_VAE_FOLDER} folder; for a trainer's checkpoint, pass the policy that the run "
        "started from as skin_vae (--skin-vae)"
    )


def check_replaceable(target: Path) -> None:
    """Raise PolicyError if `target` exists and is neither a policy nor an empty directory."""
    if not target.exists():
        return
    if not target.is_dir() or (model_type(target) != "tokenrig" and any(target.iterdir())):
        raise PolicyError(f"{target}: exists and is not a policy directory; choose another path")


def refuse_stand_ins(directory: Path, pattern: str = "*") -> None:
    """Raise PolicyError if a JSON or safetensors file in `directory` is a Git LFS pointer or a web page."""
    for path in sorted(directory.glob(pattern)):
        if path.suffix in (".json", ".safetensors") and path.is_file():
            found = stand_in_at(path)
            if found is not None:
                raise PolicyError(found)


def model_type(directory: Path) -> str | None:
    """`model_type` in a directory's config.json; None without the file or the entry."""
    path = directory / "config.json"
    if not path.is_file():
        return None
    refuse_stand_ins(directory, "config.json")
    try:
        return json.loads(path.read_text()).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise PolicyError(f"{path}: not a JSON object ({error}); restore the file") from error


def adapter_base(directory: Path) -> Path | None:
    """Directory of the base model of a PEFT adapter; None if `directory` holds no adapter.

    Raises PolicyError if its configuration is damaged or the base model is not on this machine.
    """
    path = directory / "adapter_config.json"
    if not path.is_file() or (directory / "config.json").is_file():
        return None
    refuse_stand_ins(directory, path.name)
    try:
        base = json.loads(path.read_text()).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise PolicyError(f"{path}: not a PEFT configuration ({error}); restore the file") from error
    if not base or not Path(base).is_dir():
        raise PolicyError(
            f"{path}: the base model {base!r} is not a directory on this machine; copy it there"
        )
    return Path(base)
