"""`mm-lens explore`: one page about a sample, on which what is shown is chosen."""

# torch and the pictures are imported when the model is loaded: `--help` is instant.
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mm_lens.cli import options
from mm_lens.cli.samples.intervening import sweep_between
from mm_lens.cli.samples.opened import Request


def explore_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Page to write (.html); it needs no network.")],
    words: Annotated[
        str | None, typer.Option(help="Words, with commas, that the lens looks for.")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(help="File of another picture, put into the run of IMAGE cell by cell."),
    ] = None,
    query: Annotated[
        str, typer.Option(help="Whose attention: last, or a group, as “text after” or “text”.")
    ] = "last",
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Write one page of a sample: lens, attention by head, norms and patching, with a menu.

    Example: mm-lens explore red.png "what color is it?" --other blue.png --model demo/llava-next
    --words red,blue --out sample.html
    """
    wanted = options.read_words(words)
    if other is not None:
        options.check_picture(other, "'--other'")
    request = Request(
        image, question, model, out, as_json, overwrite, device, dtype, chat_template, not no_check
    )
    with request.open() as bridge:
        from mm_lens.drawing import explore_results
        from mm_lens.looking import attention_map, norms, visual_logit_lens

        inputs = request.prepare(bridge)
        reply = bridge.ask(inputs, max_new_tokens=32)
        found: list[Any] = [
            visual_logit_lens(bridge, inputs, targets=wanted),
            attention_map(bridge, inputs, query=query),
            norms(bridge, inputs, "visual"),
        ]
        lines = [f"The model says {reply.text!r} (log-probability {reply.log_prob:.3g})."]
        if other is not None:
            donor = request.prepare(bridge, other)
            swept = sweep_between(bridge, donor, inputs, progress=not as_json)
            found.append(swept.result)
            lines.append(
                f"Patching puts {other} ({swept.words[0]!r}) into the run of {image} cell by cell."
            )
        page = explore_results(inputs, *found)
        kinds = [kind for each in found for kind in each.kinds()]
        lines.append(f"The page has {len(kinds)} kinds of values to choose from.")
        told = {"answer": reply.text, "log_prob": reply.log_prob, "kinds": kinds}
        request.present(told, lines, f"{question} → {reply.text}", {"On the picture": page})
