"""Small models that ship with the package, trained by the scripts beside them."""

from pathlib import Path

from mm_lens.arguments import suggest
from mm_lens.errors import InputError

__all__ = ["available", "path"]

_PREFIX = "demo/"


def available() -> list[str]:
    """Names of the shipped models, each as `demo/<directory>`."""
    here = Path(__file__).parent
    return sorted(_PREFIX + config.parent.name for config in here.glob("*/config.json"))


def path(name: str) -> Path:
    """Directory of a shipped model, ready for `from_pretrained`.

    Args:
        name: One of `available()`, e.g. `"demo/llava-next"`.

    Raises:
        InputError: No model of that name ships with the package.
    """
    if name not in available():
        raise InputError(
            f"No demo model {name!r} ships with mm_lens. Available: {', '.join(available())}."
            f"{suggest(name, available())}"
        )
    return Path(__file__).parent / name.removeprefix(_PREFIX)


def __dir__() -> list[str]:
    return [*__all__]
