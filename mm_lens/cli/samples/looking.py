"""`mm-lens lens`, `attention`: what image tokens hold, and who looks at them."""

# torch and the pictures are imported when the model is loaded: `--help` is instant.
from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from mm_lens.cli import options
from mm_lens.cli.samples.opened import Request


def lens_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    words: Annotated[
        str | None, typer.Option(help="Words, with commas, whose probability is wanted.")
    ] = None,
    layers: options.Layers = None,
    top: Annotated[int, typer.Option(min=1, help="How many words to keep of each token.")] = 5,
    out: options.Page = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Read image tokens as words, layer by layer (logit lens).

    Layers are states: 0 enters block 0, the last gives the model's own logits.

    Example: mm-lens lens shape.png "what color is it?" --model demo/llava-next --words red
    """
    numbers, wanted = options.read_layers(layers), options.read_words(words)
    request = Request(
        image, question, model, out, as_json, overwrite, device, dtype, chat_template, not no_check
    )
    with request.open() as bridge:
        from mm_lens.looking import visual_logit_lens

        inputs = request.prepare(bridge)
        lens = visual_logit_lens(bridge, inputs, layers=numbers, top_k=top, targets=wanted)
        rows, lines = [], []
        for k, (layer, spelled) in enumerate(zip(lens.layers, lens.words(), strict=True)):
            first = Counter(position[0] for position in spelled if position)
            row: dict[str, Any] = {"layer": layer, "top_words": first.most_common(top)}
            named = ", ".join(f"{word!r} ×{count}" for word, count in row["top_words"])
            line = f"layer {layer}: top words {named}"
            if wanted:
                values = {word: lens.targets[word][k, 0] for word in wanted}
                row["words"] = {
                    word: {"mean": float(x.nanmean()), "max": float(x.nan_to_num(-1).max())}
                    for word, x in values.items()
                }
                line += "; " + ", ".join(
                    f"{word!r} mean {x['mean']:.2g}, most {x['max']:.2g}"
                    for word, x in row["words"].items()
                )
            rows.append(row)
            lines.append(line)
        sought = ", ".join(f"“{word}”" for word in wanted) or "The top word"
        parts = {f"{sought} on the picture": lens.explore}
        request.present({"layers": rows}, lines, f"Logit lens: {question}", parts)


def attention_command(
    image: options.Image,
    question: options.Question,
    model: options.Model,
    query: Annotated[
        str, typer.Option(help="Who looks: last, or a group, as “text after” or “text”.")
    ] = "last",
    layers: options.Layers = None,
    out: options.Page = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
    no_check: options.NoCheck = False,
) -> None:
    """Tell how much attention each head pays to the picture, and where. Loads with eager attention.

    Example: mm-lens attention shape.png "what color is it?" --model demo/llava-next --layers 4,5
    """
    numbers = options.read_layers(layers)
    request = Request(
        *(image, question, model, out, as_json, overwrite, device, dtype, chat_template),
        check=not no_check,
        attention="eager",
    )
    with request.open() as bridge:
        from mm_lens.looking import attention_map

        inputs = request.prepare(bridge)
        weights = attention_map(bridge, inputs, query=query, layers=numbers)
        rows, lines = [], []
        for name, block in zip(weights.layer_names, weights[:, :, 0].nansum(-1), strict=True):
            strongest = int(block.argmax())
            row = {
                "block": int(name.split()[-1]),
                "image_share": float(block.mean()),
                "heads": block.tolist(),
            }
            rows.append(row)
            lines.append(
                f"{name}: {row['image_share']:.1%} of the attention goes to the picture (mean of "
                f"{len(block)} heads), most of head {strongest}: {float(block[strongest]):.1%}"
            )
        parts = {"Where the heads look, on average and each": weights.explore}
        request.present({"query": query, "blocks": rows}, lines, f"Attention: {question}", parts)
