"""A policy as one object and one directory: the TokenRig model, its skin VAE and its tokenizer."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.skeleton_tokenizer import ReleasedSkeletonTokenizer, detokenize, split_rig
from policy.tokens.text_tokenizer import build_text_tokenizer
from policy.tokens.vocabulary import Vocabulary

SKIN_VAE_FOLDER = "skin_vae"
ALIGNMENT = 64  # bytes, what torch gives its own tensors

Array = Tensor | npt.NDArray[np.float32]


class PolicyError(ValueError):
    """A directory that holds no usable policy; the message names it and the fix."""


@dataclass(frozen=True)
class DecodedRig:
    """A rig read from tokens.

    Attributes:
        joints: `(J, 3)` float32, mesh frame.
        parents: `(J,)` int64, -1 for the root at index 0.
        weights: `(N, J)` float32 in (0, 1) at the points asked for, one sigmoid per bone, not normalised.
        cls: name of the class in the tokens, or None.
    """

    joints: npt.NDArray[np.float32]
    parents: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    cls: str | None


class RigPolicy:
    """TokenRig together with the frozen VAE that gives its SkinTokens a meaning."""

    def __init__(self, model: TokenRigForCausalLM, skin_vae: SkinVAE) -> None:
        words, codebook = model.config.get_vocabulary(), skin_vae.config.codebook_size
        if words.codebook != codebook:
            raise PolicyError(f"the model has {words.codebook} SkinTokens but its skin VAE {codebook} codes")
        if words.tokens_per_skin != skin_vae.config.tokens_per_skin:
            raise PolicyError(
                f"the model writes {words.tokens_per_skin} SkinTokens per bone but its skin VAE makes "
                f"{skin_vae.config.tokens_per_skin}; set tokens_per_skin of the VAE's configuration"
            )
        self.model = model
        self.skin_vae = skin_vae

    @property
    def vocabulary(self) -> Vocabulary:
        """The token ids."""
        return self.model.config.get_vocabulary()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @torch.no_grad()
    def encode_mesh(self, points: Array, normals: Array) -> Tensor:
        """`(M, N, 3)` points and unit normals, mesh frame, to `(M, T, hidden)` conditioning embeddings."""
        return self.model.encode_mesh(self._tensor(points), self._tensor(normals))

    def next_token_logits(self, mesh_condition: Tensor, ids: Tensor) -> Tensor:
        """See `TokenRigForCausalLM.next_token_logits`: `(B, L, vocab)` without a grammar mask."""
        return self.model.next_token_logits(mesh_condition, torch.as_tensor(ids, device=self.device))

    @torch.no_grad()
    def decode_rig(
        self,
        ids: Iterable[int],
        points: Array,
        normals: Array,
        condition: Tensor | None = None,
        seed: int = 0,
        query_points: Array | None = None,
        query_normals: Array | None = None,
        strict: bool = False,
    ) -> DecodedRig:
        """Tokens to a rig (specification, section 11).

        Args:
            ids: a full sequence `[bos, class, ..., skeleton eos, SkinTokens, eos]`.
            points, normals: `(N, 3)` surface points of the mesh, mesh frame, and unit normals.
            condition: `(C, latent)` or `(1, C, latent)` from `skin_vae.encode_condition`; computed from the
                points with `seed` if not given. The released code leaves this seed to chance.
            query_points, query_normals: `(Q, 3)` where weights are wanted; `points` if not given.
            strict: refuse what `tokenize_rig` never writes; otherwise the released reading, which does not
                look at the final eos and takes any id for a SkinToken.

        Raises:
            RigTokenError: the ids are no rig, or SkinTokens are missing.
        """
        skeleton, codes = split_rig((int(token) for token in ids), self.vocabulary, strict=strict)
        decoded = detokenize(skeleton, self.vocabulary)
        cloud, directions = self._tensor(points), self._tensor(normals)
        if condition is None:
            condition = self.skin_vae.encode_condition(cloud[None], directions[None], seed)
        if query_points is not None and query_normals is not None:
            cloud, directions = self._tensor(query_points), self._tensor(query_normals)
        elif query_points is not None or query_normals is not None:
            raise ValueError("query_points and query_normals go together")
        weights = self.skin_vae.decode(
            torch.from_numpy(codes).to(self.device), condition.to(self.device), cloud, directions
        )
        return DecodedRig(decoded.joints, decoded.parents, weights.T.contiguous().cpu().numpy(), decoded.cls)

    def released_skeleton_tokenizer(self) -> ReleasedSkeletonTokenizer:
        """The released tokenizer and grammar of this vocabulary, for comparison."""
        return ReleasedSkeletonTokenizer(self.vocabulary)

    def _tensor(self, values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    # ---------------------------------------------------------------- files

    def save(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the policy as a directory, optionally in another dtype (bfloat16 halves the size).

        Written under a temporary name and renamed: a directory of that name is replaced as a whole, or
        kept if anything fails. Raises PolicyError if what would be replaced is no policy.
        """
        target = Path(directory)
        check_replaceable(target)
        with replacing(target) as folder:
            write_model(self.model, folder, dtype)
            self.skin_vae.save(folder / SKIN_VAE_FOLDER, dtype)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        skin_vae: str | Path | None = None,
    ) -> "RigPolicy":
        """Read a policy directory, in evaluation mode.

        Args:
            directory: what `save` wrote, or a trainer's `checkpoint-N` (also of PEFT adapters: merged).
            device, dtype: where and how to hold the weights; stored bf16 weights may be loaded as float32.
            skin_vae: a policy directory or a `skin_vae` directory, if the directory has none of its own.

        Raises:
            PolicyError: there is no policy, or no skin VAE.
        """
        source = Path(directory)
        folder = find_skin_vae(source, skin_vae)
        model = load_model(source, dtype).to(device)
        return cls(model.eval(), SkinVAE.load(folder, device, dtype))


