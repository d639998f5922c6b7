"""Batches for training: images of one size, several questions packed behind each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import easy_vqa
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo_training import canvases
from demo_training.canvases import Bucket
from demo_training.fusion import Fusion
from demo_training.packing import Packed, pack
from demo_training.prompts import prompt

# Image positions of a described picture. Mostly few: they cost less, and teach as much.
_DESCRIBED = (36, 48, 48, 192)


@dataclass(frozen=True)
class Batch:
    """Images of one size, on the training device."""

    pixels: Float[Tensor, "image tile 3 height width"]
    sizes: Tensor
    owner: list[int]


class Pictures:
    """Draws batches of equally sized images."""

    def __init__(
        self, fusion: Fusion, buckets: list[Bucket], seed: int, device: torch.device
    ) -> None:
        self.fusion, self.buckets, self.device = fusion, buckets, device
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self._prefixes: dict[tuple[int, int], list[int]] = {}

    def draw(self, n: int) -> Batch:
        """`n` images from one bucket, buckets in proportion to their size."""
        weights = [len(b.owner) for b in self.buckets]
        bucket = self.rng.choices(self.buckets, weights)[0]
        index = torch.randint(len(bucket.owner), (n,), generator=self.generator)
        pixels = canvases.normalise(bucket.pixels[index], self.fusion.processor)
        sizes = repeat(torch.tensor(bucket.size, device=self.device), "side -> image side", image=n)
        return Batch(pixels.to(self.device), sizes, bucket.owner[index].tolist())

    def prefix(self, size: tuple[int, int]) -> list[int]:
        """Token ids up to the question, for an image of (height, width) `size`."""
        if size not in self._prefixes:
            self._prefixes[size] = prefix(self.fusion, size)
        return self._prefixes[size]


_QUESTION = "\0"


def prefix(fusion: Fusion, size: tuple[int, int]) -> list[int]:
    """Token ids of a prompt up to the question, for an image of (height, width) `size`."""
    head, _ = prompt(fusion.processor, _QUESTION).split(_QUESTION)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    ids: list[int] = fusion.processor(text=[head], images=[image]).input_ids[0]
    return ids


def tail(fusion: Fusion) -> str:
    """What follows the question in a prompt."""
    return prompt(fusion.processor, _QUESTION).split(_QUESTION)[1]


class Questions:
    """Questions about train images as token ids, packed behind a prefix.

    Args:
        tokenizer: of the model.
        tail: what stands between question and answer.
        seed: of the choice of questions.
        device: where the tensors go.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, tail: str, seed: int, device: torch.device
    ) -> None:
        self.tokenizer, self.tail, self.device = tokenizer, tail, device
        self.rng = random.Random(seed)
        self.groups = canvases.questions()
        asked, answers, _ = easy_vqa.get_train_questions()
        pairs = set(zip(asked, answers, strict=True))
        self.turns = {pair: self._tokens(*pair) for pair in pairs}

    def _tokens(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of the question to the end of the prompt, and of the answer with its end."""
        encode = self.tokenizer
        asked = encode(question + self.tail, add_special_tokens=False).input_ids
        reply = encode(f" {answer}{encode.eos_token}", add_special_tokens=False).input_ids
        return asked, reply

    def _choose(self, owner: int, negations: bool) -> tuple[str, str]:
        # Evenly over the groups: nine in ten yes/no questions of easy-VQA ask for what is not
        # there, and answering them without a look is a plateau to get stuck on.
        groups = self.groups[owner]
        names = [name for name in groups if negations or not name.endswith("negated")]
        return self.rng.choice(groups[self.rng.choice(names or list(groups))])

    def ask(self, owners: Sequence[int], prefix: list[int], n: int, negations: bool) -> Packed:
        """`n` questions about each of these images, packed behind a prefix.

        Without `negations`, "is there not a red shape?" and the like are left out.
        """
        turns = [[self.turns[self._choose(o, negations)] for _ in range(n)] for o in owners]
        packed = pack([prefix] * len(turns), turns, self.tokenizer.pad_token_id)
        moved = {f.name: getattr(packed, f.name).to(self.device) for f in fields(packed)}
        return replace(packed, **moved)

    def described(self, n: int) -> tuple[list[int], list[int]]:
        """Images whose shape and colour are known, and an instruction that holds image positions.

        These positions hold the unknown token, which stands nowhere else.
        """
        encode = self.tokenizer
        image = [encode.unk_token_id] * self.rng.choice(_DESCRIBED)
        head, line = encode("[INST] ").input_ids, encode("\n", add_special_tokens=False).input_ids
        return self.rng.choices(sorted(canvases.kinds()), k=n), [*head, *image, *line]
