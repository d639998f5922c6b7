"""Options that say what to profile: hooks, pairs, heads, and lists of names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Any

import typer

from mm_lens.arguments import suggest
from mm_lens.plugins import plugin_names

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
Memory = Annotated[
    str | None,
    typer.Option(
        help="What the run may take beside the model and its forward passes, as 24GB (host) or "
        "24GB,gpu=60GB: more passes keep it, or it is refused before it starts.",
        show_default="any; what it takes is said",
    ),
]
PerSample = Annotated[
    bool,
    typer.Option(
        "--per-sample", help="Describe the tokens of each sample alone as well: samples.parquet."
    ),
]


def split_names(text: str, valid: Sequence[str], option: str) -> list[str]:
    """The names in a comma-separated option.

    Raises:
        BadParameter: one is not valid, or is named twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(valid) or len(set(names)) < len(names):
        raise typer.BadParameter(
            f"{text!r} is not a comma-separated list out of: {', '.join(valid)}."
            + "".join(suggest(name, valid) for name in names if name not in valid),
            param_hint=f"'{option}'",
        )
    return names


def read_metrics(text: str | None) -> list[str] | None:
    """The metrics that are asked for by name.

    They come with the code that computes them, and torch with that. So what no code registers is
    told before; where other packages add metrics, their names are not known without them.

    Raises:
        BadParameter: there is no such metric.
    """
    if not text:
        return None
    named = [name.strip() for name in text.split(",") if name.strip()]
    if not plugin_names("mm_lens.metrics") and not all(map(is_registered, named)):
        known = dict.fromkeys(name for name in registered() if "{" not in name)
        split_names(text, [*known], "--metrics")
    from mm_lens.metrics import METRICS

    return split_names(text, [*METRICS], "--metrics")


_REGISTERS = re.compile(r"\.metric\(\s*f?\"([\w{}]+)\"")
_TWIN = "_without_massive"


@cache
def registered() -> tuple[str, ...]:
    """Names under which the files of `mm_lens.metrics` register metrics, read and not run.

    What a file puts together has braces for what varies; twins are not among them.
    """
    folder = resources.files("mm_lens") / "metrics"
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".py"))
    texts = [(folder / name).read_text("utf-8") for name in files]
    return tuple(name for text in texts for name in _REGISTERS.findall(text))


def is_registered(name: str) -> bool:
    """Whether some file of `mm_lens.metrics` registers a metric of this name, or its twin."""
    patterns = [re.sub(r"\{\w+\}", r"\\w+", each) for each in registered()]
    return any(re.fullmatch(f"{each}({_TWIN})?", name) for each in patterns)


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
        raise typer.BadParameter(
            f"{text!r} is neither all nor numbers of heads with commas.", param_hint="'--heads'"
        )
    return [int(number) for number in numbers]
