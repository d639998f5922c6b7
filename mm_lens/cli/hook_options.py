"""Options that say what to profile: hooks, pairs, heads, and lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

Metrics = Annotated[
    str | None,
    typer.Option(help="Metrics by name, with commas, instead of presets: docs/metrics.md."),
]
Hooks = Annotated[
    str,
    typer.Option(
        help="What to measure, with commas: states (of the residual stream), attn_out, mlp_out, q, "
        "k, v, z, pre, post, …, tower, projector_in, projector_out; full names; patterns with *."
    ),
]
Pairs = Annotated[
    str | None,
    typer.Option(
        help="What to relate to what, with commas: components, states, tower, projector, … or two "
        "hooks with a colon, as resid_pre:attn_out.",
        show_default="the known pairs among --hooks",
    ),
]
Heads = Annotated[
    str | None,
    typer.Option(
        help="Measure heads of q, k, v and z one by one: all, or numbers with commas.",
        show_default="all heads together",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="GiB of memory for states with --states ram; more passes or fewer tokens keep it.",
        show_default="80 % of the machine's",
    ),
]
PerSample = Annotated[
    bool,
    typer.Option(
        "--per-sample", help="Describe the tokens of each sample alone as well: samples.parquet."
    ),
]


def split_names(text: str, valid: Sequence[str]) -> list[str]:
    """The names in a comma-separated option."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(valid) or len(set(names)) < len(names):
        raise typer.BadParameter(
            f"{text!r} is not a comma-separated list out of: {', '.join(valid)}."
        )
    return names


def known_metrics() -> list[str]:
    """Names of all metrics, which come with the code that computes them: torch is imported."""
    from mm_lens.metrics import METRICS

    return [*METRICS]


def read(hooks: str, pairs: str | None, heads: str | None) -> dict[str, Any]:
    """Arguments of `mm_lens.profile`.

    Raises:
        BadParameter: heads are neither all nor numbers.
    """
    names = _split(hooks)
    return {
        "hooks": None if names == ["states"] else names,
        "pairs": None if pairs is None else [_pair(item) for item in _split(pairs)],
        "heads": _heads(heads),
    }


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _pair(item: str) -> Any:
    """A name, or two hooks with a colon between them."""
    return tuple(item.split(":")) if ":" in item else item


def _heads(text: str | None) -> bool | list[int]:
    if text is None or text == "all":
        return text is not None
    numbers = _split(text)
    if not numbers or not all(number.isdigit() for number in numbers):
        raise typer.BadParameter(f"{text!r} is neither all nor numbers of heads with commas.")
    return [int(number) for number in numbers]
