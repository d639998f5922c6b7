"""`mm-lens patch`, `knockout`: what of the picture, at which layers, makes the answer."""

# torch and the pictures are imported when the model is loaded: `--help` is instant.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import typer

from mm_lens.cli import options
from mm_lens.cli.samples.opened import Request
from mm_lens.errors import InputError

SHOWN = 8
"""Patches that are printed."""


def patch_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    other: Annotated[
        str, typer.Option(help="File of the picture that is run, with activations of IMAGE put in.")
    ],
    axis: Annotated[
        Literal["modality", "segment", "image", "tile", "row band", "cell", "patch"],
        typer.Option(help="What is put in at a time."),
    ] = "cell",
    hook: Annotated[
        Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"],
        typer.Option(help="Which activations."),
    ] = "resid_pre",
    layers: options.Layers = None,
    answer: Annotated[
        str | None,
        typer.Option(help="The answer to IMAGE, one token.", show_default="what the model says"),
    ] = None,
    instead: Annotated[
        str | None,
        typer.Option(help="That to --other, one token.", show_default="what the model says"),
    ] = None,
    out: options.Page = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Put activations of one picture into a run of another, and tell which bring its answer back.

    The effect is on the logit of the answer to IMAGE, less that of the answer to the other.

    Example: mm-lens patch red.png "what color is it?" --other blue.png --model demo/llava-next
    """
    numbers = options.read_layers(layers)
    options.check_picture(other, "'--other'")
    request = Request(
        image, question, model, out, as_json, overwrite, device, dtype, chat_template, not no_check
    )
    with request.open() as bridge:
        clean, corrupted = request.prepare(bridge), request.prepare(bridge, other)
        swept = sweep_between(
            bridge, clean, corrupted, axis, hook, numbers, answer, instead, progress=not as_json
        )
        result, words = swept.result, swept.words
        effects = result.index_df.assign(
            value=result.values.flatten().tolist(), effect=result.effect().flatten().tolist()
        )
        told = {
            "other": other,
            "answer": words[0],
            "instead": words[1],
            "baseline": float(result.baseline.mean()),
            "patches": effects.to_dict(orient="records"),
        }
        lines = [
            f"{words[0]!r} to {image}, {words[1]!r} to {other}; logit difference "
            f"{told['baseline']:.3g} without a patch.",
            "The largest effects:",
            *(f"  {name}: {effect:+.3g}" for name, effect in result.strongest(SHOWN)),
        ]
        pictures = {
            f"put in: {words[0]!r} to {image}": clean,
            f"run: {words[1]!r} to {other}": corrupted,
        }
        effect = f"Effect of putting {hook} of {image} into the run of {other}"
        parts: dict[str, Any] = {"The two pictures": partial(_show_pictures, pictures)}
        if result.is_on_picture:
            parts |= {effect: result.explore, "The same, layers side by side": result.plot}
        else:
            parts[effect] = result.plot
        request.present(told, lines, f"Patching: {question}", parts)


@dataclass(frozen=True)
class Swept:
    """What putting one picture into the run of another gave.

    Attributes:
        result: the effects.
        words: the answers to the picture that is put in, and to the one that is run.
    """

    result: Any
    words: tuple[str, str]


def sweep_between(
    bridge: Any,
    clean: Any,
    corrupted: Any,
    axis: Any = "cell",
    hook: str = "resid_pre",
    layers: Sequence[int] | None = None,
    answer: str | None = None,
    instead: str | None = None,
    *,
    progress: bool,
) -> Swept:
    """Put activations of one input into the run of another, region by region.

    Raises:
        InputError: both are answered alike, so that nothing could be told.
    """
    import mm_lens
    from mm_lens.causal import patching

    right, wrong = _answer_of(bridge, clean, answer), _answer_of(bridge, corrupted, instead)
    if right[1] == wrong[1]:
        raise InputError(
            f"The answers to both pictures begin with the same token ({right[0]!r}), so no "
            "patch could bring one back. Take pictures with different answers."
        )
    words = (right[0], wrong[0])
    tokens = [right[1], wrong[1]]
    answers = mm_lens.Answers(bridge, corrupted, words, words[0], words[1], tokens=tokens)
    _, cache = bridge.run_with_cache(clean, names_filter=mm_lens.names(hook))
    metric = {f"{words[0]} over {words[1]}": answers.logit_diff}
    result = patching.generic_activation_patch(
        bridge, corrupted, cache, metric, hook, axis=axis, layers=layers, progress=progress
    )
    assert result.baseline is not None  # every sweep by region knows it
    return Swept(result, words)


def _show_pictures(inputs: Mapping[str, Any]) -> Any:
    """The pictures of some inputs side by side, with what they are."""
    from mm_lens.drawing.sample_page import show_pictures

    return show_pictures({name: each.images[0][0] for name, each in inputs.items()})


def knockout_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    edges: Annotated[
        str,
        typer.Option(
            help="key:query pairs of groups, with commas: from where information comes, to where."
        ),
    ] = "visual:last,visual:text after",
    window: Annotated[int, typer.Option(min=1, help="Layers knocked out together.")] = 1,
    answer: Annotated[
        str | None,
        typer.Option(help="Whose probability is told.", show_default="what the model says"),
    ] = None,
    out: options.Page = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Knock out attention to the picture, and tell what it does to the answer.

    The effect is on the log-probability of the answer's first token. One picture gives no interval.

    Example: mm-lens knockout shape.png "what color is it?" --model demo/llava-next --window 3
    """
    pairs = [_read_edge(edge) for edge in options.read_words(edges)]
    if not pairs:
        raise typer.BadParameter("It names no edge.", param_hint="'--edges'")
    request = Request(
        image, question, model, out, as_json, overwrite, device, dtype, chat_template, not no_check
    )
    with request.open() as bridge:
        from mm_lens.causal import knockout_table

        inputs = request.prepare(bridge)
        text, token = _answer_of(bridge, inputs, answer)
        metric = {"log_prob": _log_prob(inputs, token)}
        table: Any = knockout_table(
            bridge, [(inputs, metric)], pairs, window=window, progress=not as_json
        )
        kept = ["first_layer", "last_layer", "edge", "key", "query", "baseline", "value", "effect"]
        rows = table[kept].to_dict(orient="records")
        lines = [
            f"{text!r} has the log-probability {rows[0]['baseline']:.3g} (its first token).",
            *(
                f"  layers {row['first_layer']}–{row['last_layer']}, {row['edge']}: "
                f"{row['effect']:+.3g}"
                for row in rows
            ),
        ]
        told = {"answer": text, "baseline": rows[0]["baseline"], "edges": rows}
        parts = {"Effect of each knock-out on the log-probability": table.plot}
        request.present(told, lines, f"Knock-out: {question}", parts)


def _read_edge(text: str) -> tuple[str, str]:
    key, colon, query = (part.strip() for part in text.partition(":"))
    if not (colon and key and query):
        raise typer.BadParameter(
            f"{text!r} is no pair of groups with a colon, as visual:last.", param_hint="'--edges'"
        )
    return key, query


def _answer_of(model: Any, inputs: Any, given: str | None) -> tuple[str, int]:
    """An answer and its first token: what was given, or what the model says."""
    if given is not None:
        from mm_lens.looking.logit_lens import first_token

        return given, first_token(model, given)
    reply = model.ask(inputs, max_new_tokens=8)
    if not reply.token_ids:
        raise InputError(
            "The model ends its answer before the first word. Name the answer: --answer, --instead."
        )
    return reply.text, reply.token_ids[0]


def _log_prob(inputs: Any, token: int) -> Callable[[Any], Any]:
    from mm_lens.layout import last_position

    last = last_position(inputs.layout)

    def log_prob(logits: Any) -> Any:
        return logits[last.to(logits.device)].log_softmax(-1)[:, token]

    return log_prob
