"""A mode that raises on what a CUDA graph cannot capture: copies between host and device, unknown shapes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Tensors there have shapes but no values, so that a machine without a GPU can run a step. (Fake CUDA tensors
# cannot be indexed or copied by a PyTorch that was built without CUDA.)
DEVICE = torch.device("meta")

aten = torch.ops.aten
# Their result's size or value has to reach the host.
_WAITING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._unique2,
    aten.repeat_interleave,
    aten.bincount,
}


class NotCapturableError(AssertionError):
    """An operation that a CUDA graph cannot hold."""


class _Refuse(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            tensor.dtype == torch.bool for tensor in tree_leaves(args[1]) if isinstance(tensor, Tensor)
        )
        if func.overloadpacket in _WAITING or masks:
            raise NotCapturableError(f"{func} waits for the device")
        # A number in a CPU tensor may take part in an operation, though not in a copy.
        copies = func.overloadpacket in (aten._to_copy, aten.copy_)
        devices = {tensor.device.type for tensor in tensors if copies or tensor.dim() > 0}
        if "device" in kwargs and kwargs["device"] is not None:
            devices.add(torch.device(kwargs["device"]).type)
        if len(devices) > 1:
            raise NotCapturableError(f"{func} copies between host and device")
        return func(*args, **kwargs)


class _RefuseLiterals(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (torch.tensor, torch.as_tensor):  # made on the host, then copied; no operation shows it
            raise NotCapturableError(f"{func.__name__} copies from the host")
        return func(*args, **(kwargs or {}))


@contextmanager
def capturing() -> Iterator[None]:
    """Use it around a step whose tensors are on `DEVICE`: raises NotCapturableError."""
    with _Refuse(), _RefuseLiterals():
        yield
