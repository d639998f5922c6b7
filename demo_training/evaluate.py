"""Accuracy by question type, with the image and with the image blanked.

`python -m demo_training.evaluate demo/llava-next` runs a shipped model on the whole easy-VQA test
split, through the real processor, chat template and `generate`.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import easy_vqa
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo_training.canvases import asked_for
from demo_training.prompts import prompt
from mm_lens.data import datasets
from mm_lens.data.datasets import Sample
from mm_lens.demo import available, path
from mm_lens.model.families import families

GREY = (128, 128, 128)


@dataclass(frozen=True)
class Score:
    """Right answers out of all, for one type of question."""

    right: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1; NaN when nothing was asked."""
        return self.right / self.total if self.total else float("nan")

    def add(self, right: bool) -> "Score":
        """This score and one more answer."""
        return Score(self.right + right, self.total + 1)


TYPES = ("all", "yes/no", "present", "absent", "shape", "colour")


def question_types(sample: Sample) -> tuple[str, ...]:
    """The rows of `TYPES` that a sample counts in.

    Yes/no questions are told apart by whether what they ask about is in the image: in easy-VQA
    four in five ask about what is absent, so that their mean alone hides a model that guesses.
    """
    asked = asked_for(sample.text, str(sample.answer)).removesuffix(", negated")
    return ("all", "yes/no", asked) if asked in ("present", "absent") else ("all", asked)


def hide_image(sample: Sample) -> Sample:
    """The sample with a uniform grey image of the same size: what can be guessed from text."""
    image = None if sample.image is None else Image.new("RGB", sample.image.size, GREY)
    return replace(sample, image=image)


@torch.no_grad()
def answers(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
) -> list[str]:
    """Greedy answers to one batch of samples, left padded."""
    inputs = processor(
        text=[prompt(processor, sample.text) for sample in samples],
        images=[sample.image for sample in samples],
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def evaluate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    blank: bool = False,
    batch: int = 32,
    progress: bool = False,
) -> dict[str, Score]:
    """Score by question type (`TYPES`).

    Args:
        model: In evaluation mode.
        processor: The model's own.
        samples: With image and answer.
        blank: Replace every image by a uniform grey one.
        batch: Samples per forward pass.
        progress: Show a progress bar.
    """
    given: list[str] = []
    for group in tqdm(list(_chunks(len(samples), batch)), disable=not progress):
        asked = [samples[i] for i in group]
        given += answers(model, processor, [hide_image(s) for s in asked] if blank else asked)
    return score(samples, given)


def score(samples: Sequence[Sample], given: Sequence[str]) -> dict[str, Score]:
    """Count exact answers by question type (`TYPES`)."""
    scores = {name: Score() for name in TYPES}
    for sample, answer in zip(samples, given, strict=True):
        for name in question_types(sample):
            scores[name] = scores[name].add(answer == sample.answer)
    return scores


def best_guesses(samples: Sequence[Sample]) -> list[str]:
    """The most frequent answer to each question in the train split: the most a blind model gets."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer, _ in zip(*easy_vqa.get_train_questions(), strict=True):
        seen[question][answer] += 1
    return [seen[sample.text].most_common(1)[0][0] for sample in samples]


def _chunks(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"a folder, or one of: {', '.join(available())}")
    parser.add_argument("--limit", type=int, help="this many random questions instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    folder = path(args.model) if args.model in available() else Path(args.model)
    families()  # makes their classes known to transformers
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    samples = datasets.load("easy-vqa", "test", limit=args.limit, seed=args.seed)
    columns = [score(samples, best_guesses(samples))]
    for blank in (False, True):
        found = evaluate(model, processor, samples, blank=blank, batch=args.batch, progress=True)
        columns.insert(-1, found)
    print(f"{'':8}{'n':>6}{'with image':>14}{'image blanked':>15}{'best blind guess':>18}")
    for name in TYPES:
        shown, blank_, guessed = (column[name] for column in columns)
        print(
            f"{name:8}{shown.total:6}{shown.accuracy:14.2%}{blank_.accuracy:15.2%}"
            f"{guessed.accuracy:18.2%}"
        )


if __name__ == "__main__":
    main()
