"""The page holds each point, its picture and its place."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
from painted import data_of
from PIL import Image
from tiny import random_image

from mm_lens import InputError
from mm_lens.drawing import explore_scatter
from mm_lens.looking import state_scatter


def test_a_point_knows_its_patch(model, tmp_path):
    samples = [model.prepare(["Eh?", "No!"], [random_image(12, 12, k), None]) for k in (1, 2)]
    with model.text_only_allowed():
        points = state_scatter(model, samples, layers=[0, 1], most=5)
    page = explore_scatter(points, samples, "region")
    html = page.save(tmp_path / "states.html").read_text("utf-8")
    data = data_of(html)
    assert html.count("</script>") == 1
    assert len(data["x"]) == len(points)
    assert data["layers"] == ["layer 0", "layer 1"]
    assert [one["name"] for one in data["colours"]][:2] == ["region", "modality"]
    assert data["colours"][0]["says"] == points["region"].tolist()
    sizes = [Image.open(BytesIO(base64.b64decode(p.split(",")[1]))).size for p in data["pictures"]]
    assert sizes == [(12, 12)] * 2 == [tuple(size) for size in data["sizes"]]
    for k, point in enumerate(points.itertuples(index=False)):
        box = samples[point.inputs].layout.box[point.row, point.position].tolist()
        if point.modality == "text":
            assert data["picture"][k] == -1
            assert data["about"][k].endswith(f"“{point.word}”")
        else:
            assert data["picture"][k] == point.inputs  # each batch has one picture
            assert data["box"][k] == (pytest.approx(box, abs=0.05) if box[0] == box[0] else None)


def test_other_samples_are_refused(model):
    one = model.prepare("Eh?", random_image(12, 12))
    points = state_scatter(model, [one, one], layers=[0], most=3)
    with pytest.raises(InputError, match="of other samples"):
        explore_scatter(points, one)
    with pytest.raises(InputError, match="no column 'word'"):
        explore_scatter(points.drop(columns="word"), [one, one])
    with pytest.raises(InputError, match="no row"):
        explore_scatter(points.iloc[:0], [one, one])
