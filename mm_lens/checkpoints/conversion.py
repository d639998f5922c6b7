"""`convert`: a published checkpoint in a layout of its own becomes a transformers directory.

And the cache in which `load` keeps such directories: one for each repository and commit, or for
each state of a local directory, below `cache_directory()`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError

from mm_lens._storage.files import check_ahead
from mm_lens.arguments import suggest_directory
from mm_lens.checkpoints import formats, hub, shards
from mm_lens.checkpoints.building import blame
from mm_lens.checkpoints.directory import check_regular
from mm_lens.errors import MMLensError

CACHE_VARIABLE = "MM_LENS_CACHE"


def convert(
    format: str,
    source: str | Path,
    out: str | Path,
    *,
    vision_tower: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = shards.SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Convert a published checkpoint into a directory that transformers and `load` read.

    Files are written one by one next to `out`, in `out.partial`, and get their place at the end:
    an interrupted conversion is continued by the same call. No pickle in the source is executed.

    ```python
    mm_lens.convert("omnifusion", "downloads/OmniFusion", "omnifusion")
    model = mm_lens.load("omnifusion")
    ```

    Args:
        format: the layout of the source, e.g. the name of its model.
        source: a directory in that layout.
        out: the directory to write.
        vision_tower: hub id or directory of a vision tower that the layout does not hold; None for
            the one it was published with.
        dtype: of the weights; None keeps the source's, which must all be the same.
        shard_bytes: most bytes in one file; memory holds about one of them.
        overwrite: replace an earlier conversion.
        progress: show a bar on stderr.

    Returns:
        `out`.

    Raises:
        MMLensError: a file is missing, damaged, unsafe, or does not fit the others; the disk is
            full or cannot be written; there is something else at `out`.
    """
    kind = formats.format_named(format)
    check_ahead(Path(out), shards.RECORD_FILE, overwrite)
    check_regular(Path(source))
    with blame(source):
        plan = kind.plan(Path(source), vision_tower=vision_tower)
        shards.write(
            plan,
            Path(out),
            {"format": kind.name},
            dtype=dtype,
            shard_bytes=shard_bytes,
            overwrite=overwrite,
            progress=progress,
        )
    return Path(out)


def cache_directory() -> Path:
    """Where `load` keeps conversions: $MM_LENS_CACHE, or `~/.cache/mm_lens`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE_VARIABLE) or f"{base}/mm_lens").expanduser() / "converted"


def make_loadable(
    name_or_path: str, dtype: torch.dtype | None = None, hub_options: dict[str, Any] | None = None
) -> str | None:
    """The converted directory of a checkpoint that transformers cannot load as it is.

    Downloads and converts it if that was not done before.

    Args:
        name_or_path: a hub id or a directory.
        dtype: of the converted weights; None keeps the source's.
        hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, as in transformers.

    Returns:
        None where there is nothing to convert: transformers can load it, or knows why it cannot.

    Raises:
        MMLensError: as `convert`; or it can be had neither from the hub nor from the cache.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _from_directory(path, dtype)
    return _from_hub(name_or_path, dtype, hub_options or {})


def _from_directory(path: Path, dtype: torch.dtype | None) -> str | None:
    if (path / "config.json").is_file():
        return None
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    kind = formats.recognise(names)
    if kind is None:
        return None
    state = [f"{path.resolve()}", *(shards.stamp(path / name)[1] for name in kind.files(names))]
    key = hashlib.sha256("\n".join(state).encode()).hexdigest()[:12]
    return _converted(kind.name, path, f"{path.resolve().name}--{key}", dtype)


def _from_hub(repository: str, dtype: torch.dtype | None, options: dict[str, Any]) -> str | None:
    revision = options.get("revision")
    try:
        cached = huggingface_hub.try_to_load_from_cache(
            repository, "config.json", cache_dir=options.get("cache_dir"), revision=revision
        )
    except HFValidationError:  # no hub id; nor is it a directory
        return None
    if isinstance(cached, str):
        return None
    home = cache_directory() / repository.replace("/", "--")
    note = home / "refs" / (revision or "main").replace("/", "--")
    access = {k: options[k] for k in ("token", "cache_dir") if options.get(k) is not None}
    token = {k: v for k, v in access.items() if k == "token"}
    try:
        if options.get("local_files_only"):
            raise hub.Unreachable(f"{repository}: local_files_only forbids to ask the hub.")
        commit, names = hub.listing(repository, revision, **token)
    except hub.Unreachable as error:
        return _from_cache(home, note, dtype, error)
    except MMLensError:
        return None  # transformers says it better
    kind = None if "config.json" in names else formats.recognise(names)
    if kind is None:
        return None
    target = home / commit
    if not _complete(target, dtype):
        source = hub.fetch(repository, kind.files, commit, **access)
        _converted(kind.name, source, f"{home.name}/{commit}", dtype)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(commit, "utf-8")
    return str(_with_dtype(target, dtype))


def _from_cache(
    home: Path, note: Path, dtype: torch.dtype | None, error: hub.Unreachable
) -> str | None:
    """An earlier conversion, where the hub cannot be asked."""
    if note.is_file() and _complete(home / note.read_text("utf-8"), dtype):
        return str(_with_dtype(home / note.read_text("utf-8"), dtype))
    raise MMLensError(
        f"{error} It is neither in the cache of the hub nor converted in {home.parent}. Connect "
        "once, or copy a directory here and give its path."
        f"{suggest_directory(home.name.replace('--', '/'))}"
    ) from error


def _converted(name: str, source: Path, key: str, dtype: torch.dtype | None) -> str:
    target = cache_directory() / key
    out = _with_dtype(target, dtype)
    if not _complete(target, dtype):
        convert(name, source, out, dtype=dtype)
    return str(out)


def _with_dtype(target: Path, dtype: torch.dtype | None) -> Path:
    return target if dtype is None else target.with_name(f"{target.name}-{str(dtype)[6:]}")


def _complete(target: Path, dtype: torch.dtype | None) -> bool:
    return (_with_dtype(target, dtype) / shards.RECORD_FILE).is_file()
