"""Accuracy by kind of question, with the picture and with the picture blanked.

`python -m demo_training.scenes.evaluate demo/omnifusion-scenes` asks a shipped model, or one in a
folder, the test split of `scenes`: all questions about a picture at once, packed behind it, which
gives the answers that asking one by one gives (tests/demo_training/scenes). An answer counts when
its word and then the end rank first.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo_training.evaluate import GREY, Score
from demo_training.packing import Packed
from demo_training.prompts import prompt
from demo_training.scenes import packing
from mm_lens.data import datasets
from mm_lens.demo import available, path
from mm_lens.model.families import families

BATCH = 16
"""Pictures at once."""


def group(data: Any, limit: int | None = None) -> list[list[Any]]:
    """The rows of a data set by picture, of the first `limit` pictures."""
    by_scene = defaultdict(list)
    for row in data._rows:
        by_scene[row.images[0]].append(row)
    return list(by_scene.values())[:limit]


def open_model(folder: Path) -> tuple[Any, Any]:
    """Model and processor."""
    families()  # makes their classes known to transformers
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, AutoProcessor.from_pretrained(folder)


def evaluate(
    model: Any, processor: Any, pictures: list[list[Any]], *, blank: bool = False
) -> dict[str, Score]:
    """Score by kind of question."""
    scores: dict[str, Score] = defaultdict(Score)
    for start in tqdm(range(0, len(pictures), BATCH), mininterval=9):
        rows = pictures[start : start + BATCH]
        logits, packed = _ask(model, processor, rows, blank)
        told = packed.labels != -100
        right = (logits[told].argmax(-1) == packed.labels[told]).reshape(-1, 2).all(-1).tolist()
        each = len(right) // len(rows)  # answers are one word and the end
        for k, row in enumerate(rows):
            for asked, one in zip(row, right[k * each :], strict=False):
                for kind in ("all", asked.about["kind"]):
                    scores[kind] = scores[kind].add(one)
    return dict(scores)


def first_words(model: Any, processor: Any, pictures: list[list[Any]]) -> list[list[int]]:
    """The token that the model begins each answer with."""
    logits, packed = _ask(model, processor, pictures, False)
    words = logits[packed.labels != -100].argmax(-1).reshape(len(pictures), -1, 2)[..., 0].tolist()
    return [given[: len(row)] for row, given in zip(pictures, words, strict=True)]


@torch.no_grad()
def _ask(model: Any, processor: Any, rows: list[list[Any]], blank: bool) -> tuple[Tensor, Packed]:
    """Logits of all questions about some pictures; the first is asked anew to fill up a row."""
    images = [group[0].images[0].draw() for group in rows]
    if blank:
        images = [Image.new("RGB", image.size, GREY) for image in images]
    head, end = prompt(processor, "\0").split("\0")
    encode = processor.tokenizer
    seen = processor.image_processor(images, return_tensors="pt")
    ids = processor(text=[head] * len(rows), images=images).input_ids
    most = max(map(len, rows))
    turns = [
        [
            (
                encode(row.text + end, add_special_tokens=False).input_ids,
                encode(f" {row.answer}{encode.eos_token}", add_special_tokens=False).input_ids,
            )
            for row in (*asked, *asked[:1] * (most - len(asked)))
        ]
        for asked in rows
    ]
    packed = packing.pack(ids, turns, encode.pad_token_id)
    model.set_attn_implementation({"text_config": packing.NAME})
    sizes = torch.tensor([(image.height, image.width) for image in images])
    logits = model(
        input_ids=packed.input_ids,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        pixel_values=seen["pixel_values"],
        image_sizes=sizes,
        use_cache=False,
    ).logits
    model.set_attn_implementation({"text_config": "sdpa"})
    return logits, packed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"a folder, or one of: {', '.join(available())}")
    parser.add_argument("--pictures", type=int, help="only so many")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = path(args.model) if args.model in available() else Path(args.model)
    model, processor = open_model(folder)
    pictures = group(datasets.load("scenes", "test", seed=args.seed), args.pictures)
    shown, hidden = (evaluate(model, processor, pictures, blank=blank) for blank in (False, True))
    print(f"{'':8}{'n':>6}{'with picture':>14}{'blanked':>10}")
    for kind in ("all", *(k for k in shown if k != "all")):
        line = f"{kind:8}{shown[kind].total:6}{shown[kind].accuracy:14.1%}"
        print(f"{line}{hidden[kind].accuracy:10.1%}")


if __name__ == "__main__":
    main()
