"""The files and the page of one profile."""

from __future__ import annotations

import json
import re

import numpy as np
from drawn_profiles import FEW, NAMES, make_profile
from PIL import Image

from mm_lens.drawing import curves as plots
from mm_lens.drawing import report


def test_files(tmp_path):
    profile = make_profile(FEW)
    names = [path.name for path in report.write(profile, tmp_path)]
    assert names == [
        "overview.png",
        *(f"{name}.png" for name in plots.metrics(profile)),
        "report.html",
    ]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    for path in tmp_path.glob("*.png"):
        assert 1000 <= Image.open(path).width <= 1400


def test_page_needs_no_network_and_tells_all(profile):
    html = report.render(profile)
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="', html)
    assert len(html) > 3_000_000  # plotly itself
    for name in NAMES:
        data = html.split(f'Plotly.newPlot("plot-{name}", ')[1].split(");</script>")[0]
        found = json.loads(data.replace("<\\/", "</"))
        curves = [trace for trace in found["data"] if "name" in trace]
        assert len(curves) == 6
        rows = profile.table[(profile.table.metric == name) & (profile.table.stream == "residual")]
        text = rows[rows.modality == "text"]
        assert curves[1]["y"] == [None if np.isnan(v) else v for v in text.value]
        hover = curves[1]["text"][list(text.layer).index(3)]
        assert "constant &lt;/script&gt; states" in hover
        assert "95 % interval" in curves[0]["text"][0]
        assert re.search("40,00[01] tokens", curves[0]["text"][0])
    assert "constant &lt;/script&gt; states" in html
