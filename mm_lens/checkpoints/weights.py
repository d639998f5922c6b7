"""Weight files as transformers saves them: safetensors or `torch.save`, one file or many."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mm_lens._storage.texts import read_json
from mm_lens.checkpoints import pickles
from mm_lens.errors import MMLensError

Read: TypeAlias = Callable[[str], Tensor]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@runtime_checkable
class TensorFile(Protocol):
    """Tensors that can be read one by one."""

    @property
    def path(self) -> Path:
        """Where they lie, for messages."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Shapes and dtypes by name."""

    def open(self) -> AbstractContextManager[Read]:
        """A function from names to tensors; no memory is held once the block and they are gone."""


@dataclass(frozen=True)
class MemoryFile:
    """The few tensors of a small file, in memory."""

    path: Path
    tensors: Mapping[str, Tensor]

    @property
    def specs(self) -> dict[str, Spec]:
        """Shapes and dtypes by name."""
        return {name: Spec(tuple(t.shape), t.dtype) for name, t in self.tensors.items()}

    @contextmanager
    def open(self) -> Iterator[Read]:
        """A function from names to tensors."""
        yield self.tensors.__getitem__


class WeightFile:
    """One weight file, mapped into memory while it is open.

    A file of torch before 1.6 cannot be mapped and is read as a whole.

    Raises:
        MMLensError: it is missing, truncated, or not safe to read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.specs: dict[str, Spec] = {}
        if path.suffix == ".safetensors":
            with self._safetensors() as file:
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    entry = file.get_slice(name)
                    if entry.get_dtype() not in _DTYPES:
                        raise MMLensError(
                            f"{path}: {name} is of type {entry.get_dtype()}. Quantised weights "
                            "cannot be converted: take the checkpoint in 16 or 32 bit."
                        )
                    self.specs[name] = Spec(tuple(entry.get_shape()), _DTYPES[entry.get_dtype()])
        else:
            for name, tensor in pickles.read_tensors(path).items():
                self.specs[name] = Spec(tuple(tensor.shape), tensor.dtype)

    @contextmanager
    def open(self) -> Iterator[Read]:
        """A function from names to tensors."""
        if self.path.suffix == ".safetensors":
            with self._safetensors() as file:
                yield file.get_tensor
        else:
            yield pickles.read_tensors(self.path).__getitem__

    @contextmanager
    def _safetensors(self) -> Iterator[Any]:
        if not self.path.is_file():
            raise MMLensError(f"{self.path} is missing.")
        try:
            with safe_open(self.path, "pt") as file:
                yield file
        except SafetensorError as error:
            raise MMLensError(
                f"{self.path} is truncated or damaged ({error}). Fetch it again and compare its "
                "size."
            ) from error


def names_of_weights(names: Iterable[str]) -> list[str]:
    """Those files of a directory that hold its weights, with the index; safetensors if both."""
    all_names = list(names)
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        shards = re.compile(rf"{stem}(-\d+-of-\d+)?\.{suffix}(\.index\.json)?")
        found = sorted(name for name in all_names if shards.fullmatch(name))
        if any(name.endswith(suffix) for name in found):
            return found
    return []


def weight_files(directory: Path) -> list[WeightFile]:
    """The weight files of a directory, in order, with or without an index.

    Raises:
        MMLensError: there are none; one of several is missing or damaged; the index and the files
            disagree; two files hold the same tensor.
    """
    found = names_of_weights([path.name for path in directory.iterdir()])
    listed = [name for name in found if name.endswith(".json")]
    names = {name for name in found if not name.endswith(".json")}
    if not found:
        raise MMLensError(
            f"{directory} holds no weights: model.safetensors or pytorch_model.bin, or these in "
            "shards, are missing."
        )
    where: dict[str, str] = {}
    if listed:
        where = read_weight_map(directory / listed[0])
        names = set(where.values())
    else:
        for name in sorted(names):
            if (number := re.search(r"-(\d+)-of-(\d+)", name)) and int(number[2]) != len(names):
                raise MMLensError(
                    f"{directory} holds {len(names)} weight files, but {name} is one of "
                    f"{int(number[2])}. Fetch the missing ones."
                )
    files = [WeightFile(directory / name) for name in sorted(names)]
    seen: dict[str, str] = {}
    for file in files:
        for tensor in file.specs:
            if tensor in seen:
                raise MMLensError(
                    f"{directory}: {tensor} is both in {seen[tensor]} and in {file.path.name}."
                )
            seen[tensor] = file.path.name
    for tensor, name in where.items():
        if seen.get(tensor) != name:
            raise MMLensError(
                f"{directory / listed[0]} says that {tensor} is in {name}; it is not. The files do "
                "not belong together: fetch them again."
            )
    return files


def read_weight_map(path: Path) -> dict[str, str]:
    """Which file beside an index holds which tensor.

    Raises:
        MMLensError: it is no index, or names a file elsewhere.
    """
    where = read_object(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise MMLensError(f"{path} has no weight_map. Fetch it again.")
    for name in where.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise MMLensError(f"{path} names {name!r}, which is not a file beside it.")
    return where


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MMLensError: the file is missing, too large, or holds no JSON object.
    """
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise MMLensError(f"{path} is missing.") from error
    except ValueError as error:
        raise MMLensError(f"{path} is truncated or no JSON file ({error}).") from error
    if not isinstance(found, dict):
        raise MMLensError(f"{path} holds no JSON object.")
    return found
