"""RigPolicy: TokenRig with its frozen skin VAE in one directory; loading merges LoRA adapters."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from data.command_line import DISK_FULL
from data.disk_space import system_error
from policy.layers.finite import check_before_saving, non_finite_file, non_finite_names, not_finite_message
from policy.policy_folder import (
    SKIN_VAE_FOLDER,
    PolicyError,
    adapter_base,
    check_replaceable,
    find_skin_vae,
    model_type,
    refuse_stand_ins,
)
from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.skeleton_tokenizer import ReleasedSkeletonTokenizer, detokenize, split_rig
from policy.tokens.text_tokenizer import build_text_tokenizer
from policy.tokens.vocabulary import Vocabulary

TENSOR_ALIGNMENT = 64  # bytes, as torch allocates CPU tensors

Array = Tensor | npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecodedRig:
    """A rig decoded from tokens.

    Attributes:
        joints: `(J, 3)` float32, mesh frame.
        parents: `(J,)` int64, -1 for the root at index 0.
        weights: `(N, J)` float32 in (0, 1) at the query points, one sigmoid per bone, not normalised.
        cls: class name in the tokens, or None.
    """

    joints: npt.NDArray[np.float32]
    parents: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    cls: str | None


class RigPolicy:
    """TokenRig with the frozen skin VAE that decodes its SkinTokens.

    `places`: their directories, for the message. Raises PolicyError if the two differ in codebook, in
    SkinTokens per bone, or in what the codes mean, as far as the model's configuration says so.
    """

    def __init__(
        self,
        model: TokenRigForCausalLM,
        skin_vae: SkinVAE,
        places: tuple[str | Path, str | Path] | None = None,
    ) -> None:
        model_name, vae_name = ("the model", "its skin VAE") if places is None else map(str, places)
        vocabulary, codebook = model.config.get_vocabulary(), skin_vae.config.codebook_size
        if vocabulary.codebook != codebook:
            raise PolicyError(
                f"{model_name} has {vocabulary.codebook} SkinTokens but {vae_name} has {codebook} codes; "
                "load the skin VAE that the model was trained with"
            )
        if vocabulary.tokens_per_skin != skin_vae.config.tokens_per_skin:
            raise PolicyError(
                f"{model_name} generates {vocabulary.tokens_per_skin} SkinTokens per bone but {vae_name} has "
                f"{skin_vae.config.tokens_per_skin}; set tokens_per_skin in the VAE's config.json"
            )
        if model.config.skin_codes not in (None, skin_vae.code_digest()):
            raise PolicyError(
                f"{model_name} writes SkinTokens of another skin VAE than {vae_name}, which has as many "
                "codes but gives them other meanings; load the skin VAE that the model was trained with"
            )
        self.model = model
        self.skin_vae = skin_vae

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's token ids."""
        return self.model.config.get_vocabulary()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
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
        """Decode tokens to a rig (specification, section 11).

        Args:
            ids: a full sequence `[bos, class, ..., skeleton_eos, SkinTokens, eos]`.
            points, normals: `(N, 3)` surface points of the mesh, mesh frame, and unit normals.
            condition: `(C, latent)` or `(1, C, latent)` from `skin_vae.encode_condition`; encoded from the
                points if not given.
            seed: seed of that encoding; the released code leaves it unseeded.
            query_points, query_normals: `(Q, 3)`, where weights are decoded; the surface points if not given.
            strict: refuse sequences that `tokenize_rig` never writes. Otherwise decode as the release does,
                which ignores the final eos and accepts any id as a SkinToken.

        Raises:
            RigTokenError: the ids are not a rig, or SkinTokens are missing.
            ValueError: only one of `query_points` and `query_normals` is given.
        """
        skeleton, codes = split_rig((int(token) for token in ids), self.vocabulary, strict=strict)
        decoded = detokenize(skeleton, self.vocabulary)
        cloud, directions = self._tensor(points), self._tensor(normals)
        if condition is None:
            condition = self.skin_vae.encode_condition(cloud[None], directions[None], seed)
        if query_points is not None and query_normals is not None:
            cloud, directions = self._tensor(query_points), self._tensor(query_normals)
        elif query_points is not None or query_normals is not None:
            raise ValueError("query_points and query_normals must be passed together")
        weights = self.skin_vae.decode(
            torch.from_numpy(codes).to(self.device), condition.to(self.device), cloud, directions
        )
        return DecodedRig(decoded.joints, decoded.parents, weights.T.contiguous().cpu().numpy(), decoded.cls)

    def released_skeleton_tokenizer(self) -> ReleasedSkeletonTokenizer:
        """The released skeleton tokenizer and grammar for this vocabulary, for comparison."""
        return ReleasedSkeletonTokenizer(self.vocabulary)

    def _tensor(self, values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    # ---------------------------------------------------------------- files

    def save(
        self,
        directory: str | Path,
        dtype: torch.dtype | None = None,
        also: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write the policy to a directory, in `dtype` if given (bfloat16 halves the size of float32).

        Atomic: an existing policy directory is replaced as a whole, or kept if saving fails. `also`: further
        files by name, such as a record of where the policy comes from. Raises PolicyError if `directory`
        exists and is not a policy, RunFailedError if a weight is not finite.
        """
        target = Path(directory)
        check_replaceable(target)
        with atomic_directory(target) as folder:
            write_model(self.model, folder, dtype, self.skin_vae.code_digest())
            self.skin_vae.save(folder / SKIN_VAE_FOLDER, dtype)
            for name, content in (also or {}).items():
                (folder / name).write_bytes(content)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        skin_vae: str | Path | None = None,
    ) -> "RigPolicy":
        """Load a policy directory, in evaluation mode.

        Args:
            directory: what `save` wrote, or a trainer's `checkpoint-N`; PEFT adapters are merged.
            device, dtype: device and dtype of the loaded weights, whatever dtype is stored.
            skin_vae: a policy or `skin_vae` directory, for a directory without a skin VAE.

        Raises:
            PolicyError: the directory is not a policy, there is no skin VAE, or a weight is not finite.
        """
        source = Path(directory)
        folder = find_skin_vae(source, skin_vae)
        model = load_model(source, dtype, device)
        return cls(model.eval(), SkinVAE.load(folder, device, dtype), (source, folder))


def load(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    skin_vae: str | Path | None = None,
) -> RigPolicy:
    """See `RigPolicy.load`."""
    return RigPolicy.load(directory, device, dtype, skin_vae)


def load_model(
    directory: str | Path,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> TokenRigForCausalLM:
    """Load TokenRig from a policy directory or a trainer's `checkpoint-N`; PEFT adapters are merged.

    `dtype=None` keeps the stored dtype. Only safetensors are read. Raises PolicyError for a directory without
    a complete TokenRig model, and for weights that are NaN or infinite.
    """
    source = Path(directory)
    refuse_stand_ins(source)
    stored = "auto" if dtype is None else dtype
    base = adapter_base(source)
    if base is not None:
        from peft import PeftModel

        damaged = non_finite_file(source)
        if damaged is not None:
            raise PolicyError(damaged)
        return PeftModel.from_pretrained(load_model(base, dtype, device), str(source)).merge_and_unload()
    kind = model_type(source)
    if kind != "tokenrig":
        found = "no config.json" if kind is None else f"holds a model of type {kind!r}"
        raise PolicyError(
            f"{source}: {found}; pass a policy directory (see `python -m policy.convert import`)"
        )
    if not any(source.glob("model*.safetensors")):
        raise PolicyError(
            f"{source}: no model.safetensors; the policy was not saved completely, save it again"
        )
    with _no_progress_bar(), _no_load_report():
        model, found = TokenRigForCausalLM.from_pretrained(
            source,
            dtype=stored,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    # transformers would initialise them at random and carry on.
    absent = [*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])]
    if absent:
        raise PolicyError(
            f"{source}: {len(absent)} weights required by config.json are missing or have the wrong shape, "
            f"such as {min(absent)}; restore all files of the same policy"
        )
    not_finite = non_finite_names(model.named_parameters())
    if not_finite:
        raise PolicyError(not_finite_message(source, not_finite))
    model.to(device)
    # Views into the mapped file are unaligned, and their matrix products differ in the last bit from those of
    # the saved model: rollouts of the same seed could differ.
    for parameter in model.parameters():
        if parameter.data_ptr() % TENSOR_ALIGNMENT:
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
    """Silence transformers' table of missing weights; the PolicyError reports them."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def write_model(
    model: TokenRigForCausalLM, folder: Path, dtype: torch.dtype | None = None, skin_codes: str | None = None
) -> None:
    """Write configuration, safetensors and tokenizer files of a model to an existing folder.

    `skin_codes`: `SkinVAE.code_digest` of its skin VAE, or None to keep the configuration's. Raises
    RunFailedError if a weight is not finite, also if only the conversion to `dtype` makes it so.
    """
    if dtype is None or dtype == model.dtype:
        check_before_saving(dict(model.named_parameters()), "the policy")
        with _no_progress_bar():
            model.save_pretrained(folder)
    else:
        tied = set(model.all_tied_weights_keys)
        weights = {name: t.to(dtype) for name, t in model.state_dict().items() if name not in tied}
        check_before_saving(weights, "the policy")
        with _no_progress_bar():
            model.save_pretrained(folder, state_dict=weights)
    config = deepcopy(model.config)
    config.dtype = dtype or model.dtype
    config.skin_codes = skin_codes or config.skin_codes
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    build_text_tokenizer(model.config.get_vocabulary()).save_pretrained(folder)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that replaces `target` as a whole when the block succeeds.

    Raises OSError, which names `target`, if the disk is full, also where safetensors raises another error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.new.", dir=target.parent))
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
    except Exception as error:
        known = system_error(error)
        if known is not None and known.errno in DISK_FULL:
            raise OSError(known.errno, known.strerror, str(target)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tidy_directory(target: Path) -> None:
    """Undo what a process that was killed in `atomic_directory` left beside `target`.

    An earlier directory that it had moved aside comes back; its temporary folders are deleted.
    """
    for aside in target.parent.glob(f".{target.name}.old.*/{target.name}"):
        if not target.exists():
            os.replace(aside, target)
    for kind in ("new", "old"):  # hidden folders of other names are not ours
        for folder in target.parent.glob(f".{target.name}.{kind}.*"):
            shutil.rmtree(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
