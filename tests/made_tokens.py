"""Tokens with a known truth, and the peers the metrics are compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from mm_lens.metrics import Tokens


def tokens_of(x: Tensor, samples: int | None = None) -> Tokens:
    """Tokens of the rows, dealt out to so many samples (one each by default)."""
    index = torch.arange(len(x), device=x.device)
    samples = samples or max(len(x), 1)
    return Tokens(x, index % samples, index // samples, index % 7)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def rotation(seed: int, d: int) -> Tensor:
    return torch.linalg.qr(normal(seed, d, d))[0]


def clustered(seed: int, n: int, d: int, samples: int, shared: float) -> Tensor:
    """Gaussian rows of unit variance; rows of one sample share this part of it."""
    own = normal(seed, n, d)
    common = normal(seed + 10**6, samples, d)[torch.arange(n) % samples]
    return shared**0.5 * common + (1 - shared) ** 0.5 * own


def microscope() -> ModuleType:
    """llm-microscope's functions, by path: its package does not import by itself in 0.0.7."""
    package = importlib.util.find_spec("llm_microscope")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = f"{package.submodule_search_locations[0]}/functions.py"
    spec = importlib.util.spec_from_file_location("microscope_functions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def in_float64() -> Iterator[None]:
    """The peer in float64: it divides integers, which gives torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def manifold(seed: int, n: int, dimension: int, d: int = 30) -> torch.Tensor:
    return normal(seed, n, dimension) @ rotation(seed + 1, d)[:dimension]
