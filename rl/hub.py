"""Uploads a policy directory to the Hugging Face Hub in one commit; the repository is private by default."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError  # of huggingface_hub's HTTP client
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError
from policy.policy_folder import (
    SKIN_VAE_FOLDER,
    NoSkinVAEError,
    PolicyError,
    find_skin_vae,
    model_type,
    refuse_stand_ins,
)
from rl.run_files import BEST_FOLDER, POLICY_FOLDER, RECIPE_FILE

MAIN = "main"
# Files of an earlier upload that would be loaded beside, or instead of, the new ones.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Upload:
    """What was uploaded, and where to.

    url: of the commit. private: whether the repository is. files, removed: paths in the repository; removed
    are weights that an earlier policy left there. size: of the files, bytes.
    """

    repo_id: str
    revision: str
    url: str
    private: bool
    files: list[str]
    removed: list[str]
    size: int


def policy_to_push(place: Path, best: bool = False) -> Path:
    """The policy directory that `place` is or, if it is a run's `output_dir`, holds; `best`: `policy_best/`.

    Raises RecipeError if there is none, or if it is not a whole policy.
    """
    if not place.is_dir():
        raise RecipeError(f"{place}: no such directory; give a run's output_dir or a policy directory")
    folder = place
    if (place / RECIPE_FILE).is_file():
        folder = place / (BEST_FOLDER if best else POLICY_FOLDER)
        if not folder.is_dir():
            raise RecipeError(_no_policy(place, best))
    elif best:
        raise RecipeError(f"{place} is no run's output_dir, and --best needs one; leave it out")
    policy_files(folder)
    return folder


def _no_policy(output: Path, best: bool) -> str:
    if best:
        return f"{output} has no {BEST_FOLDER}/; a run keeps it with eval.every=N"
    kept = ", or upload the best policy so far with --best" if (output / BEST_FOLDER).is_dir() else ""
    return f"{output} has no {POLICY_FOLDER}/ yet; let the run finish (the same command resumes it){kept}"


def policy_files(folder: Path) -> list[Path]:
    """All files of a policy directory, except hidden ones; raises RecipeError if it is not a whole policy."""
    try:
        refuse_stand_ins(folder)
        if model_type(folder) != "tokenrig" or not any(folder.glob("model*.safetensors")):
            raise PolicyError(
                f"{folder}: not a policy directory; it has no TokenRig model (config.json and "
                "model.safetensors)"
            )
        find_skin_vae(folder)
    except NoSkinVAEError as error:
        raise RecipeError(
            f"{folder} has no skin VAE ({SKIN_VAE_FOLDER}/), so it is no whole policy; give the run's "
            "output_dir instead of a checkpoint"
        ) from error
    except PolicyError as error:
        raise RecipeError(str(error)) from error
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def push_policy(
    folder: Path,
    repo_id: str,
    *,
    public: bool = False,
    revision: str = MAIN,
    message: str | None = None,
) -> Upload:
    """Upload a policy directory, in one commit, to a model repository, which is created if it is missing.

    Weights that an earlier upload left in the branch are deleted in the same commit; other files stay. The
    token and the address of the Hub are huggingface_hub's: `HF_TOKEN` or `hf auth login`, and `HF_ENDPOINT`.

    Args:
        folder: what `RigPolicy.save` wrote, with or without a model card.
        repo_id: `account/name`.
        public: create a public repository, or accept one; it never changes an existing repository.
        revision: branch, created from the main one if it is missing.
        message: of the commit.

    Raises:
        RecipeError: the directory is no policy, there is no token, the token may not write there, the name
            or the model card is refused, or the repository is public and `public` is false.
        RunFailedError: the Hub cannot be reached, or fails.
    """
    files = policy_files(folder)
    _check_name(repo_id)
    if get_token() is None:
        raise RecipeError(
            "there is no Hugging Face token; run `hf auth login`, or set HF_TOKEN to one that may write"
        )
    api = HfApi()
    paths = [path.relative_to(folder).as_posix() for path in files]
    with _in_a_sentence(repo_id, api.endpoint):
        private = _open_repository(api, repo_id, public)
        if revision != MAIN:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        stale = sorted(
            path
            for path in set(there) - set(paths)
            if any(fnmatch.fnmatch(path, pattern) for pattern in _WEIGHTS)
        )
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in zip(paths, files, strict=True)),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message or f"Upload {folder.resolve().parent.name}/{folder.resolve().name}",
            revision=revision,
        )
    size = sum(path.stat().st_size for path in files)
    return Upload(repo_id, revision, commit.commit_url, private, paths, stale, size)


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it has no account")
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"'{repo_id}' is not the name of a repository ({reason}); write ACCOUNT/NAME, without spaces"
        ) from error


def _open_repository(api: HfApi, repo_id: str, public: bool) -> bool:
    """Find or create the repository; returns whether it is private."""
    try:
        found = api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=not public)
        return not public
    if not found.private and not public:
        raise RecipeError(
            f"{repo_id} exists and is public; pass --public to upload there, or choose another name"
        )
    return bool(found.private)


@contextmanager
def _in_a_sentence(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into one sentence each; see `push_policy`."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise RecipeError("HF_HUB_OFFLINE is set, and an upload needs the Hub; unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = _short(error.server_message or str(error))
        if status in (401, 403):
            raise RecipeError(
                f"the token may not write to {repo_id} ({status}: {reason}); use one that may write to that "
                "account, from `hf auth login` or HF_TOKEN"
            ) from error
        if status in (400, 404, 422):
            raise RecipeError(f"the Hub refuses the upload to {repo_id} ({status}: {reason})") from error
        raise RunFailedError(
            f"the Hub failed ({status}: {reason}); nothing was committed, try again"
        ) from error
    except HTTPError as error:
        raise RunFailedError(
            f"{endpoint} cannot be reached ({_short(str(error) or type(error).__name__)}); check the "
            "network, then repeat the command"
        ) from error
    except ValueError as error:  # the Hub's opinion of the card, or an answer that is none of the Hub's
        raise RecipeError(f"the Hub refuses the upload to {repo_id}: {_short(str(error))}") from error
    except (RuntimeError, OSError) as error:  # of the upload of large files
        cause = f" ({_short(str(error.__cause__))})" if error.__cause__ else ""
        raise RunFailedError(
            f"the upload to {repo_id} failed: {_short(str(error))}{cause}; nothing was committed, try again"
        ) from error


def _short(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".")
