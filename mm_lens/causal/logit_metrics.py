"""Metrics of the user's on the logits of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mm_lens.arguments import describe_value
from mm_lens.errors import InputError

LogitMetric: TypeAlias = "Callable[[Float[Tensor, 'batch pos d_vocab']], Tensor]"
LogitMetrics: TypeAlias = "LogitMetric | Mapping[str, LogitMetric]"


def name_metrics(metrics: LogitMetrics) -> Mapping[str, LogitMetric]:
    """The metrics by name; a single one is called "metric".

    Raises:
        InputError: there is none.
    """
    named = metrics if isinstance(metrics, Mapping) else {"metric": metrics}
    if not named:
        raise InputError("There is no metric: the mapping is empty. See mm_lens.answers.")
    for name, metric in named.items():
        if not callable(metric):
            raise InputError(f"The metric {name!r} is a function of logits, not {metric!r}.")
    return named


def read_positions(
    metrics: Mapping[str, LogitMetric], shape: tuple[int, int]
) -> tuple[Int[Tensor, " batch"] | None, Mapping[str, LogitMetric]]:
    """The one position of each row that all metrics read, and metrics of the logits there alone.

    Methods of objects with `at_positions`, as `Answers`, say what they read. None, and the metrics
    as they are, where one does not, or where they read different positions.

    Args:
        metrics: by name.
        shape: of the inputs [batch, pos]. Metrics of others are left as they are, to refuse them.
    """
    at: Tensor | None = None
    alone: dict[str, LogitMetric] = {}
    for name, metric in metrics.items():
        owner: Any = getattr(metric, "__self__", None)
        if not hasattr(owner, "at_positions") or tuple(owner.shape) != shape:
            return None, metrics
        there, narrow = owner.at_positions()
        if at is not None and not torch.equal(at, there):
            return None, metrics
        at, alone[name] = there, getattr(narrow, metric.__name__)
    return at, alone


def evaluate_metrics(
    metrics: Mapping[str, LogitMetric], logits: Tensor, rows: int, *, scalars: bool = False
) -> Float[Tensor, "metric *row"]:
    """All metrics on the logits of one run, on the CPU.

    Args:
        metrics: by name.
        logits: of the run.
        rows: of its inputs.
        scalars: whether metrics may return a scalar (all of them then) instead of one value for
            each row.

    Raises:
        InputError: a metric returns another shape, or some return scalars and others do not.
    """
    found = []
    for name, metric in metrics.items():
        given = metric(logits)
        try:
            value = torch.as_tensor(given).detach().float().cpu()
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"The metric {name!r} returned {describe_value(given)}; it must return a tensor of "
                f"one value for each of the {rows} row(s)."
            ) from error
        if value.shape != (rows,) and not (scalars and value.ndim == 0):
            raise InputError(
                f"The metric {name!r} returned the shape {tuple(value.shape)}; it must return "
                f"{'a scalar, or ' * scalars}one value for each of the {rows} row(s)."
            )
        found.append(value)
    if len({value.ndim for value in found}) > 1:
        shapes = {name: tuple(x.shape) for name, x in zip(metrics, found, strict=True)}
        raise InputError(
            f"Some metrics return a scalar and others one value for each row: {shapes}. Let "
            "all return [batch], or all a scalar."
        )
    return torch.stack(found)
