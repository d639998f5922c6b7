"""A model, a picture and a question, as commands of this package open them; and their result."""

# torch is imported when a model is loaded: what can be wrong before is told before.
from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_lens.cli import options
from mm_lens.cli.models import load_model, silence_libraries


@dataclass(frozen=True)
class Request:
    """What every command about one picture is given.

    Attributes:
        image: file of the picture.
        question: what is asked about it.
        model: hub id, directory or demo model.
        out: page to write.
        as_json: print JSON.
        overwrite: replace an earlier page.
        device: where the model goes.
        dtype: of the weights.
        chat_template: see `model.prepare`.
        check: check the loaded model.
        attention: "sdpa" or "eager".
    """

    image: str
    question: str
    model: str
    out: Path | None = None
    as_json: bool = False
    overwrite: bool = False
    device: str | None = None
    dtype: str | None = None
    chat_template: bool | None = None
    check: bool = True
    attention: str = "sdpa"

    def check_all(self) -> None:
        """See that files are there or not there, before anything slow begins.

        Raises:
            BadParameter, InputError: naming what is wrong.
        """
        options.check_picture(self.image)
        options.check_page(self.out, self.overwrite)
        options.check_device(self.device)
        options.check_model(self.model)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The model, the libraries silent as long as it is used."""
        self.check_all()
        print(f"Loading {self.model} …", file=sys.stderr)
        with silence_libraries():
            yield load_model(
                self.model,
                dtype=self.dtype,
                device_map=None,
                device=self.device,
                attention=self.attention,
                check=self.check,
            )

    def prepare(self, model: Any, image: str | None = None) -> Any:
        """The inputs: the picture and the question, or the question with another picture."""
        picture = self.image if image is None else image
        return model.prepare(self.question, picture, chat_template=self.chat_template)

    def present(
        self,
        result: Mapping[str, Any],
        lines: Sequence[str],
        title: str,
        parts: Mapping[str, Any],
    ) -> None:
        """Print the result, and write the page if one is asked for.

        Args:
            result: as it goes into JSON.
            lines: the same for people.
            title: of the page.
            parts: of the page: figures, or HTML, by their headings.
        """
        about = {"model": self.model, "image": self.image, "question": self.question}
        if self.out is not None:
            from mm_lens.drawing.sample_page import make_page

            made = {name: part() if callable(part) else part for name, part in parts.items()}
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(make_page(title, about, lines, made), encoding="utf-8")
        if self.as_json:
            page = {} if self.out is None else {"page": str(self.out)}
            print(json.dumps(_plain({**about, **result, **page}), ensure_ascii=False))
            return
        print("\n".join(lines))
        if self.out is not None:
            print(f"Wrote {self.out}")


def _plain(value: Any) -> Any:
    """What JSON can hold: it knows no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
