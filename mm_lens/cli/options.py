"""Options that several commands have, in one spelling, and what of them can be checked at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mm_lens import demo
from mm_lens._storage.files import check_below
from mm_lens.arguments import check_name

PICTURES = "mm-lens data show easy-vqa --save pictures"
"""Writes pictures to try the commands on, for whom has none at hand."""
ABOUT = f"""TransformerLens for vision-language models.

First steps, with pictures and a model that come along:

\b
  {PICTURES}
  mm-lens ask pictures/test-0-0.png "what color is the shape?" --model demo/llava-next
"""
"""What `mm-lens --help` begins with."""

Model = Annotated[
    str, typer.Option(help="Hub id, local directory, or a demo model, e.g. demo/llava-next.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, …", show_default="the GPU if there is one")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Of the weights.", show_default="as stored"),
]
DeviceMap = Annotated[
    str | None, typer.Option(help="auto: spread a model over GPUs that is too large for one.")
]
Attention = Annotated[
    Literal["sdpa", "eager"], typer.Option(help="Attention implementation; sdpa is faster.")
]
ChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--chat-template/--no-chat-template",
        help="Apply the model's chat template to the questions.",
        show_default="unless they hold image placeholders",
    ),
]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Skip the check of the loaded model.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run wrote to --out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Image = Annotated[str, typer.Argument(help="File of a picture.")]
Question = Annotated[str, typer.Argument(help="What is asked about it.")]
Page = Annotated[Path | None, typer.Option(help="Write a page (.html) that needs no network, too.")]
Layers = Annotated[
    str | None,
    typer.Option(help="Numbers with commas, negative ones from the end.", show_default="all"),
]

_ADDRESS = re.compile(r"(https?|ftp|data|file):/{0,2}|[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def make_seed(help: str) -> Any:
    """The option of a seed that torch takes.

    Args:
        help: of what it is the seed.
    """
    return typer.Option(min=0, max=2**63 - 1, help=help)


def check_model(model: str) -> None:
    """Refuse a name of no demo model and a directory that is not there.

    Raises:
        InputError: naming it.
    """
    if model.startswith("demo/"):
        demo.path(model)
    else:
        check_name(model)


def check_device(device: str | None) -> None:
    """Refuse what no device is called; whether it is here, torch says later.

    Raises:
        BadParameter: naming it.
    """
    if device is not None and not re.fullmatch(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?", device):
        raise typer.BadParameter(
            f"There is no device {device!r} here. Try cpu.", param_hint="'--device'"
        )


def check_picture(name: str, hint: str = "'IMAGE'") -> None:
    """Refuse an address and a file that is not there.

    Raises:
        BadParameter: naming it.
    """
    if _ADDRESS.match(name):
        raise typer.BadParameter(
            f"{name!r} is an address, and addresses are not fetched: download the file and give "
            "its path.",
            param_hint=hint,
        )
    if not Path(name).is_file():
        kind = "a directory" if Path(name).is_dir() else "not there"
        raise typer.BadParameter(
            f"{name!r} is {kind}: give the file of a picture. `{PICTURES}` writes some to try.",
            param_hint=hint,
        )


def check_page(page: Path | None, overwrite: bool) -> None:
    """Refuse a page that is there, or that no browser would open.

    Raises:
        BadParameter, InputError: naming it.
    """
    if page is None:
        return
    check_below(page)
    if page.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{page} is no page: let it end in .html.", param_hint="'--out'")
    if page.exists() and not (overwrite and page.is_file()):
        raise typer.BadParameter(
            f"{page} exists already. Name another file, or add --overwrite.", param_hint="'--out'"
        )


def read_layers(text: str | None) -> list[int] | None:
    """Numbers of layers.

    Raises:
        BadParameter: they are none.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"-?\d+", part) for part in parts):
        raise typer.BadParameter(
            f"{text!r} are no numbers of layers with commas, as 0,4,-1.", param_hint="'--layers'"
        )
    return [int(part) for part in parts]


def read_words(text: str | None) -> list[str]:
    """Words with commas between them."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]
