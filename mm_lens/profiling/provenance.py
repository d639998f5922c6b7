"""Where a profile comes from: enough to run it again."""

from __future__ import annotations

import platform
from collections.abc import Sized
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mm_lens._storage.texts import make_encodable

PACKAGES = ("mm-lens", "torch", "transformers", "transformer-lens", "numpy", "pandas")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def describe_model(model: Any) -> dict[str, Any]:
    """Name, size and numerical settings of a bridge."""
    cfg = model.cfg
    return {
        "name": make_encodable(str(cfg.model_name)),
        "architecture": str(getattr(cfg, "architecture", None) or ""),
        "n_layers": int(cfg.n_layers),
        "d_model": int(cfg.d_model),
        "dtype": str(cfg.dtype).removeprefix("torch."),
        "attention": str(getattr(model, "attention", "")),
        "device": str(cfg.device),
    }


def describe_data(dataset: Sized, name: str | None) -> dict[str, Any]:
    """Name and size of a data set. Without a name, its own or that of its class."""
    own = getattr(dataset, "name", "") or type(dataset).__name__
    return {"name": make_encodable(str(name or own)), "n_available": len(dataset)}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
