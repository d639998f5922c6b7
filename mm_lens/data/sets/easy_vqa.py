"""easy-VQA: questions about one coloured shape, from the package `easy-vqa`."""

from __future__ import annotations

from pathlib import Path

from mm_lens.data.samples import DataSet, Row
from mm_lens.data.sources import File
from mm_lens.errors import DataError

SHAPES = ("circle", "rectangle", "triangle")


class EasyVQA(DataSet):
    """easy-VQA (Victor Zhou, MIT licence): questions about one coloured shape per 64 x 64 image.

    train: 38,575 questions about 4,000 images; test: 9,673 questions about 1,000 other images;
    13 answers (yes, no, 3 shapes, 8 colours). Order is that of the package `easy-vqa`. `about` says
    the kind of each question: yes/no, shape or colour.
    """

    def __init__(self, split: str = "test") -> None:
        import easy_vqa

        readers = {
            "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
            "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
        }
        if split not in readers:
            raise DataError(f"easy-vqa has no split {split!r}. Available: {', '.join(readers)}.")
        read_questions, read_paths = readers[split]
        paths = read_paths()
        super().__init__(
            [
                Row(
                    f"{split}/{image}/{i}",
                    question,
                    (File(Path(paths[image])),),
                    answer,
                    about={"question": question, "kind": _kind(answer)},
                )
                for i, (question, answer, image) in enumerate(zip(*read_questions(), strict=True))
            ],
            f"easy-vqa {split}",
            split,
        )


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "colour"


def open_set(where: str, split: str | None) -> DataSet:
    """The data set; it is in a package, and so nowhere else."""
    if where:
        raise DataError(f"easy-vqa is in a package: leave out what stands behind it ({where!r}).")
    return EasyVQA(split or "test")
