"""Reads the tensors of a PyTorch file without letting the file call anything.

Training frameworks put configurations and callbacks beside the weights. ``torch.load(weights_only=True)`` refuses such
files as a whole; here every name in the pickle becomes an inert stand-in, and tensors are rebuilt from their bytes.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsplat_ns.errors import CheckpointMismatch

DATA_PACKAGES = frozenset(
    "_codecs antlr4 argparse collections copy_reg copyreg dacite datetime enum hydra jaxtyping lightning "
    "lightning_fabric lightning_utilities ml_collections numpy omegaconf pathlib pytorch_lightning src torch "
    "torchmetrics typing uuid yacs".split()
)
"""Packages whose objects may stand beside weights. They are never imported; names of any other package are refused."""
DATA_BUILTINS = frozenset(
    "bool bytearray bytes complex dict float frozenset int list object set slice str tuple".split()
)


@dataclass(frozen=True)
class _Storage:
    """Where the bytes of tensors lie in the archive."""

    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class _StoredTensor:
    """A tensor that has not been read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stands for any object of another library: takes whatever its pickle says and does nothing."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Ignore an element of a list."""

    def extend(self, values: object) -> None:
        """Ignore elements of a list."""

    def add(self, value: object) -> None:
        """Ignore an element of a set."""


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *unused: object) -> _StoredTensor:
    return _StoredTensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _rebuild_parameter(data: _StoredTensor, *unused: object) -> _StoredTensor:
    return data


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, stream: BytesIO, source: Path) -> None:
        super().__init__(stream)
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name.endswith("Storage"):
            return _storage_type(name)
        if module in ("builtins", "__builtin__"):  # the second is the first one's name in old protocols
            is_data = name in DATA_BUILTINS
        else:
            is_data = module.partition(".")[0] in DATA_PACKAGES
        if not is_data:
            raise CheckpointMismatch(f"{self.source} asks to call {module}.{name}, which no checkpoint needs; refused")
        # A fresh class each time, so that nothing in the file can reach another stand-in through it.
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("not a storage")
        return _Storage(str(key), dtype, int(length))


def _storage_type(name: str) -> torch.dtype:
    """The element type of a typed storage class such as FloatStorage, which is never created."""
    names = {"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "LongStorage": "int64"}
    names |= {"BFloat16Storage": "bfloat16", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"}
    names |= {"ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8"}
    if name not in names:
        raise pickle.UnpicklingError(f"unknown storage {name}")
    return getattr(torch, names[name])


def read_state_without_objects(path: Path) -> dict[str, Any]:
    """The content of a PyTorch zip file with every tensor of its ``state_dict`` (or of the top level) read.

    Numbers and text at the top level are kept; everything else but the state dict is dropped. Nothing in the file is
    imported or called.

    Raises:
        CheckpointMismatch: If the file names functions, is damaged, or is not PyTorch's zip format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            content = _InertUnpickler(BytesIO(archive.read(index)), path).load()
            reader = _TensorReader(archive, index.removesuffix("data.pkl"))
            if not isinstance(content, Mapping):
                raise pickle.UnpicklingError("not a dictionary")
            if not isinstance(content.get("state_dict"), Mapping):
                return reader.read(content)
            plain = {key: value for key, value in content.items() if isinstance(value, int | float | str)}
            return {**plain, "state_dict": reader.read(content["state_dict"])}
    except CheckpointMismatch:
        raise
    except Exception as error:  # a hostile pickle can fail in any way
        reason = " ".join(str(error).split())[:200]
        raise CheckpointMismatch(f"{path} cannot be read as a PyTorch checkpoint: {reason}") from None


class _TensorReader:
    """Reads stored tensors; those that share a storage keep sharing it."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Tensor] = {}

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same mapping with its stored tensors read, without what is neither tensor nor number."""
        return {
            str(key): self._tensor(value) if isinstance(value, _StoredTensor) else value
            for key, value in values.items()
            if isinstance(value, _StoredTensor | int | float | str)
        }

    def _tensor(self, stored: _StoredTensor) -> Tensor:
        storage = stored.storage
        if storage.key not in self.storages:
            data = bytearray(self.archive.read(f"{self.prefix}data/{storage.key}"))
            self.storages[storage.key] = (
                torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            )
        flat = self.storages[storage.key]
        return flat.as_strided(stored.size, stored.stride, stored.offset)
