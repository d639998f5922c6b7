"""What mm_lens asks the Hugging Face hub itself: which files a repository has, and some of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mm_lens.errors import MMLensError


class Unreachable(MMLensError):
    """The hub does not answer, or must not be asked."""


def listing(repository: str, revision: str | None = None, **access: Any) -> tuple[str, list[str]]:
    """Commit and file names of a repository.

    Args:
        repository: its id.
        revision: branch, tag or commit; None is the main branch.
        access: `token`.

    Raises:
        Unreachable: no network, or HF_HUB_OFFLINE is set.
        MMLensError: there is no such repository or revision, or it may not be read.
    """
    if huggingface_hub.is_offline_mode():
        raise Unreachable(f"{repository}: the hub must not be asked (HF_HUB_OFFLINE is set).")
    try:
        info = huggingface_hub.model_info(repository, revision=revision, **access)
    except (HfHubHTTPError, HFValidationError) as error:
        raise MMLensError(f"{repository}: {str(error).strip().splitlines()[0]}") from error
    except Exception as error:  # no answer, told in whatever library the client uses this year
        raise Unreachable(f"{repository}: the hub does not answer ({error}).") from error
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def fetch(
    repository: str,
    choose: Callable[[list[str]], list[str]],
    revision: str | None = None,
    **access: Any,
) -> Path:
    """A directory with some files of a repository, downloaded or from the cache.

    Args:
        repository: its id.
        choose: from all file names to those wanted.
        revision: branch, tag or commit; None is the main branch.
        access: `token`, `cache_dir`.

    Raises:
        MMLensError: they cannot be had.
    """
    try:
        token = {"token": access["token"]} if "token" in access else {}
        revision, names = listing(repository, revision, **token)
    except Unreachable as error:
        try:  # nobody can say which files there are, but an earlier download may hold them
            path = huggingface_hub.snapshot_download(
                repository, revision=revision, local_files_only=True, **access
            )
        except LocalEntryNotFoundError:
            raise MMLensError(
                f"{error} It was not downloaded before either. Download it where there is a "
                "network, and give its directory."
            ) from error
        return Path(path)
    wanted = choose(names)
    if not wanted:
        raise MMLensError(f"{repository} does not hold the files that are needed.")
    return Path(
        huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=wanted, **access
        )
    )
