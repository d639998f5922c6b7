"""`mm-lens ask`, `generate`, `layout`: what the model says, and what it is given."""

# torch and the pictures are imported when the model is loaded: `--help` is instant.
from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from mm_lens.cli import options
from mm_lens.cli.samples.opened import Request


def ask_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    choices: Annotated[
        str | None,
        typer.Option("--options", help="Possible answers, with commas: tell their probabilities."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 32,
    out: options.Page = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Ask a question about a picture: the answer, and how probable it and its rivals are.

    Example: mm-lens ask shape.png "what color is the shape?" --model demo/llava-next --options
    red,blue
    """
    words = None if choices is None else options.read_words(choices)
    if words is not None and (len(words) < 2 or len({*words}) < len(words)):
        raise typer.BadParameter(
            f"{choices!r} are not two or more different words with commas.",
            param_hint="'--options'",
        )
    request = Request(
        image, question, model, out, as_json, overwrite, device, dtype, chat_template, not no_check
    )
    with request.open() as bridge:
        inputs = request.prepare(bridge)
        reply = bridge.ask(inputs, options=words, max_new_tokens=max_new_tokens)
        result = {
            "answer": reply.text,
            "log_prob": reply.log_prob,
            "finished": reply.finished,
            "tokens": [
                {"token": token, "log_prob": log_prob}
                for token, log_prob in zip(reply.tokens, reply.log_probs, strict=True)
            ],
        }
        if words is not None:
            result |= {"options": dict(reply.options), "mass": reply.mass}
        parts = {"How probable": reply.plot, "What the model is given": inputs.plot}
        request.present(result, repr(reply).splitlines(), f"{question} → {reply.text}", parts)


def generate_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens that are written.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the most probable token; above, tokens are drawn.")
    ] = 0.0,
    seed: Annotated[int, options.make_seed("Of the draw.")] = 0,
    out: options.Page = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Let the model write about a picture.

    Example: mm-lens generate photo.jpg "Describe the picture." --model demo/llava-next
    """
    if not math.isfinite(temperature):
        raise typer.BadParameter(
            f"{temperature} is no temperature: give a number from 0 on.",
            param_hint="'--temperature'",
        )
    request = Request(
        image, question, model, out, as_json, overwrite, device, dtype, chat_template, not no_check
    )
    with request.open() as bridge:
        import torch

        inputs = request.prepare(bridge)
        torch.manual_seed(seed)
        drawn = {"do_sample": True, "temperature": temperature} if temperature else {}
        tokens: Any = bridge.generate(
            inputs,
            max_new_tokens=max_new_tokens,
            return_type="tokens",
            verbose=False,
            **{"do_sample": False, **drawn},
        )
        new = tokens[0, inputs.input_ids.shape[1] :]
        text = bridge.tokenizer.decode(new, skip_special_tokens=True).strip()
        result = {"text": text, "n_tokens": len(new), "temperature": temperature, "seed": seed}
        request.present(result, [text], question, {"What the model is given": inputs.plot})


def layout_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    out: options.Page = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Tell what every position of the model's input is: tiles, newlines, text.

    Example: mm-lens layout photo.jpg "What is it?" --model demo/llava-next --out layout.html
    """
    request = Request(
        image, question, model, out, as_json, overwrite, device, dtype, chat_template, not no_check
    )
    with request.open() as bridge:
        inputs = request.prepare(bridge)
        layout = inputs.layout
        groups = {group: int(layout.counts(group)[0]) for group in layout.groups}
        sizes = [{"width": width, "height": height} for height, width in layout.image_sizes[0]]
        result = {
            "prompt": inputs.text[0],
            "positions": layout.shape[1],
            "groups": groups,
            "images": sizes,
        }
        lines = [layout.describe(), *(f"  {name}: {count}" for name, count in groups.items())]
        request.present(result, lines, f"Tokens of {image}", {"Tokens on the picture": inputs.plot})
