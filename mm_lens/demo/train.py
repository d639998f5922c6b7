"""Train the demo model on easy-VQA: ``python -m mm_lens.demo.train --out runs/demo-model``.

A yes/no question has to be *compared* with the image, and from scratch nothing rewards that before
both sides are there: answers stay at chance for thousands of steps. So each part learns what it can
learn alone, in LLaVA's order:

1. *see*: the vision tower learns to name shape and colour (`Reader`, dropped afterwards).
2. *read*: the language model learns the questions, from pictures that are *described*: at some
   image positions the embeddings of the words for shape and colour are added.
3. *negate*: the same, with questions such as "is there not a red shape?".
4. *connect*: the projector alone learns to put image tokens where those words lie.
5. *everything* learns from images on canvases of several aspect ratios, many questions packed
   behind each image (`packing`), loss on the answer, less on the question.

Weights are exported as a moving average. Test images are never touched.
"""

import argparse
import random
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import easy_vqa
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration

from . import build, canvases
from .batches import Batch, Data
from .canvases import COLOURS, SHAPES
from .learning import Losses, Reader, average, descend, losses, optimiser, rate
from .packing import Packed


class Training:
    """The model in training, and one method for each stage."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device, self.started = torch.device(args.device), time.time()
        asked, answers, _ = easy_vqa.get_train_questions()
        corpus = [f"[INST] <image>\n{q} [/INST] {a}" for q, a in zip(asked, answers, strict=True)]
        self.processor = build.processor(build.tokenizer(corpus))
        self.model = LlavaNextForConditionalGeneration(build.config(self.processor.tokenizer))
        nn.Module.to(self.model, self.device)
        self.slow = deepcopy(self.model)
        self.reader = Reader(self.model, self.processor).to(self.device)
        cache = args.out / "canvases.pt"
        buckets = canvases.pool(self.processor, limit=args.images, seed=args.seed, cache=cache)
        self.data = Data(self.processor, buckets, args.seed, self.device)

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"{text} minutes {(time.time() - self.started) / 60:.1f}", flush=True)

    def loop(
        self,
        name: str,
        steps: int,
        parts: list[nn.Module],
        loss: Callable[[int], tuple[Tensor, float]],
        after: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Optimise `parts` for `steps` steps; `loss` gives a loss and a share of right answers."""
        parameters = [p for part in parts for p in part.parameters()]
        optimizer, right = optimiser(parameters), 0.0
        for step in range(steps):
            total, share = loss(step)
            lr = rate(step, steps, 50, self.args.lr)
            descend(total, optimizer, parameters, lr)
            after(step)
            right += share / 25
            if (step + 1) % 25 == 0:
                self.say(f"{name} {step + 1} loss {total.item():.3f} right {right:.3f}")
                right = 0.0

    def see(self) -> None:
        """Stage 1: the vision tower."""
        tower = self.model.model.vision_tower

        def loss(step: int) -> tuple[Tensor, float]:
            batch = self.data.draw(4 * self.args.batch)
            tower(batch.pixels.flatten(0, 1))
            named: tuple[Tensor, float] = self.reader(batch)
            return named

        self.loop("see", self.args.see, [tower, self.reader], loss)

    def read(self) -> None:
        """Stage 2: the language model, on described pictures, no negations."""
        self._language("read", self.args.read, False)

    def negate(self) -> None:
        """Stage 3: the same with negations, which turn "the same" into "no"."""
        self._language("negate", self.args.negate, True)

    def _language(self, name: str, steps: int, negations: bool) -> None:
        language = self.model.model.language_model

        def loss(step: int) -> tuple[Tensor, float]:
            owners, prefix = self.data.described(self.args.batch)
            packed = self.data.ask(owners, prefix, self.args.questions, negations)
            hidden = language(
                inputs_embeds=self.describe(packed, owners),
                attention_mask=packed.attention_mask,
                position_ids=packed.position_ids,
                use_cache=False,
            ).last_hidden_state
            found = losses(self.model, hidden, packed)
            return self.weigh(found), found.right

        self.loop(name, steps, [language, self.model.lm_head], loss)

    def describe(self, packed: Packed, owners: list[int]) -> Float[Tensor, "batch pos d"]:
        """Embeddings in which a few image positions say shape and colour."""
        table, known = self.model.get_input_embeddings(), canvases.kinds()
        embeds: Tensor = table(packed.input_ids)
        said = torch.zeros_like(embeds)
        for b, owner in enumerate(owners):
            image = (packed.input_ids[b] == self.data.image_token).nonzero().squeeze(1)
            chosen = torch.randperm(len(image))[: random.randint(2, 12)]
            words = [(SHAPES + COLOURS).index(word) for word in known[owner]]
            said[b, image[chosen]] = table(self.reader.words[words].to(self.device)).sum(0)
        return embeds + said

    def connect(self) -> None:
        """Stage 4: the projector."""
        self.loop(
            "connect",
            self.args.connect,
            [self.model.model.multi_modal_projector],
            lambda step: self.answer(self.data.draw(self.args.batch)),
        )

    def everything(self) -> None:
        """Stage 5: the whole model, averaged and saved."""
        self.slow.load_state_dict(self.model.state_dict())
        saved = time.time()

        def after(step: int) -> None:
            nonlocal saved
            average(self.slow, self.model, step)
            if time.time() - saved > 60 * self.args.save_minutes:
                self.save()
                saved = time.time()

        self.loop(
            "answer",
            self.args.steps,
            [self.model, self.reader],
            lambda step: self.answer(self.data.draw(self.args.batch)),
            after,
        )

    def answer(self, batch: Batch) -> tuple[Tensor, float]:
        """Loss of questions about images, with what keeps tower and projector from forgetting."""
        prefix = self.data.prefixes[batch.bucket.size]
        packed = self.data.ask(batch.owner, prefix, self.args.questions, True)
        hidden = self.model.model(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            pixel_values=batch.pixels,
            image_sizes=batch.sizes,
            use_cache=False,
        ).last_hidden_state
        found = losses(self.model, hidden, packed)
        features, _ = self.reader(batch)
        kept = self.args.vision_weight * (features + self.reader.named(batch))
        return self.weigh(found) + kept, found.right

    def weigh(self, found: Losses) -> Tensor:
        """Answers, and less of the questions."""
        weight: float = self.args.question_weight
        return found.answers + weight * found.questions

    def save(self) -> None:
        """Export the averaged model with its processor."""
        self.slow.save_pretrained(self.args.out / "model")
        self.processor.save_pretrained(self.args.out / "model")

    def checkpoint(self, stage: str) -> None:
        """Keep what a stage has reached, so that the next ones can be repeated (`--start`)."""
        torch.save(
            {"model": self.model.state_dict(), "reader": self.reader.state_dict()},
            self.args.out / f"{stage}.pt",
        )

    def restore(self, stage: str) -> None:
        """Go on from a stage."""
        state = torch.load(self.args.out / f"{stage}.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.reader.load_state_dict(state["reader"])


STAGES = {
    "see": Training.see,
    "read": Training.read,
    "negate": Training.negate,
    "connect": Training.connect,
    "everything": Training.everything,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for model and checkpoints")
    parser.add_argument("--see", type=int, default=500, help="steps of the vision tower alone")
    parser.add_argument("--read", type=int, default=1000, help="steps of the language model alone")
    parser.add_argument("--negate", type=int, default=600, help="more of them, with negations")
    parser.add_argument("--connect", type=int, default=200, help="steps of the projector alone")
    parser.add_argument("--steps", type=int, default=1600, help="steps of the whole model")
    parser.add_argument("--start", choices=STAGES, default="see", help="repeat from this stage on")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--questions", type=int, default=12, help="questions per image")
    parser.add_argument("--images", type=int, help="train on the first so many images only")
    parser.add_argument("--question-weight", type=float, default=0.3, help="of the questions' loss")
    parser.add_argument("--vision-weight", type=float, default=0.25, help="of the reader's loss")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    training, names = Training(args), list(STAGES)
    first = names.index(args.start)
    if first:
        training.restore(names[first - 1])
    for name in names[first:]:
        STAGES[name](training)
        training.checkpoint(name)
    training.save()


if __name__ == "__main__":
    main()
