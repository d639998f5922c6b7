"""The pages as a browser shows them: nothing fails, no request is made, clicks work."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from browser import look_for_barriers, needs_browser, open_page
from drawn_profiles import FEW, make_profile
from made_layouts import image, laid_out, overview
from PIL import Image

from mm_lens.drawing import explore_scatter, report
from mm_lens.drawing.explorer import explore

pytestmark = [pytest.mark.browser, needs_browser]


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(make_profile(FEW, layers=5))


def test_a_report_draws_hides_and_tells(page, tmp_path):
    told = open_page(
        page,
        """
const chart = document.querySelector(".headline .chart"), drawn = {};
drawn.panels = chart.querySelectorAll("svg.panel").length;
const count = () => chart.querySelectorAll("svg.panel .mark").length;
drawn.before = count(); drawn.open = chart.querySelectorAll(".mark.open").length;
const button = chart.querySelector(".legend button"); button.click();
drawn.after = count(); drawn.pressed = button.getAttribute("aria-pressed"); button.click();
drawn.again = count();
const svg = chart.querySelector("svg.panel"), tip = document.getElementById("tip");
svg.focus(); svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
drawn.tip = tip.textContent; drawn.visible = getComputedStyle(tip).visibility;
const details = [...document.querySelectorAll("details")];
drawn.folded = details.every(part => !part.open);
dispatchEvent(new Event("beforeprint"));
drawn.unfolded = details.every(part => part.open);
drawn.empty = [...document.querySelectorAll(".chart")]
  .filter(chart => !chart.querySelector("svg.panel path.curve")).length;
drawn.wide = document.documentElement.scrollWidth > innerWidth;
return drawn;
""",
        tmp_path,
    )
    values = 3 * 4 + 3 * 4 - 2  # three modalities, two streams, a pair per two layers; two missing
    assert told["panels"] == 2
    assert told["before"] == told["open"] == told["again"] == values
    assert told["after"] == values - 8
    assert told["pressed"] == "false"
    assert "visual, layer 1" in told["tip"]
    assert told["visible"] == "visible"
    assert told["folded"]
    assert told["unfolded"]
    assert told["empty"] == 0
    assert not told["wide"]


def test_a_report_fits_a_phone(page, tmp_path):
    told = open_page(
        page,
        """
const tops = [...document.querySelector(".chart").querySelectorAll("svg.panel")]
  .map(svg => svg.getBoundingClientRect().top);
document.body.style.maxWidth = "300px";
await new Promise(done => setTimeout(done, 500));
const cut = [...document.querySelectorAll("svg.panel text.title")].filter(title =>
  title.getBoundingClientRect().right > title.ownerSVGElement.getBoundingClientRect().right + 1);
return { below: tops[1] > tops[0], wide: document.documentElement.scrollWidth - innerWidth,
  cut: cut.map(title => title.textContent) };
""",
        tmp_path,
        size=(500, 844),  # the least that Chromium takes
    )
    assert told["below"]
    assert told["wide"] <= 0
    assert told["cut"] == []


def test_nobody_is_kept_out_of_a_report(page, tmp_path):
    assert look_for_barriers(page, tmp_path) == []


@pytest.fixture(scope="module")
def explorer() -> str:
    """Six tokens of a picture of 60×40 pixels, of which token k has the value k, then k + 10."""
    layout = laid_out([2, image(40, 60, *overview(40, 60, 2, 3)), 1])
    rising = torch.arange(6.0).repeat(2, 1) + torch.tensor([[0.0], [10.0]])
    return explore(
        Image.new("RGB", (60, 40), "teal"), layout, {"rising": rising, "falling": -rising}
    ).html


def test_an_explorer_slides_keeps_a_token_and_measures_a_box(explorer, tmp_path):
    told = open_page(
        explorer,
        """
