"""What is drawn of effects is what the table and the sweep hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from causal_cases import BATCH, OTHER
from painted import data_of

import mm_lens
from mm_lens import InputError
from mm_lens.causal import EffectTable, patching
from mm_lens.drawing import draw_effects

pytestmark = pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")


def table(metrics=("logit_diff", "accuracy")):
    rows = [
        {
            "first_layer": layer,
            "last_layer": layer + 1,
            "edge": edge,
            "metric": metric,
            "baseline": 2.0,
            "effect": layer * (1 + k) / 10,
            "low": layer / 10 - 1,
            "high": layer / 10 + 1,
            "n": 7,
        }
        for layer in range(4)
        for k, edge in enumerate(["visual → last", "text → last"])
        for metric in metrics
    ]
    return EffectTable(rows)


def test_curves_of_a_table():
    figure = table().plot()
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "effect on logit_diff",
        "effect on accuracy",
    ]
    curve = figure.axes[1].lines[1]
    assert curve.get_label() == "text → last"
    assert curve.get_xdata().tolist() == [0.5, 1.5, 2.5, 3.5]  # middles of windows of two
    assert np.allclose(curve.get_ydata(), [0, 0.2, 0.4, 0.6])
    assert figure.axes[0].get_xlabel() == "middle of the window of 2 layers"
    assert "n = 7" in figure.get_supxlabel()
    assert len(table().plot("accuracy").axes) == 1
    with pytest.raises(InputError, match="no metric 'bogus'; it holds logit_diff, accuracy"):
        draw_effects(table(), "bogus")


def test_curves_of_one_colour_have_another_marker():
    many = pd.concat([table(["accuracy"]).assign(edge=f"edge {k}") for k in range(14)])
    (axis,) = EffectTable(many).plot().axes
    looks = {(x.get_color(), x.get_marker(), x.get_linestyle()) for x in axis.lines[:14]}
    assert len(looks) == 14


def test_each_intervention_has_its_curve():
    rows = table(["accuracy"]).drop(columns="edge").assign(group="visual", how="affine")
    other = rows.assign(how="identity")
    (axis,) = EffectTable(pd.concat([rows, other])).plot().axes
    assert [line.get_label() for line in axis.lines[:2]] == ["affine", "identity"]
    longer = rows.assign(last_layer=rows["first_layer"] + 2)
    (axis,) = EffectTable(pd.concat([rows, other, longer])).plot().axes
    names = [line.get_label() for line in axis.lines[:3]]
    assert names == ["affine, 2 in a row", "identity, 2 in a row", "affine, 3 in a row"]
    assert axis.get_xlabel() == "middle"
    kept = rows.assign(directions="principal", k=rows["first_layer"] % 2)
    (axis,) = EffectTable(kept).plot().axes
    assert [line.get_label() for line in axis.lines[:2]] == ["0", "1"]


def test_other_plots_are_those_of_pandas():
    axis = table()[["low", "high"]].plot()
    assert [line.get_label() for line in axis.lines] == ["low", "high"]
    assert table().plot(x="low", y="high").lines[0].get_label() == "high"


@pytest.fixture(scope="module")
def sweep(model):
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean)

    def run(axis, name="resid_pre", metric=None, **options):
        def first(logits):
            return logits[:, -1, 60]

        return patching.generic_activation_patch(
            model, corrupted, cache, metric or first, name, axis=axis, progress=False, **options
        )

    return run


def test_regions_of_the_picture_are_drawn_on_it(sweep):
    result = sweep("cell")
    assert result.is_on_picture
    figure = result.plot(layers=[0, 2], row=1)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["layer 0", "layer 2"]
    cells = figure.axes[0].collections[0]
    mask = result.regions.masks[0, 1] & result.inputs.layout.mask("base")[1]
    drawn = cells.get_array()
    assert np.allclose(drawn[0], result.effect()[0, 0, 1], atol=1e-5)
    assert int(mask.sum()) == 1
    with pytest.raises(InputError, match="Layer 9 was not swept; these were: 0, 1, 2"):
        result.plot(layers=[9])


def test_regions_of_the_picture_have_a_slider(sweep):
    result = sweep("cell")
    data = data_of(result.explore(row=1).html)
    assert data["layers"] == ["layer 0", "layer 1", "layer 2"]
    assert data["label"] == "effect"
    want = result.regions.paint(result.effect()[2, :, 1])[1, result.inputs.layout.mask("base")[1]]
    assert data["parts"][0]["values"][2] == pytest.approx(want.tolist(), rel=1e-3, abs=1e-6)
    two = sweep("cell", metric={"one": lambda x: x[:, -1, 60], "two": lambda x: x[:, -1, 61]})
    assert [*two.kinds()] == ["effect on one", "effect on two"]
    with pytest.raises(InputError, match="the regions are no places of a picture"):
        sweep("modality").explore()
    with pytest.raises(InputError, match="Explore each before they are stacked"):
        patching.stack([result, result]).explore()


def test_segments_are_a_table_of_colours(sweep):
    result = sweep(
        "modality", metric={"one": lambda x: x[:, -1, 60], "two": lambda x: x[:, -1, 61]}
    )
    assert not result.is_on_picture
    axis = result.plot("two").axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["visual", "text"]
    want = result.effect()[1].mean(-1).T
    assert np.allclose(axis.images[0].get_array(), want, atol=1e-6)
    assert result["two"].plot().axes[1].get_ylabel() == "effect on two"
    with pytest.raises(InputError, match="no metric 'three'; it has one, two"):
        result.plot("three")


def test_heads_are_drawn_at_the_strongest_region(sweep):
    result = sweep("modality", "z", heads=True)
    axis = result.plot().axes[0]
    effect = result.effect().mean(-1)
    strongest = int(effect.abs().amax((0, 2)).argmax())
    assert np.allclose(axis.images[0].get_array(), effect[:, strongest].T, atol=1e-6)
    assert ["visual", "text"][strongest] in axis.get_title()


def test_notebooks_see_the_picture_and_the_largest_effects(sweep):
    result = sweep("modality")
    effect = result.effect().mean(-1)
    layer, region = divmod(int(effect.abs().argmax()), 2)
    first = f"layer {layer}, {['visual', 'text'][region]}"
    assert result.strongest(1)[0] == (first, pytest.approx(float(effect[layer, region])))
    assert repr(result).startswith("Patching of 3 layer × 2 modality")
    html = result._repr_html_()
    assert first in html
    assert html.count("<img alt=") == 1


def test_stacked_results_show_means(sweep):
    both = patching.stack([sweep("modality"), sweep("modality")])
    assert both.inputs is None
    assert np.allclose(
        both.plot().axes[0].images[0].get_array(), both.effect().mean(-1).T, atol=1e-6
    )
    both.baseline = None
    assert both.strongest(1)[0][1] == pytest.approx(float(both.values.mean(-1).abs().max()), abs=20)


def test_many_rows_are_cut_to_the_largest(sweep):
    result = sweep("patch")
    result.inputs = None  # or it would be drawn on the picture
    axis = result.plot().axes[0]
    means = result.effect().mean(-1).abs().amax(0)
    assert len(axis.images[0].get_array()) == min(40, len(means))


def test_a_plain_frame_is_drawn_too():
    assert draw_effects(pd.DataFrame(table(["accuracy"]))).axes[0].get_ylabel().endswith("accuracy")


def test_the_result_is_that_of_transformer_lens(sweep):
    assert isinstance(sweep("modality"), patching.PatchingResult)
    assert isinstance(sweep("modality"), mm_lens.causal.RegionPatching)
