"""Loading a model for a command: the libraries silent, and one error that says why not."""

# torch and transformers are imported when a model is loaded.
from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mm_lens import demo
from mm_lens.cli import failures
from mm_lens.errors import MMLensError, MMLensWarning, lacks_memory
from mm_lens.profiling import processes

if TYPE_CHECKING:
    from mm_lens.model.bridge import VisionLanguageBridge


@contextmanager
def silence_libraries(speak: bool = True) -> Iterator[None]:
    """Only mm_lens speaks: libraries keep their warnings and progress bars to themselves."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or it warns when a process is forked
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in (None, "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default" if speak else "ignore", MMLensWarning)
        warnings.showwarning = failures.show_warning
        yield


def load_model(
    model: str, *, dtype: str | None, device_map: str | None, **options: Any
) -> VisionLanguageBridge:
    """The model, or one error that says why not."""
    import torch

    from mm_lens.model import load

    if device_map is not None and processes.count_processes() > 1:
        gpus = processes.find_own_gpus(torch.cuda.device_count())
        options["max_memory"] = {gpu: int(0.9 * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus}
    try:
        weights = getattr(torch, dtype) if dtype else None
        return load(model, dtype=weights, device_map=device_map, **options)
    except MMLensError:
        raise
    except Exception as error:  # many libraries read the files, each failing in its own way
        if lacks_memory(error):
            raise
        reason = (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")
        known = ", ".join(demo.available())
        raise MMLensError(
            f"Model {model!r} cannot be loaded: {reason}. Give a hub id, a complete local "
            f"directory, or one of: {known}."
        ) from error