const canvas = document.querySelector("canvas"), slider = document.getElementById("slider");
const chosen = document.getElementById("chosen"), tip = document.getElementById("tip"), seen = {};
const at = (type, x, y, buttons) => {  // in pixels of the picture
  const area = canvas.getBoundingClientRect(), s = area.width / 60;
  canvas.dispatchEvent(new (type === "click" ? MouseEvent : PointerEvent)(type, {
    clientX: area.left + x * s, clientY: area.top + y * s, buttons: buttons || 0, bubbles: true }));
};
at("pointermove", 50, 10); seen.tip = tip.textContent; seen.shown = tip.style.visibility;
at("pointerdown", 50, 10, 1); at("click", 50, 10); seen.token = chosen.textContent;
slider.value = 1; slider.dispatchEvent(new Event("input")); seen.slid = chosen.textContent;
const choice = document.getElementById("choice");
choice.value = 1; choice.dispatchEvent(new Event("change")); seen.other = chosen.textContent;
choice.value = 0; choice.dispatchEvent(new Event("change"));
at("pointerdown", 1, 21, 1); at("pointermove", 39, 39, 1); at("pointerup", 39, 39);
at("click", 39, 39); seen.box = chosen.textContent;
dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })); seen.free = chosen.textContent;
canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
seen.key = chosen.textContent;
seen.original = document.querySelector("figure img").naturalWidth;
return seen;
""",
        tmp_path,
    )
    assert "row 0, column 2" in told["tip"]
    assert told["shown"] == "visible"
    assert "rising: 2" in told["token"]
    assert "rising: 12" in told["slid"]
    assert "falling: -12" in told["other"]
    assert told["box"].startswith("2 tokens in the box")
    assert "layer 0 3.5" in told["box"]  # of tokens 3 and 4
    assert "layer 1 13.5" in told["box"]
    assert told["free"].startswith("Click a token")
    assert "row 0, column 0" in told["key"]
    assert told["original"] == 60


def test_nobody_is_kept_out_of_an_explorer(explorer, tmp_path):
    assert look_for_barriers(explorer, tmp_path) == []


@pytest.fixture(scope="module")
def cloud(model) -> str:
    table = pd.DataFrame(
        {
            **{"layer": [0, 0, 4, 4], "group": ["visual", "text"] * 2, "picture": 0},
            **{"x": [0.0, 1.0, 5.0, 9.0], "y": [0.0, 1.0, 2.0, 3.0]},
            **{"modality": ["visual", "text"] * 2, "region": ["overview", "text after"] * 2},
            **{"word": ["", "</script>"] * 2, "inputs": 0, "row": 0, "position": [3, 7] * 2},
            **{"image": [0, -1] * 2, "x0": [4.0, None] * 2, "y0": [4.0, None] * 2},
            **{"x1": [8.0, None] * 2, "y1": [8.0, None] * 2},
        }
    )
    picture = Image.new("RGB", (16, 16), "blue")
    picture.paste("red", (4, 4, 8, 8))
    inputs = model.prepare("Eh?", picture)
    return explore_scatter(table, [inputs], "region").html


def test_a_cloud_shows_the_patch_of_a_point(cloud, tmp_path):
    told = open_page(
        cloud,
        """
const plane = document.getElementById("plane"), box = plane.getBoundingClientRect();
const at = (x, y) => plane.dispatchEvent(new PointerEvent("pointermove", {
  clientX: box.left + x / 1000 * box.width, clientY: box.top + y / 1000 * box.height }));
const ink = (x, y) => [...t.getImageData(x, y, 1, 1).data.slice(0, 3)];
const said = () => document.getElementById("chosen").textContent, told = {};
await new Promise(done => setTimeout(done, 200)); draw();
at(40, 960); told.visual = said(); told.patch = ink(60, 320); told.whole = ink(20, 200);
at(960, 40); told.text = said();
plane.dispatchEvent(new PointerEvent("pointerleave"));
plane.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
slider.value = 1; slider.dispatchEvent(new Event("input")); told.later = said();
const choice = document.getElementById("choice");
told.menu = [...choice.options].map(o => o.text);
choice.value = told.menu.indexOf("layer"); choice.dispatchEvent(new Event("change"));
told.legend = document.getElementById("legend").textContent;
return told;
""",
        tmp_path,
    )
    assert told["visual"].startswith("position 3 · region: overview")
    assert "layer: 0" in told["visual"]
    red, green, blue = told["patch"]
    assert red > 200 > 80 > max(green, blue)
    assert told["whole"][2] > 200
    assert told["text"].startswith("position 7: “</script>”")
    assert told["later"].startswith("position 3")
    assert "layer: 4" in told["later"]  # the same token, further on
    assert told["menu"] == ["region", "modality", "group", "picture", "layer"]
    assert "4" in told["legend"]


def test_nobody_is_kept_out_of_a_cloud(cloud, tmp_path):
    assert look_for_barriers(cloud, tmp_path) == []
