"""Small models that ship with the package, trained by the scripts beside them."""

from pathlib import Path

from mm_lens.arguments import suggest
from mm_lens.errors import InputError

__all__ = ["available", "dictionary_path", "path"]

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


def dictionary_path(name: str) -> Path:
    """Directory of the sparse autoencoder that ships with a model.

    `mm_lens.dictionaries.load_coder(name)` reads it; its README says what it is and how good.

    Args:
        name: As `path` takes it, e.g. `"demo/llava-next"`.

    Raises:
        InputError: No model of that name ships with the package, or none of its states.
    """
    folder = path(name) / "dictionary"
    if not folder.is_dir():
        have = [other for other in available() if (path(other) / "dictionary").is_dir()]
        raise InputError(
            f"No sparse autoencoder of the states of {name!r} ships with mm_lens, only of those of "
            f"{', '.join(have)}."
        )
    return folder


def __dir__() -> list[str]:
    return [*__all__]
