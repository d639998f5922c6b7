"""The interactive picture."""

from __future__ import annotations

import base64
import dataclasses
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from painted import data_of, shades
from PIL import Image
from tiny import random_image

from mm_lens import InputError
from mm_lens.drawing import explore, explore_results, explore_written
from mm_lens.looking import norms, visual_logit_lens
from mm_lens.looking.written import read_written


def test_the_interactive_picture_has_the_colours_of_its_bar(model):
    image = shades("halves")
    layout = model.prepare("What is it?", image).layout
    values = torch.linspace(0, 1, layout.shape[1])
    data = data_of(explore(image, layout, values, limits=(0.2, 1.0)).html)
    assert data["colours"][64] == "#{:02x}{:02x}{:02x}".format(
        *(round(255 * part) for part in colormaps["cividis"](64)[:3])
    )
    assert data["marks"] == ["≤", ""]  # below 0.2 colours stay the same
    over = Image.open(BytesIO(base64.b64decode(data["picture"].split(",")[1])))
    opacity = np.asarray(over)[..., 3] / 255
    assert over.size == image.size
    assert opacity[:, :20].max() == opacity[:, 44:].max() == 0  # flat: nothing over the values
    assert opacity[:, 30:34].min() > 0.05
    ink = np.asarray(over)[..., :3]
    assert (ink[:, 31] == 0).all()
    assert (ink[:, 32] == 255).all()


@pytest.mark.every_family
def test_the_interactive_picture_holds_values_words_and_places(each, tmp_path):
    image = random_image(31, 57)
    layout = each.prepare("What is it?", image).layout
    n = layout.shape[1]
    values = torch.rand(4, n)
    position = int(layout.positions("base")[0, 2])
    values[1, position] = torch.nan
    words = [[[f"</script>{layer}.{p}", "b"] for p in range(n)] for layer in range(4)]
    page = explore(image, layout, values, words=words, label="probability [1]")
    html = page.save(tmp_path / "pictures" / "page.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="', html)
    assert html.count("</script>") == 1
    assert len(page._repr_html_()) < 200_000
    data = data_of(html)
    assert data["layers"] == [f"layer {k}" for k in range(4)]
    assert len(data["colours"]) == 256
    drawn = 0
    for part in data["parts"]:
        for i, (cell, place) in enumerate(zip(part["cells"], part["places"], strict=True)):
            drawn += 1
            where = int(re.findall(r"position (\d+)", place)[0])
            newline = bool(layout.newline[0, where])
            assert newline == ("newline" in place)
            if not newline:
                assert cell == pytest.approx(layout.box[0, where].tolist(), abs=0.01)
                column, row = int(layout.grid_col[0, where]), int(layout.grid_row[0, where])
                assert f"row {row}, column {column}" in place
            for layer in range(4):
                value = part["values"][layer][i]
                if layer == 1 and where == position:
                    assert value is None
                else:
                    assert value == pytest.approx(float(values[layer, where]), rel=1e-3)
                told = [data["words"][k] for k in part["words"][layer][i]]
                assert told == words[layer][where]
    assert drawn == int(layout.counts("visual")[0])


def test_what_was_written_as_a_page(model):
    """The sentence is text, never markup; each word has its values; without any it is refused."""
    image = random_image(12, 12)
    inputs = model.prepare("Eh?", image)
    written = read_written(model, inputs, max_new_tokens=3, stop_at_eos=False)
    with pytest.raises(InputError, match="No attention was read"):
        explore_written(image, written)
    values = torch.arange(3.0)[:, None].expand(3, inputs.layout.shape[1])
    data = data_of(explore_written(image, written, values=values).html)
    assert data["layers"] == written.words(0)
    assert data["sentence"] is True
    assert [part[0] for part in data["parts"][0]["values"]] == [0, 1, 2]
    shown = dataclasses.replace(
        written, blocks=(0, 1), attention=torch.rand(2, 1, 3, inputs.layout.shape[1])
    )
    page = explore_written(image, shown, blocks=[1]).html
    assert 'id="sentence"' in page


def test_several_kinds_of_values_are_in_one_page(model):
    image = random_image(31, 57)
    layout = model.prepare("What is it?", image).layout
    n = layout.shape[1]
    one, other = torch.rand(2, n), -torch.rand(3, n)
    words = [[["a"]] * n] * 3
    data = data_of(explore(image, layout, {"norm": one, "change": other}, words=words).html)
    (more,) = data["more"]
    assert (data["label"], more["label"]) == ("norm", "change")
    assert (len(data["layers"]), len(more["layers"])) == (2, 3)
    assert [part["words"] for part in data["parts"]] == [None] * len(data["parts"])
    assert more["words"] == ["a"]
    assert more["low"] < 0
    beside = Image.open(BytesIO(base64.b64decode(data["original"].split(",")[1])))
    assert beside.size == image.size
    assert beside.mode == "RGB"
    with pytest.raises(InputError, match="holds nothing to draw"):
        explore(image, layout, {})


def test_results_about_the_same_inputs_are_in_one_page(model):
    inputs = model.prepare("What is it?", random_image(31, 57))
    lens = visual_logit_lens(model, inputs, targets=["a"], layers=[0, 1])
    size = norms(model, inputs, layers=[2])
    data = data_of(explore_results(inputs, lens, size).html)
    views = [data, *data["more"]]
    assert [view["label"] for view in views] == [
        "probability of “a”", "probability of the top word", "norm of the state",
    ]  # fmt: skip
    assert [view["layers"] for view in views] == [["layer 0", "layer 1"]] * 2 + [["layer 2"]]
    base = inputs.layout.positions("base")[0]
    drawn = views[2]["parts"][0]
    assert drawn["values"][0] == pytest.approx(size[0, 0, base].tolist(), rel=1e-3)
    assert drawn["words"] is None
    assert "cells" not in drawn  # they stand where those of the first kind stand
    assert views[1]["parts"][0]["words"] is not None
    with pytest.raises(InputError, match="has nothing to draw on the picture"):
        explore_results(inputs, size[0])
    other = model.prepare("What is it?", random_image(31, 57, 1))
    with pytest.raises(InputError, match="is of other pictures than these inputs"):
        explore_results(other, size)
    with pytest.raises(InputError, match="there is no image 1"):
        explore_results(inputs, size, image=1)
