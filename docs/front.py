"""The picture at the top of the README: `python docs/front.py` draws it anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

import mm_lens
from mm_lens.drawing.curves import InlineFigure

QUESTION = "what color is the shape?"
LAYERS = (0, 2, 4)
OUT = Path(__file__).parent / "images" / "front.png"


def main() -> None:
    model = mm_lens.load("demo/llava-next")
    data = mm_lens.datasets.load("easy-vqa", limit=100)
    pictures = {sample.answer: sample.image for sample in data if sample.text == QUESTION}
    red, black = (model.prepare(QUESTION, pictures[colour]) for colour in ("red", "black"))
    answers = mm_lens.Answers(model, black, [*pictures], right="red", wrong="black")
    _, cache = model.run_with_cache(red, names_filter=mm_lens.names("resid_pre"))
    result = mm_lens.patching.get_act_patch_resid_pre(
        model, black, cache, answers.logit_diff, axis="cell", layers=LAYERS, progress=False
    )
    effect = result.effect()[..., 0].numpy()
    most = float(np.abs(effect).max())
    boxes = result.index_df[["x0", "y0", "x1", "y1"]].to_numpy()[: effect.shape[1]]

    figure = InlineFigure(figsize=(11, 2.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2 + len(LAYERS))
    for axis, inputs, colour in zip(axes, (red, black), ("red", "black"), strict=False):
        reply = model.ask(inputs)
        assert reply.text == colour
        axis.imshow(inputs.images[0][0])
        axis.set_title(f"“{QUESTION}”\n→ “{reply.text}”", fontsize=9)
    colours, norm = "RdBu_r", Normalize(-most, most)
    mappable = ScalarMappable(norm, colours)
    for axis, layer, values in zip(axes[2:], LAYERS, effect, strict=True):
        axis.imshow(black.images[0][0])
        for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
            axis.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, color=mappable.to_rgba(value),
                    alpha=0.1 + 0.8 * (abs(value) / most) ** 0.5, linewidth=0,
                )
            )  # fmt: skip
        axis.set_title(
            f"layer {layer}: one patch of the\nred run put into the black run", fontsize=9
        )
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    bar = figure.colorbar(mappable, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label("towards “red”\n(change of logit red − black)", fontsize=9)
    figure.savefig(OUT)


if __name__ == "__main__":
    main()
