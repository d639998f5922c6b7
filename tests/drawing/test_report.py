"""The files and the page of one profile."""

from __future__ import annotations

import json
import re

import numpy as np
from drawn_profiles import FEW, NAMES, make_profile
from made_profiles import planted
from PIL import Image

from mm_lens.drawing import curves as plots
from mm_lens.drawing import report
from mm_lens.metrics import METRICS


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
    assert len(html) < 2_000_000
    for name in NAMES:
        data = html.split(f'drawChart("plot-{name}", ')[1].split(");</script>")[0]
        found = json.loads("[" + data + "]")[1]
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


def test_what_was_asked_for_is_not_folded_away():
    """Curves between modalities and of the lens stand with the first ones; their axes are short."""
    names = ("anisotropy_without_massive", "modality_gap_without_massive", "lens_entropy")
    html = report.render(planted(metrics=names))
    first = html.partition('id="all"')[0]
    for name in names:
        data = first.split(f'drawChart("plot-first-{name}", ')[1].split(");</script>")[0]
        axis = json.loads("[" + data + "]")[1]["layout"]["yaxis"]["title"]["text"]
        assert axis == (
            METRICS[name].unit or METRICS[name].label.removesuffix(", no massive tokens")
        )


def test_what_is_said_of_a_curve_is_what_its_values_say():
    shapes = {"anisotropy@residual": lambda depth: 0.2 + 0.5 * depth}
    profile = planted(shapes=shapes, error=1e-4)
    rows = profile.table.query("metric == 'anisotropy' and stream == 'residual'")
    rows = rows[rows.modality == "visual"].sort_values("layer")
    said = report.say_what_it_shows(profile, "anisotropy")
    first, last = rows.value.iloc[0], rows.value.iloc[-1]
    assert (
        f"visual tokens go from {first:.3g} (layer 0) to {last:.3g} (layer {rows.layer.max()})"
        in said
    )
    assert "warning" not in said
    profile.table.loc[rows.index[:2], "warning"] = "few tokens"
    assert "2 of these values carry a warning" in report.say_what_it_shows(profile, "anisotropy")


def test_the_first_thing_said_is_what_was_measured_on_what():
    profile = planted("demo/a")
    html = report.render(profile)
    lead = html.split('<p class="lead">')[1].split("</p>")[0]
    assert "demo/a" in lead
    assert f"{profile.provenance['data']['n_samples']:,} samples" in lead
    assert html.index('class="lead"') < html.index('class="headline"') < html.index("<details")
    assert html.count('class="headline"') == 3


def test_a_sample_is_shown_where_there_is_one(tmp_path):
    profile = make_profile(FEW)
    assert "<img" not in report.render(profile, tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / report.SAMPLE_FILE)
    html = report.render(profile, tmp_path)
    assert re.search(r'<img alt="[^"]{20,}" src="data:image/png;base64,', html)
