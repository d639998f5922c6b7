"""A directory that somebody else made, looked at before anything in it is read as a model.

transformers reads what a directory names: a pipe would be waited for, and an index may name files
anywhere on the machine. Neither sizes nor counts are to be paid for before they are known.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mm_lens.checkpoints import pickles
from mm_lens.checkpoints.weights import names_of_weights, read_object, read_weight_map
from mm_lens.errors import MMLensError

SMALL = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files of a model that hold a JSON object."""

MAX_TEMPLATE = 2**18
"""Most bytes of a chat template: 256 KiB. Published ones have less than a tenth of it."""


def check_regular(directory: Path) -> None:
    """Refuse pipes, sockets and devices: who reads one waits for ever, or reads without end.

    Raises:
        MMLensError: there is one.
    """
    for path in directory.rglob("*"):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise MMLensError(f"{path} is not a file, but a pipe or a device. Remove it.")


def check_directory(directory: Path) -> None:
    """See that the small files of a model's directory are what their names say.

    Raises:
        MMLensError: one is no regular file, too large, or no JSON object; or the index of the
            weights names files elsewhere.
    """
    check_regular(directory)
    for name in SMALL:
        if (directory / name).exists():
            read_object(directory / name)
    for path in directory.glob("*.index.json"):
        read_weight_map(path)
    template = directory / "chat_template.jinja"
    if template.exists() and template.stat().st_size > MAX_TEMPLATE:
        raise MMLensError(
            f"{template} has {template.stat().st_size:,} bytes, more than the {MAX_TEMPLATE:,} of "
            "any template. Get the checkpoint again, or raise "
            "mm_lens.checkpoints.directory.MAX_TEMPLATE."
        )


def count_numbers(directory: Path) -> int | None:
    """How many numbers the weight files of a directory hold; None if it has none that are known.

    Raises:
        MMLensError: one is truncated or damaged.
    """
    names = [
        name
        for name in names_of_weights([path.name for path in directory.iterdir()])
        if not name.endswith(".json")
    ]
    return sum(_count(directory / name) for name in names) if names else None


def _count(path: Path) -> int:
    if path.suffix != ".safetensors":
        return sum(tensor.numel() for tensor in pickles.read_tensors(path).values())
    try:
        with safe_open(path, "pt") as file:
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MMLensError(
            f"{path} is truncated or damaged ({error}). Fetch it again and compare its size."
        ) from error
