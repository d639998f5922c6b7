"""The pictures of the demo model on these pages: ``python docs/pictures.py``.

The README's comparison is `runs/compare/overview.png` of ``make demo``.
"""

from pathlib import Path

from PIL import Image

import mm_lens
from mm_lens.data import datasets
from mm_lens.looking.logit_lens import visual_logit_lens

IMAGES = Path(__file__).parent / "images"
SAMPLE = "test/0/1"  # a red triangle

model = mm_lens.load("demo/llava-next")
picture = next(s.image for s in datasets.load("easy-vqa") if s.id == SAMPLE).convert("RGB")
wide = Image.new("RGB", (128, 64), picture.getpixel((0, 0)))
wide.paste(picture, (40, 0))

inputs = model.prepare("what color is the triangle?", wide)
mm_lens.drawing.draw_layout(inputs).savefig(IMAGES / "layout.png")

inputs = model.prepare("what color is the triangle?", picture)
red = visual_logit_lens(model, inputs, targets=["red"]).targets["red"][:, 0].log10()
mm_lens.drawing.draw_values(
    picture, inputs.layout, red, layers=[0, 2, 4, 6, 8], label="log₁₀ probability of “red”"
).savefig(IMAGES / "overlay.png")
