"""Train the demo model on easy-VQA: ``python -m mm_lens.demo.train --out runs/demo-model``.

1. The vision tower alone learns to name shape and colour (`Reader`, dropped afterwards): it
   takes minutes, and the whole model has something to look at from the first step.
2. The whole model learns to answer, from images on canvases of several aspect ratios, many
   questions per image packed into one sequence (`packing`), loss on the answer and its end only.
   The reader's loss stays on, at a small weight.

Weights are exported as a moving average. Test images are never touched.
"""

import argparse
import random
import time
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import easy_vqa
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from . import build, canvases
from .canvases import COLOURS, SHAPES, Bucket
from .packing import pack
from .prompts import prompt


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
        pairs = {pair for groups in self.questions.values() for g in groups for pair in g}
        self.turns = {pair: self._tokens(*pair) for pair in pairs}
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

    def _ask(self, owner: int) -> tuple[str, str]:
        # Evenly over the groups: nine in ten yes/no questions of easy-VQA ask for what is not
        # there, and answering them without a look is a plateau to get stuck on.
        return self.rng.choice(self.rng.choice(self.questions[owner]))

    def inputs(self, batch: Batch, n_questions: int) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs with `n_questions` packed behind each image, and the labels."""
        turns = [
            [self.turns[self._ask(owner)] for _ in range(n_questions)] for owner in batch.owner
        ]
        prefix = self.prefixes[batch.bucket.size]
        pad = self.processor.tokenizer.pad_token_id
        packed = pack([prefix] * len(turns), turns, pad)
        inputs = {
            "input_ids": packed.input_ids,
            "position_ids": packed.position_ids,
            "attention_mask": packed.attention_mask,
            "pixel_values": batch.pixels,
            "image_sizes": batch.sizes,
        }
        return {k: v.to(self.device) for k, v in inputs.items()}, packed.labels.to(self.device)


def answer_loss(
    model: LlavaNextForConditionalGeneration, inputs: dict[str, Tensor], labels: Tensor
) -> tuple[Float[Tensor, ""], float]:
    """Cross-entropy where an answer follows, and the share of answers ranked first."""
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    asked = labels != -100
    logits, targets = model.lm_head(hidden[asked]), labels[asked]
    words = targets != model.generation_config.eos_token_id
    right = (logits.argmax(-1) == targets)[words].float().mean().item()
    return cross_entropy(logits, targets), right


def rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then cosine down to 2 % of `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1 + cos(pi * done)))


def optimiser(weights: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    return torch.optim.AdamW(
        [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )


def descend(
    loss: Tensor, step: torch.optim.Optimizer, parameters: list[nn.Parameter], lr: float
) -> None:
    """One clipped optimiser step at learning rate `lr`."""
    for group in step.param_groups:
        group["lr"] = lr
    step.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    step.step()


class Reader(nn.Module):
    """Names shape and colour from image features, pooled by maximum and by attention.

    Only for training. Without it the tower forgets the shapes it has learnt before the language
    model asks for them: colours alone answer more questions at first.
    """

    def __init__(self, model: LlavaNextForConditionalGeneration) -> None:
        super().__init__()
        tower = model.model.vision_tower
        width, names = tower.config.hidden_size, len(SHAPES) + len(COLOURS)
        self.score = nn.Linear(width, 1)
        self.heads = nn.ModuleList([nn.Linear(width, names), nn.Linear(width, names)])
        self.known = canvases.kinds()
        self.features = torch.empty(0)
        layer = tower.encoder.layers[model.config.vision_feature_layer]
        layer.register_forward_hook(self._remember)

    def _remember(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self.features = output[:, 1:]

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], float]:
        """Loss on the features of the last forward pass, and the share of shapes named right."""
        told = torch.tensor([owner in self.known for owner in batch.owner])
        names = [self.known[owner] for owner in batch.owner if owner in self.known]
        shape = torch.tensor([SHAPES.index(s) for s, _ in names], device=self.features.device)
        colour = torch.tensor([COLOURS.index(c) for _, c in names], device=self.features.device)
        tokens = self.features.unflatten(0, batch.pixels.shape[:2]).flatten(1, 2)[told]
        pooled = tokens.amax(1), (self.score(tokens).softmax(1) * tokens).sum(1)
        loss, right = torch.zeros((), device=tokens.device), 0.0
        for head, features in zip(self.heads, pooled, strict=True):
            shapes, colours = head(features).split([len(SHAPES), len(COLOURS)], -1)
            loss = loss + cross_entropy(shapes, shape) + cross_entropy(colours, colour)
            right += (shapes.argmax(-1) == shape).float().mean().item() / len(pooled)
        return loss, right


def warm_up_vision(
    model: LlavaNextForConditionalGeneration,
    reader: Reader,
    data: Data,
    steps: int,
    batch: int,
    lr: float,
) -> None:
    """Teach the vision tower shape and colour before anything else."""
    parameters = [*model.model.vision_tower.parameters(), *reader.parameters()]
    optimizer = optimiser(parameters)
    for step in range(steps):
        drawn = data.draw(batch)
        model.model.vision_tower(drawn.pixels.flatten(0, 1))
        loss, right = reader(drawn)
        descend(loss, optimizer, parameters, rate(step, steps, 50, lr))
        if step % 25 == 0 or step == steps - 1:
            print(f"vision {step} loss {loss:.3f} shapes {right:.2f}", flush=True)


@torch.no_grad()
def average(slow: nn.Module, fast: nn.Module, step: int) -> None:
    """Exponential moving average of the weights, with a short memory at first."""
    keep = min(0.998, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - keep)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for model and checkpoint")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--vision-steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--questions", type=int, default=12, help="questions per image")
    parser.add_argument("--images", type=int, help="train on the first so many images only")
    parser.add_argument("--vision-weight", type=float, default=0.25, help="of the reader's loss")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device, started = torch.device(args.device), time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"

    asked, answers, _ = easy_vqa.get_train_questions()
    corpus = [f"[INST] <image>\n{q} [/INST] {a}" for q, a in zip(asked, answers, strict=True)]
    processor = build.processor(build.tokenizer(corpus))
    model = LlavaNextForConditionalGeneration(build.config(processor.tokenizer))
    nn.Module.to(model, device)
    cache = args.out / "canvases.pt"
    buckets = canvases.pool(processor, limit=args.images, seed=args.seed, cache=cache)
    data = Data(processor, buckets, args.seed, device)
    step, spent = 0, 0.0
    slow, reader = deepcopy(model), Reader(model).to(device)
    parameters = [*model.parameters(), *reader.parameters()]
    optimizer = optimiser(parameters)
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        slow.load_state_dict(state["slow"])
        reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        data = Data(processor, buckets, args.seed + step, device)
    else:
        warm_up_vision(model, reader, data, args.vision_steps, 2 * args.batch, args.lr)
        slow.load_state_dict(model.state_dict())

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "slow": slow.state_dict(),
            "reader": reader.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": spent + time.time() - started,
        }
        torch.save(state, checkpoint)
        slow.save_pretrained(args.out / "model")
        processor.save_pretrained(args.out / "model")

    saved, sums = time.time(), torch.zeros(3)
    while step < args.steps:
        batch = data.draw(args.batch)
        loss, right = answer_loss(model, *data.inputs(batch, args.questions))
        extra, shapes = reader(batch)
        lr = rate(step, args.steps, 100, args.lr)
        descend(loss + args.vision_weight * extra, optimizer, parameters, lr)
        step += 1
        average(slow, model, step)
        sums += torch.tensor([loss.item(), right, shapes])
        if step % 25 == 0:
            minutes = (spent + time.time() - started) / 60
            means = "loss {:.4f} accuracy {:.4f} shapes {:.2f}".format(*(sums / 25).tolist())
            print(f"step {step} {means} minutes {minutes:.1f}", flush=True)
            sums.zero_()
        if time.time() - saved > 60 * args.save_minutes:
            save()
            saved = time.time()
    save()


if __name__ == "__main__":
    main()
