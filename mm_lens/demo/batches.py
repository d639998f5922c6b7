"""Batches for training: images of one size, several questions packed behind each."""

import random
from dataclasses import dataclass, fields, replace

import easy_vqa
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlavaNextProcessor

from . import canvases
from .canvases import Bucket
from .packing import Packed, pack
from .prompts import prompt

_SHORT = 48  # image positions of a short prefix


@dataclass(frozen=True)
class Batch:
    """Images of one size with their questions, on the training device."""

    pixels: Float[Tensor, "image tile 3 height width"]
    sizes: Tensor
    owner: list[int]
    bucket: Bucket


class Data:
    """Draws batches of equally sized images, and packs questions behind them."""

    def __init__(
        self, processor: LlavaNextProcessor, buckets: list[Bucket], seed: int, device: torch.device
    ) -> None:
        self.processor, self.buckets, self.device = processor, buckets, device
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.questions = canvases.questions()
        asked, answers, _ = easy_vqa.get_train_questions()
        pairs = set(zip(asked, answers, strict=True))
        self.turns = {pair: self._tokens(*pair) for pair in pairs}
        self.image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
        self.described_owners = sorted(canvases.kinds())
        self.prefixes = {b.size: self._prefix(b.size) for b in buckets}

    def _prefix(self, size: tuple[int, int]) -> list[int]:
        """Token ids up to the question, for an image of this size."""
        text = prompt(self.processor, "").removesuffix(" [/INST]")
        count = self.processor._get_num_multimodal_tokens(image_sizes=[size])
        image = "<image>" * count["num_image_tokens"][0]
        ids: list[int] = self.processor.tokenizer(text.replace("<image>", image)).input_ids
        return ids

    def _tokens(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of the question to the end of the prompt, and of the answer with its end."""
        tokens = self.processor.tokenizer
        tail = tokens(f"{question} [/INST]", add_special_tokens=False).input_ids
        reply = tokens(f" {answer}{tokens.eos_token}", add_special_tokens=False).input_ids
        return tail, reply

    def draw(self, n: int) -> Batch:
        """`n` images from one bucket, buckets in proportion to their size."""
        weights = [len(b.owner) for b in self.buckets]
        bucket = self.rng.choices(self.buckets, weights)[0]
        index = torch.randint(len(bucket.owner), (n,), generator=self.generator)
        pixels = canvases.normalise(bucket.pixels[index], self.processor).to(self.device)
        sizes = torch.tensor(bucket.size, device=self.device).expand(n, 2)
        return Batch(pixels, sizes, bucket.owner[index].tolist(), bucket)

    def _ask(self, owner: int, negations: bool) -> tuple[str, str]:
        # Evenly over the groups: nine in ten yes/no questions of easy-VQA ask for what is not
        # there, and answering them without a look is a plateau to get stuck on.
        groups = self.questions[owner]
        names = [name for name in groups if negations or not name.endswith("negated")]
        return self.rng.choice(groups[self.rng.choice(names or list(groups))])

    def ask(self, owners: list[int], prefix: list[int], n: int, negations: bool) -> Packed:
        """`n` questions about each of these images, packed behind a prefix.

        Without `negations`, "is there not a red shape?" and the like are left out.
        """
        turns = [[self.turns[self._ask(o, negations)] for _ in range(n)] for o in owners]
        packed = pack([prefix] * len(turns), turns, self.processor.tokenizer.pad_token_id)
        moved = {f.name: getattr(packed, f.name).to(self.device) for f in fields(packed)}
        return replace(packed, **moved)

    def described(self, n: int) -> tuple[list[int], list[int]]:
        """Images whose shape and colour are known, and a prefix that holds image positions.

        Three times out of four a short one: it costs a third, and teaches as much.
        """
        owners = self.rng.choices(self.described_owners, k=n)
        prefix = self.rng.choice(list(self.prefixes.values()))
        if self.rng.random() < 0.75:
            start, image = prefix.index(self.image_token), self.image_token
            rest = [token for token in prefix[start:] if token != image]
            prefix = [*prefix[:start], *[image] * _SHORT, *rest]
        return owners, prefix
