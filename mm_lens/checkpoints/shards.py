"""Writing a transformers directory shard by shard from a plan of which tensor becomes which.

What can be wrong is looked at before the first byte is written: names, shapes, dtypes, disk space.
Then one shard at a time is read, written and moved to its name, so memory holds one shard, and a
killed run is continued after its last finished shard. The directory gets its own name at the end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mm_lens._storage.files import resumable_directory
from mm_lens.checkpoints.weights import TensorFile, WeightFile
from mm_lens.errors import MMLensError

SHARD_BYTES = 2 * 10**9
RECORD_FILE = "conversion.json"
"""What was converted, from which files. Marks a directory as written by a conversion."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class TensorSource:
    """The tensors of one source file."""

    file: TensorFile
    names: Mapping[str, str]
    """From a tensor's name in the new directory to its name in the file."""
    foreign: bool = False
    """Of another checkpoint: converted to the dtype of the others without asking."""


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion writes."""

    parts: Sequence[TensorSource]
    expected: Mapping[str, Sequence[int]]
    """Names and shapes that the model has."""
    sources: Mapping[str, Path]
    """Every file read, by a name: an interrupted conversion is resumed only if none has changed."""
    write_rest: Callable[[Path, torch.dtype], None]
    """Writes configuration, tokenizer and processor into a directory."""


@dataclass(frozen=True)
class _Shard:
    file: str
    entries: list[tuple[TensorSource, str]]  # and the new name
    size: int  # bytes


def write(
    plan: ConversionPlan,
    out: Path,
    record: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write what is planned, or the rest of it where an earlier run was cut off.

    Args:
        plan: what to write.
        out: the directory.
        record: what is converted, for `RECORD_FILE`; must be the same to resume.
        dtype: of all weights; None keeps that of the sources, which must all have the same.
        shard_bytes: most bytes in one file, and so about what memory must hold.
        overwrite: replace an earlier conversion.
        progress: show a bar on stderr.

    Raises:
        MMLensError: names, shapes or dtypes do not fit; the disk is full or cannot be written; an
            unfinished conversion of something else lies there. Nothing is at `out` then.
    """
    check_names(plan)
    dtype = dtype or _common_dtype(plan)
    shards = _divide(plan, dtype, shard_bytes)
    sources = {name: stamp(path) for name, path in sorted(plan.sources.items())}
    record = {
        **record,
        "mm_lens": version("mm-lens"),
        "dtype": str(dtype).removeprefix("torch."),
        "files": {name: size for name, (size, _) in sources.items()},
    }
    stamps = {name: words for name, (_, words) in sources.items()}
    origin = {**record, "files": stamps, "shards": [shard.size for shard in shards]}
    try:
        with resumable_directory(out, RECORD_FILE, origin, overwrite) as staging:
            todo = [s for s in shards if not _finished(staging / s.file, s, dtype)]
            _check_space(staging, sum(shard.size for shard in todo))
            with tqdm(
                total=sum(shard.size for shard in shards),
                initial=sum(shard.size for shard in shards if shard not in todo),
                desc=f"converting to {out.name}",
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar:
                for shard in todo:
                    _write_shard(staging / shard.file, shard, dtype)
                    bar.update(shard.size)
            _write_index(staging, shards)
            plan.write_rest(staging, dtype)
            _write_json(staging / RECORD_FILE, record)
    except OSError as error:
        raise _cannot_write(error, out) from error


def check_names(plan: ConversionPlan) -> None:
    """Compare planned names and shapes with the model's.

    Raises:
        MMLensError: some are missing, unexpected, twice there or of another shape.
    """
    problems: list[str] = []
    found: dict[str, TensorSource] = {}
    for part in plan.parts:
        for new, old in part.names.items():
            if new in found:
                problems.append(f"{new} is in {found[new].file.path} and in {part.file.path}")
            elif new not in plan.expected:
                problems.append(f"{old} in {part.file.path} is unexpected")
            elif part.file.specs[old].shape != tuple(plan.expected[new]):
                problems.append(
                    f"{old} in {part.file.path} has shape {part.file.specs[old].shape}, the model "
                    f"{tuple(plan.expected[new])}"
                )
            found[new] = part
    problems += [f"{name} is missing" for name in plan.expected if name not in found]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise MMLensError(
            "The files do not fit the model of their configuration: "
            f"{'; '.join(problems[:5])}{more}. Fetch them again, all of one version; "
            f"weights are in {plan.parts[-1].file.path.parent}."
        )


def _common_dtype(plan: ConversionPlan) -> torch.dtype:
    files: dict[torch.dtype, list[str]] = defaultdict(list)
    for part in plan.parts:
        if not part.foreign:
            for dtype in {part.file.specs[old].dtype for old in part.names.values()}:
                files[dtype].append(part.file.path.name)
    if len(files) == 1 and (dtype := next(iter(files))) in _DTYPES:
        return dtype
    listed = "; ".join(
        f"{str(dtype).removeprefix('torch.')} in {', '.join(sorted(names)[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for dtype, names in sorted(files.items(), key=str)
    )
    raise MMLensError(
        f"The weights are not all of one of float32, bfloat16 and float16: {listed}. Choose one "
        "for all of them (dtype=torch.bfloat16, --dtype bfloat16)."
    )


def _divide(plan: ConversionPlan, dtype: torch.dtype, most: int) -> list[_Shard]:
    """Tensors in order, as many in a file as fit."""
    groups: list[list[tuple[TensorSource, str]]] = []
    sizes: list[int] = []
    for part in plan.parts:
        for new in part.names:
            size = prod(plan.expected[new]) * dtype.itemsize
            if not groups or sizes[-1] + size > most:
                groups.append([])
                sizes.append(0)
            groups[-1].append((part, new))
            sizes[-1] += size
    n = len(groups)
    names = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    names = names if n > 1 else ["model.safetensors"]
    return [_Shard(*each) for each in zip(names, groups, sizes, strict=True)]


def _write_shard(path: Path, shard: _Shard, dtype: torch.dtype) -> None:
    by_file: dict[int, list[tuple[TensorSource, str]]] = defaultdict(list)
    for part, new in shard.entries:
        by_file[id(part)].append((part, new))
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for entries in by_file.values():
        with entries[0][0].file.open() as read:
            for part, new in entries:
                tensor = read(part.names[new]).to(dtype).contiguous()
                view = tensor.untyped_storage().nbytes() != tensor.nbytes
                if view or tensor.data_ptr() in memory:
                    tensor = tensor.clone()  # the writer wants no two tensors in the same memory
                memory.add(tensor.data_ptr())
                tensors[new] = tensor
    part_path = path.with_suffix(".part")
    save_or_explain(tensors, part_path)
    _to_disk(part_path)
    part_path.rename(path)


def save_or_explain(tensors: dict[str, Tensor], path: Path) -> None:
    """`save_file`, with the error of the operating system instead of the library's."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        full = shutil.disk_usage(path.parent).free < size or "os error 28" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error


def _finished(path: Path, shard: _Shard, dtype: torch.dtype) -> bool:
    """Whether an earlier run wrote this shard: it has its name, and the file is whole."""
    if not path.exists():
        return False
    wanted = {new: (part.file.specs[part.names[new]].shape, dtype) for part, new in shard.entries}
    try:
        found = WeightFile(path).specs
    except MMLensError:  # damaged since: it is written again
        return False
    return {n: (spec.shape, spec.dtype) for n, spec in found.items()} == wanted


def _write_index(staging: Path, shards: Sequence[_Shard]) -> None:
    if len(shards) == 1:
        return
    where = {new: shard.file for shard in shards for _, new in shard.entries}
    size = sum(shard.size for shard in shards)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    _write_json(staging / "model.safetensors.index.json", index)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def stamp(path: Path) -> tuple[int, str]:
    """Size of a file in bytes, and size with time of change in words.

    Raises:
        MMLensError: it is missing.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MMLensError(f"{path} is missing.") from error
    return status.st_size, f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free", str(directory)
        )


def _cannot_write(error: OSError, out: Path) -> MMLensError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MMLensError(
            f"The disk is full ({error.strerror}): {out} was not written. Free some space and run "
            "the same again to resume it, or name another directory."
        )
    return MMLensError(
        f"{error.filename or out}: {error.strerror or error}. {out} was not written: name another "
        "directory, or make this one writable."
    )
