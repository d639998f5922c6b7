"""Stage *read*: the language model learns the questions from scenes that are described to it."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache

import easy_vqa
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import MistralForCausalLM, PreTrainedTokenizerFast

from demo_training import parts
from demo_training.learning import losses
from demo_training.packing import Packed
from demo_training.scenes import looking, packing
from demo_training.scenes.asking import EVENLY, ask, every_question
from demo_training.scenes.describing import WORDS, Describer, Window, places, whole
from demo_training.scenes.starting import start
from demo_training.train import Training
from mm_lens.data.sets.scenes.drawing import Scene, make_scene
from mm_lens.data.sets.scenes.questions import KINDS

TAIL = " [/INST]"
LEAST = 0.15
"""A kind that is always answered right is asked this often, beside 1 for one that never is."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Made from the questions of both data sets; yours to change."""
    return deepcopy(_tokenizer())


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    asked, answers, _ = easy_vqa.get_train_questions()
    pairs = [*zip(asked, answers, strict=True)]
    pairs += [(question.text, answer) for question in every_question() for answer in "1234"] * 100
    return parts.tokenizer(f"[INST] \n{question} [/INST] {answer}" for question, answer in pairs)


def word_ids(tokens: PreTrainedTokenizerFast) -> Int[Tensor, " name"]:
    """Of the `WORDS`."""
    return torch.tensor([tokens(f" {w}", add_special_tokens=False).input_ids[0] for w in WORDS])