def load(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    skin_vae: str | Path | None = None,
) -> RigPolicy:
    """See `RigPolicy.load`."""
    return RigPolicy.load(directory, device, dtype, skin_vae)


def load_model(directory: str | Path, dtype: torch.dtype | None = torch.float32) -> TokenRigForCausalLM:
    """The language model of a policy directory or of a trainer's checkpoint; PEFT adapters are merged.

    `dtype=None` keeps the stored one. Only safetensors are read. Raises PolicyError.
    """
    source = Path(directory)
    stored = "auto" if dtype is None else dtype
    base = adapter_base(source)
    if base is not None:
        from peft import PeftModel

        return PeftModel.from_pretrained(load_model(base, dtype), str(source)).merge_and_unload()
    kind = _model_type(source)
    if kind != "tokenrig":
        found = "no config.json" if kind is None else f"a model of type {kind!r}"
        raise PolicyError(
            f"{source}: {found}; give a policy directory (see `python -m policy.convert import`)"
        )
    if not any(source.glob("model*.safetensors")):
        raise PolicyError(f"{source}: no model.safetensors; the policy was not saved completely")
    with _no_progress_bar(), _no_load_report():
        model, found = TokenRigForCausalLM.from_pretrained(
            source,
            dtype=stored,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    # transformers would go on with random weights in their place.
    absent = [*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])]
    if absent:
        raise PolicyError(
            f"{source}: {len(absent)} of the weights that config.json asks for are missing or of another "
            f"size, such as {min(absent)}; restore the files of one policy"
        )
    # Views into the file are not aligned in memory, and matrix products then differ in the last bit from
    # those of the model that was saved: rollouts of the same seed could differ.
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Without transformers' table of missing weights: the error says it in a sentence."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def find_skin_vae(directory: str | Path, given: str | Path | None = None) -> Path:
    """The `skin_vae` folder that belongs to a policy directory or checkpoint. Raises PolicyError."""
    source = Path(directory)
    places = [source / SKIN_VAE_FOLDER]
    base = adapter_base(source)
    if base is not None:
        places.append(base / SKIN_VAE_FOLDER)
    if given is not None:
        places = [Path(given), Path(given) / SKIN_VAE_FOLDER]
    for place in places:
        if (place / "model.safetensors").is_file() and _model_type(place) is None:
            return place
    if given is not None:
        raise PolicyError(f"{given}: no skin VAE there (config.json and model.safetensors of one)")
    if not source.is_dir():
        raise PolicyError(f"{source}: no such directory; give a policy directory")
    raise PolicyError(
        f"{source}: no {SKIN_VAE_FOLDER} folder; a trainer's checkpoint has none, "
        "pass the policy that the run started from as skin_vae (--skin-vae)"
    )


def write_model(model: TokenRigForCausalLM, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Configuration, safetensors and tokenizer files of a model into an existing folder."""
    if dtype is None or dtype == model.dtype:
        with _no_progress_bar():
            model.save_pretrained(folder)
    else:
        tied = set(model.all_tied_weights_keys)
        weights = {name: t.to(dtype) for name, t in model.state_dict().items() if name not in tied}
        with _no_progress_bar():
            model.save_pretrained(folder, state_dict=weights)
        config = deepcopy(model.config)
        config.dtype = dtype
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
    build_text_tokenizer(model.config.get_vocabulary()).save_pretrained(folder)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its name when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(folder, target)
            shutil.rmtree(old)
        else:
            os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_replaceable(target: Path) -> None:
    """Refuse to write a policy over what is none. Raises PolicyError."""
    if not target.exists():
        return
    if not target.is_dir() or (_model_type(target) != "tokenrig" and any(target.iterdir())):
        raise PolicyError(f"{target}: exists and is no policy directory; choose another name")


def _model_type(directory: Path) -> str | None:
    """`model_type` of a directory's config.json, None without a file or entry."""
    path = directory / "config.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text()).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise PolicyError(f"{path}: is no JSON object ({error}); restore the file") from error


def adapter_base(directory: Path) -> Path | None:
    """The base model's directory of a PEFT adapter, None if `directory` holds no adapter."""
    path = directory / "adapter_config.json"
    if not path.is_file() or (directory / "config.json").is_file():
        return None
    base = json.loads(path.read_text()).get("base_model_name_or_path")
    if not base or not Path(base).is_dir():
        raise PolicyError(f"{path}: the base model {base!r} is no directory here; run where it is")
    return Path(base)
