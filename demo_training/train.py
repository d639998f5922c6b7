"""Train the demo models on easy-VQA: `python -m demo_training.train --out runs/demo-models`.

First the parts, which every fusion starts from (`Pretraining`), then each fusion (`Fusing`), with
the same questions, the same number of steps and the same seeds, so that only the fusion differs.

A yes/no question has to be *compared* with the image, and from scratch nothing rewards that before
both sides are there: answers stay at chance for thousands of steps. So each part learns what it can
learn alone:

1. *see*: the vision tower learns to name shape and colour (`Reader`), from what each fusion shows.
2. *read*: the language model learns the questions, from pictures that are *described*: at some
   image positions the embeddings of the words for shape and colour are added.
3. *negate*: the same, with questions such as "is there not a red shape?".
4. *connect*: tower and connectors learn to put image tokens where those words lie (`Naming`),
   for a language model that is kept as it is.
5. *answer*: everything learns, from images on canvases of several aspect ratios, many questions
   packed behind each image (`packing`), loss on the answer, less on the question.

Weights are exported as a moving average. Test images are never touched.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import easy_vqa
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from demo_training import canvases, parts
from demo_training.batches import Pictures, Questions, tail
from demo_training.fusion import Fusion
from demo_training.fusions import FUSIONS
from demo_training.learning import (
    Losses,
    Naming,
    Reader,
    average,
    descend,
    losses,
    optimiser,
    rate,
    word_ids,
)
from demo_training.packing import Packed
from demo_training.parts import DEMO, Size

PARTS_FILE = "parts.pt"


class Training:
    """What all stages share: arguments, clock and loop."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.started = args, time.time()
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        random.seed(args.seed)

    def pictures(self, name: str, model: Fusion) -> Pictures:
        """Training images as a fusion shows them; made once and kept in the output folder."""
        cache = self.args.out / f"{name}.canvases.pt"
        args = self.args
        buckets = canvases.pool(model, args.copies, args.images, args.seed, cache)
        return Pictures(model, buckets, self.args.seed, self.device)

    def loop(
        self,
        name: str,
        steps: int,
        parameters: Sequence[nn.Parameter],
        peak: float,
        loss: Callable[[int], tuple[Tensor, float]],
        after: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Optimise for `steps` steps; `loss` gives a loss and a share of right answers."""
        trained, right = list(parameters), 0.0
        optimizer = optimiser(trained)
        for step in range(steps):
            total, share = loss(step)
            descend(total, optimizer, trained, rate(step, steps, 50, peak))
            after(step)
            right += share / 25
            if (step + 1) % 25 == 0:
                minutes = (time.time() - self.started) / 60
                print(
                    f"{name} {step + 1} loss {total.item():.3f} right {right:.3f} "
                    f"minutes {minutes:.1f} of which computing {time.process_time() / 60:.1f}",
                    flush=True,
                )
                right = 0.0

    def weigh(self, found: Losses) -> Tensor:
        """Answers, and less of the questions."""
        weight: float = self.args.question_weight
        return found.answers + weight * found.questions


class Pretraining(Training):
    """Tower and language model, each alone."""

    def __init__(self, args: argparse.Namespace, size: Size = DEMO) -> None:
        super().__init__(args)
        self.tokenizer, self.size = tokenizer(), size
        self.parts = parts.Parts(self.tokenizer, size).to(self.device)
        self.reader = Reader(self.parts.tower).to(self.device)

    def run(self) -> None:
        """All stages; the result goes to `PARTS_FILE`."""
        self.see()
        questions = Questions(self.tokenizer, " [/INST]", self.args.seed, self.device)
        self.language("read", self.args.read, questions, negations=False)
        self.language("negate", self.args.negate, questions, negations=True)
        state = {"parts": self.parts.state_dict(), "reader": self.reader.state_dict()}
        torch.save(state, self.args.out / PARTS_FILE)

    def see(self) -> None:
        """Stage 1: the vision tower, on what each fusion shows in turn."""
        shown = [
            self.pictures(name, FUSIONS[name](deepcopy(self.tokenizer), self.size))
            for name in sorted(FUSIONS)
        ]

        def loss(step: int) -> tuple[Tensor, float]:
            batch = shown[step % len(shown)].draw(4 * self.args.batch)
            self.parts.tower(rearrange(batch.pixels, "image tile ... -> (image tile) ..."))
            named: tuple[Tensor, float] = self.reader(batch)
            return named

        trained = [*self.parts.tower.parameters(), *self.reader.parameters()]
        self.loop("see", self.args.see, trained, self.args.lr, loss)

    def language(self, name: str, steps: int, questions: Questions, negations: bool) -> None:
        """Stages 2 and 3: the language model, on described pictures."""
        model = self.parts.language

        def loss(step: int) -> tuple[Tensor, float]:
            owners, prefix = questions.described(self.args.batch)
            packed = questions.ask(owners, prefix, self.args.questions, negations)
            hidden = model.model(
                inputs_embeds=self.describe(packed, owners),
                attention_mask=packed.attention_mask,
                position_ids=packed.position_ids,
                use_cache=False,
            ).last_hidden_state
            found = losses(model.lm_head, self.tokenizer.eos_token_id, hidden, packed)
            return self.weigh(found), found.right

        self.loop(name, steps, list(model.parameters()), self.args.lr, loss)

    def describe(self, packed: Packed, owners: list[int]) -> Float[Tensor, "batch pos d"]:
        """Embeddings in which a few image positions say shape and colour."""
        table, known = self.parts.language.get_input_embeddings(), canvases.kinds()
        embeds: Tensor = table(packed.input_ids)
        words = word_ids(self.tokenizer).to(self.device)
        said = torch.zeros_like(embeds)
        for b, owner in enumerate(owners):
            image = (packed.input_ids[b] == self.tokenizer.unk_token_id).nonzero().squeeze(1)
            chosen = torch.randperm(len(image))[: random.randint(2, 12)]
            names = [(canvases.SHAPES + canvases.COLOURS).index(word) for word in known[owner]]
            said[b, image[chosen]] = table(words[names]).sum(0)
        return embeds + said


class Fusing(Training):
    """One fusion of the pretrained parts."""

    def __init__(self, args: argparse.Namespace, name: str, size: Size = DEMO) -> None:
        super().__init__(args)
        self.name, base = name, tokenizer()
        state = torch.load(args.out / PARTS_FILE, weights_only=True)
        pretrained = parts.Parts(base, size)
        pretrained.load_state_dict(state["parts"])
        self.fusion = FUSIONS[name](base, size)
        self.fusion.adopt(pretrained)
        if args.again:
            model_class = type(self.fusion.model)
            self.fusion.model = model_class.from_pretrained(args.out / name)
        self.model = self.fusion.model.to(self.device)
        self.slow = deepcopy(self.model)
        processor = self.fusion.processor
        self.reader = Reader(self.model.model.vision_tower)
        self.reader.load_state_dict(state["reader"])
        self.naming = Naming(
            self.model.model.multi_modal_projector,
            self.model.get_input_embeddings(),
            processor.tokenizer,
        )
        self.shown = self.pictures(name, self.fusion)
        self.questions = Questions(processor.tokenizer, tail(self.fusion), args.seed, self.device)

    def run(self) -> None:
        """Stages 4 and 5; the averaged model goes to the output folder."""
        self.model.train()
        tower, reader = self.model.model.vision_tower, [*self.reader.parameters()]
        self.watch("joined", 0)
        if not self.args.again:
            connected = [*self.fusion.connectors(), *tower.parameters(), *reader]
            self.loop("connect", self.args.connect, connected, self.args.lr, self.answer)
        self.slow.load_state_dict(self.model.state_dict())

        self.watch("connected", 0)

        def after(step: int) -> None:
            average(self.slow, self.model, step)
            self.watch("answering", step + 1)

        everything = [*self.model.parameters(), *reader]
        self.loop("answer", self.args.answer, everything, self.args.lr_all, self.answer, after)
        self.slow.eval().save_pretrained(self.args.out / self.name)
        self.fusion.processor.save_pretrained(self.args.out / self.name)

    def watch(self, stage: str, step: int) -> None:
        """Called where a checkpoint can be made: parts joined; connected; after each last step.

        What would be exported then is `slow`.
        """

    def answer(self, step: int) -> tuple[Tensor, float]:
        """Loss of questions about images, with what keeps the tower from forgetting."""
        batch = self.shown.draw(self.args.batch)
        height, width = batch.sizes[0].tolist()
        prefix = self.shown.prefix((height, width))
        packed = self.questions.ask(batch.owner, prefix, self.args.questions, True)
        hidden = self.model.model(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            pixel_values=self.fusion.native(batch.pixels),
            image_sizes=batch.sizes,
            use_cache=False,
        ).last_hidden_state
        eos = self.fusion.processor.tokenizer.eos_token_id
        found = losses(self.model.lm_head, eos, hidden, packed)
        features, _ = self.reader(batch)
        kept = self.args.vision_weight * (features + self.naming(batch))
        return self.weigh(found) + kept, found.right


def tokenizer() -> PreTrainedTokenizerFast:
    """The language model's, made from the questions and answers of the train split."""
    asked, answers, _ = easy_vqa.get_train_questions()
    return parts.tokenizer(f"[INST] {q} [/INST] {a}" for q, a in zip(asked, answers, strict=True))


def options() -> argparse.ArgumentParser:
    """What training can be told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(FUSIONS)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    parser.add_argument(
        "--only", choices=["parts", *known], nargs="+", default=["parts", *known], help="do these"
    )
    parser.add_argument("--see", type=int, default=500, help="steps of the vision tower alone")
    parser.add_argument("--read", type=int, default=1000, help="steps of the language model alone")
    parser.add_argument("--negate", type=int, default=600, help="more of them, with negations")
    parser.add_argument("--connect", type=int, default=400, help="steps of tower and connectors")
    parser.add_argument("--answer", type=int, default=800, help="steps of the whole model")
    parser.add_argument(
        "--again", action="store_true", help="another round of the last stage, from what it left"
    )
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--questions", type=int, default=12, help="questions per image")
    parser.add_argument("--images", type=int, help="train on the first so many images only")
    parser.add_argument("--copies", type=int, default=3, help="canvases per image")
    parser.add_argument("--question-weight", type=float, default=0.1, help="of the questions' loss")
    parser.add_argument("--vision-weight", type=float, default=0.5, help="of reader and naming")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak, where parts are trained")
    parser.add_argument("--lr-all", type=float, default=3e-4, help="peak, where all is trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main() -> None:
    """Command line."""
    args = options().parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        if name == "parts":
            Pretraining(args).run()
        else:
            Fusing(args, name).run()


if __name__ == "__main__":
    main()
