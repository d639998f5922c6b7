"""Stages *connect* and *answer*: one fusion of the tower and the language model."""

from __future__ import annotations

import argparse
import random
from copy import deepcopy

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from demo_training.batches import tail
from demo_training.canvases import normalise
from demo_training.fusions import FUSIONS
from demo_training.learning import average, losses
from demo_training.parts import PATCH
from demo_training.scenes import packing
from demo_training.scenes.describing import Describer
from demo_training.scenes.pictures import Picture, draw, stack
from demo_training.scenes.reading import Asking, tokenizer, word_ids
from demo_training.scenes.seeing import DenseReader, features, used
from demo_training.train import Training

STAND_INS = ("[INST]", "\n", "\n", "[/INST]")
"""For OmniFusion's markers: start and end of the image, whose turn it is."""


class Joining(Training):
    """One fusion."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        super().__init__(args)
        self.name = name
        self.fusion = FUSIONS[name](tokenizer(), args.size)
        self.model = self.fusion.model.to(self.device)
        self._adopt()
        if args.again:
            whole = type(self.model).from_pretrained(args.out / name)
            self.model.load_state_dict(whole.state_dict())
        self.slow = deepcopy(self.model)
        self.model.set_attn_implementation({"text_config": packing.NAME})
        tokens = self.fusion.processor.tokenizer
        self.asking = Asking(tokens, tail(self.fusion), args.seed, self.device)
        self.grid = args.size.tile // PATCH
        self.placeholder = self.model.config.image_token_index
        self.chance = random.Random(args.seed)
        cache = args.out / f"{name}.scenes.pt"
        self.pool = draw(self.fusion, args.images, args.seed, cache)
        self.features = self.projected = torch.empty(0)
        tower = self.model.model.vision_tower
        tower.encoder.layers[-2].register_forward_hook(self._see)
        self.model.model.multi_modal_projector.register_forward_hook(self._project)

    def _see(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self.features = output[:, 1:]

    def _project(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self.projected = output

    @torch.no_grad()
    def _adopt(self) -> None:
        """Tower, reader, language model and what image tokens are to say."""
        args, tokens = self.args, self.fusion.processor.tokenizer
        seen = torch.load(args.out / "tower.pt", weights_only=True)
        self.reader = DenseReader(args.size.width).to(self.device)
        self.reader.load_state_dict(seen["reader"])
        self.model.model.vision_tower.load_state_dict(seen["tower"])
        read = torch.load(args.out / "language.pt", weights_only=True)
        mine = dict(self.model.named_parameters())
        for name, weight in read["language"].items():
            mine[name.replace("model.", "model.language_model.", 1)][: len(weight)] = weight
        words = self.model.get_input_embeddings()
        self.describer = Describer(words, word_ids(tokens)).to(self.device)
        self.describer.load_state_dict(read["describer"])
        self.describer.requires_grad_(False)
        if hasattr(self.model.model, "image_newline"):
            self.model.model.image_newline.copy_(self.describer.newline)
        if hasattr(words, "special"):  # markers start as what stood in their place
            for marker, stand_in in zip(words.special, STAND_INS, strict=True):
                (known,) = tokens(stand_in, add_special_tokens=False).input_ids
                marker.copy_(words.weight[known])

    def draw(self) -> list[Picture]:
        """A batch."""
        return self.chance.sample(self.pool, self.args.batch)

    def told(self, said: Float[Tensor, "tile token name"]) -> Float[Tensor, ""]:
        """How far the image tokens are from what they have to say, as a part of how much that is.

        Half of it counts where there is something to say, which is at one token in ten.
        """
        with torch.no_grad():
            wanted = self.describer(said)
            spread = (wanted - wanted.mean((0, 1))).square().sum(-1)
            speaks = said.sum(-1) > 0
        off = (
            (rearrange(self.projected, "... d -> (...) d").view_as(wanted) - wanted)
            .square()
            .sum(-1)
        )
        return 0.5 * (off[speaks].mean() / spread[speaks].mean() + off.mean() / spread.mean())

    def see(self) -> tuple[Tensor, float]:
        """Tower and projector alone: what image tokens have to say."""
        pictures = self.draw()
        pixels = normalise(stack(pictures), self.fusion.processor).to(self.device)
        said = torch.cat([picture.said() for picture in pictures]).to(self.device)
        flat = rearrange(pixels, "image tile ... -> (image tile) ...")
        self.model.model.multi_modal_projector(features(self.model.model.vision_tower, flat))
        seen = self.reader(self.features, said)
        off = self.told(said)
        return seen.loss * self.args.vision_weight + off, off.item()

    def answer(self, step: int) -> tuple[Tensor, float]:
        """Questions about pictures, and what image tokens have to say."""
        pictures = self.draw()
        pixels = normalise(stack(pictures), self.fusion.processor).to(self.device)
        packed = self.asking.pack(
            [picture.scene for picture in pictures],
            [picture.prefix for picture in pictures],
            self.args.questions,
            (self.grid, pictures[0].prefix.index(self.placeholder)),
        )
        sizes = [(p.scene.height, p.scene.width) for p in pictures]
        hidden = self.model.model(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            pixel_values=self.fusion.native(pixels),
            image_sizes=torch.tensor(sizes, device=self.device),
            use_cache=False,
        ).last_hidden_state
        head, answered = self.model.lm_head, packed.labels != -100
        found = losses(head, self.fusion.processor.tokenizer.eos_token_id, hidden, packed)
        self.asking.tally(head(hidden[answered]), packed.labels[answered])
        said = torch.cat([picture.said() for picture in pictures]).to(self.device)
        kept = self.args.vision_weight * self.reader(self.features, said).loss
        kept = kept + self.args.told_weight * self.told(said)
        kept = kept + self.args.look_weight * self.asking.stray(self.args.size.blocks)
        return self.weigh(found) + kept, found.right

    def run(self) -> None:
        """Both stages; the averaged model goes to the output folder."""
        model, args = self.model.model, self.args
        shown = [*used(model.vision_tower), *self.reader.parameters()]
        self.loop(
            "connect",
            0 if args.again else args.connect,
            [*shown, *model.multi_modal_projector.parameters()],
            args.lr,
            lambda step: self.see(),
        )
        self.slow.load_state_dict(self.model.state_dict())

        def after(step: int) -> None:
            average(self.slow, self.model, step)
            if (step + 1) % 50 == 0:
                print(self.asking.report(), flush=True)
            if (step + 1) % 200 == 0 or step + 1 == args.answer:
                self.save()

        trained = [*self.model.parameters(), *self.reader.parameters()]
        self.loop("answer", args.answer, trained, args.lr_all, self.answer, after)

    def save(self) -> None:
        """The averaged model and its processor."""
        self.slow.eval().save_pretrained(self.args.out / self.name)
        self.fusion.processor.save_pretrained(self.args.out / self.name)
