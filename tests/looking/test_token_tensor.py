"""Values of tokens are a plain tensor that draws itself on the picture."""

from __future__ import annotations

import copy
import io
import re

import numpy as np
import pytest
import torch
from painted import data_of
from tiny import random_image

from mm_lens import InputError
from mm_lens.looking import TokenValues, attention_map, norms, token_tensor, visual_logit_lens


@pytest.fixture(scope="module")
def inputs(eager):
    return eager.prepare(["What is it?", "None?"], [random_image(31, 57), None])


def test_it_is_a_tensor(eager, inputs):
    found = norms(eager, inputs)
    assert isinstance(found, TokenValues)
    plain = [found[0], found + 1, found.log10(), copy.deepcopy(found), torch.stack([*found])]
    assert {type(x) for x in plain} == {torch.Tensor}
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file), found[:], rtol=0, atol=0, equal_nan=True)


def test_it_is_drawn_where_the_tokens_are(eager, inputs):
    found = norms(eager, inputs, layers=[0, -1])
    figure = found.plot()
    assert [axis.get_title() for axis in figure.axes[:2]] == ["layer 0", "layer 3"]
    assert figure.axes[-1].get_ylabel() == "norm of the state"
    base = inputs.layout.mask("base")[0]
    drawn = figure.axes[0].collections[0].get_array()
    assert np.allclose(drawn, found[0, 0, base], atol=1e-5)
    assert "norm of the state" in found.explore().html
    assert found._repr_html_().startswith("<iframe")
    with pytest.raises(InputError, match=r"Row 1 has 0 image\(s\)"):
        found.plot(row=1)
    with pytest.raises(InputError, match="leave head= out"):
        found.plot(head=0)


def test_heads_are_averaged_or_chosen(eager, inputs):
    found = attention_map(eager, inputs, layers=[1])
    base = inputs.layout.mask("base")[0]
    for head, want, label in (
        (None, found[0, :, 0].mean(0), "attention of last, mean of 4 heads"),
        (-1, found[0, 3, 0], "attention of last, head 3"),
    ):
        figure = found.plot(head=head)
        drawn = figure.axes[1].collections[0].get_array()  # after the picture itself
        assert np.allclose(drawn, want[base], atol=1e-6)
        assert figure.axes[-1].get_ylabel() == label
    with pytest.raises(InputError, match="no head 4: there are 4"):
        found.plot(head=4)


def test_a_page_has_the_mean_and_each_head(eager, inputs, monkeypatch):
    found = attention_map(eager, inputs, layers=[0, 2])
    base = inputs.layout.positions("base")[0].tolist()
    data = data_of(found.explore().html)
    views = [data, *data["more"]]
    of_last = "attention of last, "
    labels = [f"{of_last}mean of 4 heads", *(f"{of_last}head {k}" for k in range(4))]
    assert [view["label"] for view in views] == labels
    for k, view in enumerate(views[1:]):
        assert view["layers"] == ["block 0", "block 2"]
        want = found[1, k, 0, base].tolist()
        assert view["parts"][0]["values"][1] == pytest.approx(want, rel=1e-3)
    (alone,) = found.kinds(0, head=2)
    assert alone == f"{of_last}head 2"
    # More than one page holds: those that look most.
    monkeypatch.setattr(token_tensor, "MOST_VALUES", 3 * 2 * int(inputs.layout.counts("visual")[0]))
    most = found[:, :, 0].nansum(-1).amax(0).topk(2).indices.sort().values.tolist()
    _, *heads = found.kinds(0)
    assert [int(re.findall(r"head (\d)", head)[0]) for head in heads] == most
    assert all("of the 2 of 4 that have most" in head for head in heads)


def test_without_a_picture_notebooks_see_why(eager):
    found = norms(eager, eager.prepare("What is it?", None))
    assert "there is no image 0" in found._repr_html_()


def test_a_lens_draws_words(eager, inputs):
    lens = visual_logit_lens(eager, inputs, targets=["a"], layers=[0, 2])
    base = inputs.layout.mask("base")[0]
    figure = lens.plot()
    assert figure.axes[-1].get_ylabel() == "probability of “a”"
    drawn = figure.axes[0].collections[0].get_array()
    assert np.allclose(drawn, lens.targets["a"][0, 0, base], atol=1e-6)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["layer 0", "layer 2"]
    assert lens._repr_html_().startswith("<iframe")
    assert [*lens.kinds()] == ["probability of “a”", "probability of the top word"]
    assert [*lens.kinds(word="a")] == ["probability of “a”"]
    with pytest.raises(InputError, match="'b' is not among the words that were asked for: a"):
        lens.plot("b")
    bare = visual_logit_lens(eager, inputs, where="last", layers=[2])
    assert "top words at layer 2" in bare._repr_html_()
