"""The pictures of these pages: `python docs/pictures.py [NAME …]` draws them anew.

A picture below `images/methods/` is what the last line of the code above it gives: the blocks of a
page run as one session, from top to bottom, so that picture and code cannot part. The gallery's
list of them is written from the pages. `layout.png` and `overlay.png` are drawn by `draw_tokens`,
the README's comparison is `runs/compare/overview.png` of `make demo`.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
METHODS = IMAGES / "methods"
PAGES = (
    *("patching", "writing", "attribution", "looking", "lenses", "dictionaries"),
    *("replacing", "recipes", "evaluating", "relating"),
)
LARGEST = 58 * 1024
"""Of a picture, in bytes: a larger one is saved with 256 colours."""
BEGIN, END = "<!-- methods -->\n", "<!-- end of methods -->"

PART = re.compile(
    r"^#+ (?P<heading>[^\n]+)$"
    r"|^```python(?P<mark>[^\n]*)\n(?P<code>.*?)^```$"
    r"|^!\[(?P<alt>[^\]]+)\]\(images/methods/(?P<name>\w+)\.png\)$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Drawn:
    """A picture of a page.

    Attributes:
        page: its name, without the ending.
        heading: of the section that it stands in.
        alt: what it shows, in words.
        name: of the file, without the ending.
        code: block above it, whose last line draws it.
        before: blocks above that one that run.
    """

    page: str
    heading: str
    alt: str
    name: str
    code: str
    before: tuple[str, ...]


def find_pictures(page: str, text: str) -> list[Drawn]:
    """The pictures of a page that its code draws.

    Raises:
        ValueError: no code stands above a picture in its section.
    """
    found: list[Drawn] = []
    heading, code, before = "", "", []
    for part in PART.finditer(text):
        if part["heading"]:
            heading, code = part["heading"], ""
        elif part["code"]:
            code = part["code"]
            before.append(code if not part["mark"].strip() else "")
        elif not code:
            raise ValueError(f"docs/{page}.md: no code above {part['name']}.png in its section")
        else:
            found.append(Drawn(page, heading, part["alt"], part["name"], code, tuple(before[:-1])))
    return found


def all_pictures() -> list[Drawn]:
    """Those of all pages, in the order of the gallery."""
    return [one for page in PAGES for one in find_pictures(page, read(page))]


def read(page: str) -> str:
    """A page's text."""
    return (DOCS / f"{page}.md").read_text("utf-8")


def make_gallery(pictures: list[Drawn]) -> str:
    """The list of the gallery."""
    lines, page = [], ""
    for one in pictures:
        if one.page != page:
            page = one.page
            title = read(page).splitlines()[0].removeprefix("# ")
            lines += [f"### [{title}]({page}.md)", ""]
        lines += [f"{one.heading}:", "", f"![{one.alt}](images/methods/{one.name}.png)", ""]
    return "\n".join(lines)


def draw_pages(names: set[str]) -> list[str]:
    """Run the pages, and save what their last lines give; names of the pictures that failed."""
    failed = []
    for page in PAGES:
        here = find_pictures(page, read(page))
        wanted = [one for one in here if not names or names & {one.name, page}]
        if not wanted:
            continue
        scope: dict[str, Any] = {"__name__": page}
        done = 0
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for one in wanted:
                try:
                    for code in one.before[done:]:
                        exec(compile(code, f"docs/{page}.md", "exec"), scope)
                    save(run_to_figure(one.code, page, scope), METHODS / f"{one.name}.png")
                except Exception:
                    traceback.print_exc()
                    failed.append(one.name)
                done = len(one.before) + 1
            os.chdir(DOCS)
    return failed


def run_to_figure(code: str, page: str, scope: dict[str, Any]) -> Any:
    """Run a block; the value of its last line."""
    tree = ast.parse(code)
    last = tree.body.pop()
    if not isinstance(last, ast.Expr):
        raise TypeError(f"docs/{page}.md: the last line draws nothing:\n{code}")
    exec(compile(tree, f"docs/{page}.md", "exec"), scope)
    return eval(compile(ast.Expression(last.value), f"docs/{page}.md", "eval"), scope)


def save(figure: Any, path: Path) -> None:
    """As a PNG, the same bytes for the same picture."""
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(buffer).convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(DOCS)}: {path.stat().st_size / 1024:.0f} KB", flush=True)


def draw_tokens() -> None:
    """Tokens over the picture, and a word's probability through the layers."""
    from PIL import Image

    import mm_lens
    from mm_lens.looking import visual_logit_lens

    model = mm_lens.load("demo/llava-next")
    data = mm_lens.datasets.load("easy-vqa")[:10]
    picture = next(s.image for s in data if s.id == "test/0/1").convert("RGB")  # a red triangle
    wide = Image.new("RGB", (128, 64), picture.getpixel((0, 0)))
    wide.paste(picture, (40, 0))

    inputs = model.prepare("what color is the triangle?", wide)
    mm_lens.drawing.draw_layout(inputs).savefig(IMAGES / "layout.png")

    inputs = model.prepare("what color is the triangle?", picture)
    red = visual_logit_lens(model, inputs, targets=["red"]).targets["red"][:, 0].log10()
    mm_lens.drawing.draw_values(
        picture, inputs.layout, red, layers=[0, 2, 4, 6, 8], label="log₁₀ probability of “red”"
    ).savefig(IMAGES / "overlay.png")


def main() -> None:
    names = {*sys.argv[1:]}
    warnings.simplefilter("ignore")
    gallery = DOCS / "gallery.md"
    text = gallery.read_text("utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    gallery.write_text(text[:start] + "\n" + make_gallery(all_pictures()) + text[end:], "utf-8")
    if not names or names & {"layout", "overlay"}:
        draw_tokens()
    others = names - {"layout", "overlay", "gallery"}
    failed = draw_pages(others) if others or not names else []
    sys.exit(f"Not drawn: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