class Asking:
    """Packs questions about scenes behind a prefix each, and counts what is answered right."""

    def __init__(
        self, tokens: PreTrainedTokenizerFast, tail: str, seed: int, device: torch.device
    ) -> None:
        self.tokens, self.tail, self.device = tokens, tail, device
        self.chance = random.Random(seed)
        self.known: dict[str, list[int]] = {}
        self.kinds: list[str] = []
        self.weights = dict(EVENLY)
        self.aims: list[Tensor] = []
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    def _ids(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokens(text, add_special_tokens=False).input_ids
        return self.known[text]

    def pack(
        self,
        scenes: Sequence[Scene],
        prefixes: Sequence[list[int]],
        n: int,
        picture: tuple[int, int],
    ) -> Packed:
        """`n` questions about each; `picture` is its side in tokens, and where it begins."""
        asked = [ask(scene, self.chance, n, self.weights) for scene in scenes]
        grid, first = picture
        length = max(map(len, prefixes))
        self.aims = [
            torch.stack(
                [
                    torch.stack(
                        [
                            looking.wanted(scene, what(scene, question), grid, first, length)
                            for _, question, _ in row
                        ]
                    )
                    for scene, row in zip(scenes, asked, strict=True)
                ]
            )
            for what in (looking.named, looking.beside)
        ]
        turns = [[(kind, question.text, answer) for kind, question, answer in row] for row in asked]
        return self.pack_these(turns, prefixes)

    def stray(self, blocks: int) -> Float[Tensor, ""]:
        """How far from what they are told two heads looked in the last pass."""
        rooms = packing.current.get()
        found = torch.zeros((), device=self.device)
        for layer, aims in enumerate(self.aims, start=blocks // 2):
            found = found + looking.stray(rooms, layer, 0, aims, rooms.ends)
        return found

    def pack_these(
        self, turns: Sequence[Sequence[tuple[str, str, str]]], prefixes: Sequence[list[int]]
    ) -> Packed:
        """Kind, question and answer of each."""
        self.kinds = [kind for row in turns for kind, _, _ in row]
        end = self.tokens.eos_token
        rows = [
            [(self._ids(text + self.tail), self._ids(f" {answer}{end}")) for _, text, answer in row]
            for row in turns
        ]
        packed = packing.pack(prefixes, rows, self.tokens.pad_token_id)
        moved = {f.name: getattr(packed, f.name).to(self.device) for f in fields(packed)}
        return replace(packed, **moved)

    @torch.no_grad()
    def tally(self, logits: Float[Tensor, "label word"], labels: Int[Tensor, " label"]) -> None:
        """Count answers (not their ends) that are right, by kind."""
        words = labels != self.tokens.eos_token_id
        right = (logits.argmax(-1) == labels)[words].tolist()
        self.asked.update(self.kinds)
        self.right.update(kind for kind, one in zip(self.kinds, right, strict=True) if one)

    def report(self) -> str:
        """Shares of right answers since the last report; from now on, what lags is asked more."""
        shares = {kind: self.right[kind] / max(1, self.asked[kind]) for kind in KINDS}
        self.weights = {kind: max(LEAST, 1 - share) for kind, share in shares.items()}
        # One question, two answers: asked unevenly, it would be answered without a look.
        both = (self.weights["present"] + self.weights["absent"]) / 2
        self.weights |= {"present": both, "absent": both}
        told = " ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
        self.right.clear()
        self.asked.clear()
        return told


def describe_whole(
    describer: Describer, scenes: Sequence[Scene], grid: int
) -> Float[Tensor, "scene token d"]:
    """Every scene as one tile."""
    said = torch.stack([places(scene, whole(scene), grid) for scene in scenes])
    found: Tensor = describer(said.to(describer.ground.device))
    return found


def describe_tiles(describer: Describer, scene: Scene, grid: int) -> Float[Tensor, "token d"]:
    """A scene as LLaVA-NeXT shows it: whole, and as two tiles with a newline after each row."""
    wide = scene.width >= scene.height
    long, short = max(scene.width, scene.height), min(scene.width, scene.height)
    side = max(short, long / 2)  # of a tile, in pixels of the picture
    far, near = (2 * side - long) / 2, (side - short) / 2  # padding
    windows = [
        Window(-far + k * side, -near, side, side)
        if wide
        else Window(-near, -far + k * side, side, side)
        for k in range(2)
    ]
    said = torch.stack([places(scene, window, grid) for window in windows])
    tokens: Tensor = describer(said.to(describer.ground.device))
    pattern = "tile (y x) d -> y (tile x) d" if wide else "tile (y x) d -> (tile y) x d"
    rows = rearrange(tokens, pattern, y=grid)
    cut, trim = round(far / side * grid), round(near / side * grid)
    down, across = (trim, cut) if wide else (cut, trim)
    rows = rows[down : rows.shape[0] - down, across : rows.shape[1] - across]
    ends = describer.newline.expand(len(rows), 1, -1)
    tiled = rearrange(torch.cat([rows, ends], 1), "y x d -> (y x) d")
    return torch.cat([describe_whole(describer, [scene], grid)[0], tiled])


class Reading(Training):
    """The language model alone."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.tokens = tokenizer()
        self.language = MistralForCausalLM(parts.text_config(self.tokens, args.size)).to(
            self.device
        )
        self.language.set_attn_implementation(packing.NAME)
        words = self.language.get_input_embeddings()
        self.describer = Describer(words, word_ids(self.tokens)).to(self.device)
        start(self.language, self.describer.thing)
        self.asking = Asking(self.tokens, TAIL, args.seed, self.device)
        self.chance = random.Random(args.seed)

    def scenes(self, most: int) -> list[Scene]:
        """A batch of scenes of at most so many objects."""
        found: list[Scene] = []
        while len(found) < self.args.batch:
            scene = make_scene(self.chance)
            if len(scene.things) <= most:
                found.append(scene)
        return found

    def describe(self, scenes: Sequence[Scene], grid: int, tiled: bool) -> list[Tensor]:
        """What the image tokens of each are."""
        if tiled:
            return [describe_tiles(self.describer, scene, grid) for scene in scenes]
        return [*describe_whole(self.describer, scenes, grid)]

    def answer(self, scenes: Sequence[Scene], grid: int, tiled: bool) -> tuple[Tensor, float]:
        """Loss of questions about described scenes."""
        images = self.describe(scenes, grid, tiled)
        unknown = self.tokens.unk_token_id
        head = self.tokens("[INST] ").input_ids
        line = self.tokens("\n", add_special_tokens=False).input_ids
        prefixes = [[*head, *[unknown] * len(image), *line] for image in images]
        picture = grid, len(head)
        packed = self.asking.pack(scenes, prefixes, self.args.questions, picture)
        embeds = self.language.get_input_embeddings()(packed.input_ids)
        embeds[packed.input_ids == unknown] = torch.cat(images)
        hidden = self.language.model(
            inputs_embeds=embeds,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            use_cache=False,
        ).last_hidden_state
        found = losses(self.language.lm_head, self.tokens.eos_token_id, hidden, packed)
        answered = packed.labels != -100
        self.asking.tally(self.language.lm_head(hidden[answered]), packed.labels[answered])
        stray = self.args.look_weight * self.asking.stray(self.args.size.blocks)
        return self.weigh(found) + stray, found.right

    def read(
        self, name: str, steps: int, peak: float, draw: Callable[[float], tuple[int, int, bool]]
    ) -> None:
        """`draw` tells of each part of the stage how many objects, the grid, and whether tiled."""

        def loss(step: int) -> tuple[Tensor, float]:
            most, grid, tiled = draw(step / steps)
            return self.answer(self.scenes(most), grid, tiled)

        def after(step: int) -> None:
            if (step + 1) % 50 == 0:
                print(self.asking.report(), flush=True)
            if (step + 1) % 200 == 0 or step + 1 == steps:
                self.save()

        trained = [*self.language.parameters(), *self.describer.parameters()]
        self.loop(name, steps, trained, peak, loss, after)

    def save(self) -> None:
        """To `language.pt`."""
        state = {"language": self.language.state_dict(), "describer": self.describer.state_dict()}
        torch.save(state, self.args.out / "language.pt")

    def load(self) -> None:
        """From `language.pt`."""
        state = torch.load(self.args.out / "language.pt", weights_only=True)
        self.language.load_state_dict(state["language"])
        self.describer.load_state_dict(state["describer"])
