"""Train the demo model on easy-VQA: ``python -m mm_lens.demo.train --out runs/demo-model``.

1. The vision tower alone learns to name shape and colour (two linear heads on max-pooled
   features, dropped afterwards): it takes minutes, and the whole model leaves its plateau at once.
2. The whole model learns to answer, from images on canvases of several aspect ratios, many
   questions per image packed into one sequence (`packing`), loss on the answer and its end only.

Weights are exported as a moving average. Test images are never touched.
"""

import argparse
import random
import time
from collections.abc import Iterator
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
        self.turns = {pair: self._tokens(*pair) for pair in set().union(*self.questions.values())}
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

    def inputs(self, batch: Batch, n_questions: int) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs with `n_questions` packed behind each image, and the labels."""
        turns = [
            [self.turns[pair] for pair in self.rng.choices(self.questions[owner], k=n_questions)]
            for owner in batch.owner
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


def optimiser(parameters: Iterator[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    weights = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )


def descend(
    loss: Tensor, step: torch.optim.Optimizer, parameters: Iterator[nn.Parameter], lr: float
) -> None:
    """One clipped optimiser step at learning rate `lr`."""
    for group in step.param_groups:
        group["lr"] = lr
    step.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    step.step()


def warm_up_vision(
    model: LlavaNextForConditionalGeneration, data: Data, steps: int, batch: int, lr: float
) -> None:
    """Teach the vision tower shape and colour, read from max-pooled features of all tiles."""
    tower, width = model.model.vision_tower, model.model.vision_tower.config.hidden_size
    heads = nn.Linear(width, len(SHAPES) + len(COLOURS)).to(data.device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer, known = optimiser(iter(parameters)), canvases.kinds()
    for step in range(steps):
        drawn = data.draw(batch)
        tiles = drawn.pixels.flatten(0, 1)
        states = tower(tiles, output_hidden_states=True).hidden_states
        features = states[model.config.vision_feature_layer][:, 1:]
        pooled = features.unflatten(0, drawn.pixels.shape[:2]).amax((1, 2))
        told = torch.tensor([owner in known for owner in drawn.owner])
        names = [known[owner] for owner in drawn.owner if owner in known]
        shape = torch.tensor([SHAPES.index(s) for s, _ in names], device=data.device)
        colour = torch.tensor([COLOURS.index(c) for _, c in names], device=data.device)
        by_shape, by_colour = heads(pooled)[told].split([len(SHAPES), len(COLOURS)], -1)
        loss = cross_entropy(by_shape, shape) + cross_entropy(by_colour, colour)
        descend(loss, optimizer, iter(parameters), rate(step, steps, 50, lr))
        if step % 25 == 0 or step == steps - 1:
            shapes, colours = (
                (logits.argmax(-1) == truth).float().mean().item()
                for logits, truth in ((by_shape, shape), (by_colour, colour))
            )
            print(
                f"vision {step} loss {loss:.3f} shape {shapes:.2f} colour {colours:.2f}", flush=True
            )


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
    slow, optimizer = deepcopy(model), optimiser(model.parameters())
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        slow.load_state_dict(state["slow"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        data = Data(processor, buckets, args.seed + step, device)
    else:
        warm_up_vision(model, data, args.vision_steps, 2 * args.batch, args.lr)
        slow.load_state_dict(model.state_dict())

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "slow": slow.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": spent + time.time() - started,
        }
        torch.save(state, checkpoint)
        slow.save_pretrained(args.out / "model")
        processor.save_pretrained(args.out / "model")

    saved, losses, rights = time.time(), 0.0, 0.0
    while step < args.steps:
        loss, right = answer_loss(model, *data.inputs(data.draw(args.batch), args.questions))
        descend(loss, optimizer, model.parameters(), rate(step, args.steps, 200, args.lr))
        step += 1
        average(slow, model, step)
        losses, rights = losses + loss.item(), rights + right
        if step % 25 == 0:
            minutes = (spent + time.time() - started) / 60
            print(f"step {step} loss {losses / 25:.4f} accuracy {rights / 25:.4f} "
                  f"minutes {minutes:.1f}", flush=True)  # fmt: skip
            losses = rights = 0.0
        if time.time() - saved > 60 * args.save_minutes:
            save()
            saved = time.time()
    save()


if __name__ == "__main__":
    main()
