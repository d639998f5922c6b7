"""The tools of training: losses, optimiser, learning rate, averaging."""

from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPVisionModel

from demo_training import canvases
from demo_training.batches import Batch
from demo_training.canvases import COLOURS, SHAPES
from demo_training.packing import Packed
from demo_training.parts import FEATURE_LAYER


@dataclass(frozen=True)
class Losses:
    """Cross-entropy of the answers and of the questions, and the share of answers ranked first.

    Questions often name what the image shows, so that guessing their words makes them look at it;
    a yes/no answer has to compare the two.
    """

    answers: Float[Tensor, ""]
    questions: Float[Tensor, ""]
    right: float


def losses(
    lm_head: nn.Linear, eos_id: int, hidden: Float[Tensor, "batch pos d"], packed: Packed
) -> Losses:
    """How well the final hidden states predict questions and answers."""
    answered, asked = packed.labels != -100, packed.question_labels != -100
    asked &= packed.question_labels < lm_head.out_features  # a family's own markers
    logits, targets = lm_head(hidden[answered]), packed.labels[answered]
    words = targets != eos_id
    right = (logits.argmax(-1) == targets)[words].float().mean().item()
    guesses = cross_entropy(lm_head(hidden[asked]), packed.question_labels[asked])
    return Losses(cross_entropy(logits, targets), guesses, right)


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


@torch.no_grad()
def average(slow: nn.Module, fast: nn.Module, step: int) -> None:
    """Exponential moving average of the weights, with a short memory at first."""
    keep = min(0.998, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - keep)


def join_tiles(
    tokens: Float[Tensor, "tile token d"], batch: Batch
) -> Float[Tensor, "image token d"]:
    """The tokens of all tiles of an image in one row, for every image of the batch."""
    images = len(batch.pixels)
    return rearrange(tokens, "(image tile) token d -> image (tile token) d", image=images)


class Reader(nn.Module):
    """Names shape and colour from the tower's features, pooled by maximum and by attention.

    Only for training. Without it the tower forgets the shapes it has learnt before the language
    model asks for them: colours alone answer more questions at first.
    """

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        width, names = tower.config.hidden_size, len(SHAPES) + len(COLOURS)
        self.score = nn.Linear(width, 1)
        self.heads = nn.ModuleList([nn.Linear(width, names), nn.Linear(width, names)])
        self.features = torch.empty(0)
        tower.encoder.layers[FEATURE_LAYER].register_forward_hook(self._remember)

    def _remember(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self.features = output[:, 1:]

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], float]:
        """Loss on the features of the last forward pass, and the share of shapes named right."""
        told, shape, colour = truth(batch)
        tokens = join_tiles(self.features, batch)[told]
        pooled = tokens.amax(1), (self.score(tokens).softmax(1) * tokens).sum(1)
        loss, right = torch.zeros((), device=tokens.device), 0.0
        for head, features in zip(self.heads, pooled, strict=True):
            shapes, colours = head(features).split([len(SHAPES), len(COLOURS)], -1)
            loss = loss + cross_entropy(shapes, shape) + cross_entropy(colours, colour)
            right += (shapes.argmax(-1) == shape).float().mean().item() / len(pooled)
        return loss, right


class Naming:
    """Loss of naming shape and colour by the nearest word among the image tokens.

    The similarity of the most similar image token to the word's own input embedding is the score:
    an image token comes to lie where the words for what it shows lie, so that a question's word
    can find it.
    """

    def __init__(self, projector: nn.Module, words: nn.Embedding, tokenizer: Any) -> None:
        self.words, self.ids, self.projected = words, word_ids(tokenizer), torch.empty(0)
        projector.register_forward_hook(self._remember)

    def _remember(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self.projected = output

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """Loss on the image tokens of the last forward pass."""
        told, shape, colour = truth(batch)
        tokens = join_tiles(self.projected, batch)[told]
        words = self.words(self.ids.to(tokens.device))
        scores = 10 * (normalize(tokens, dim=-1) @ normalize(words, dim=-1).T).amax(1)
        shapes, colours = scores.split([len(SHAPES), len(COLOURS)], -1)
        return cross_entropy(shapes, shape) + cross_entropy(colours, colour)


def word_ids(tokenizer: Any) -> Int[Tensor, " word"]:
    """Token id of the word for each shape, then for each colour."""
    ids = [tokenizer(f" {w}", add_special_tokens=False).input_ids for w in SHAPES + COLOURS]
    return torch.tensor([word[0] for word in ids])


def truth(
    batch: Batch,
) -> tuple[Bool[Tensor, " image"], Int[Tensor, " told"], Int[Tensor, " told"]]:
    """Of which images shape and colour are known, and these two as numbers."""
    known, device = canvases.kinds(), batch.pixels.device
    told = torch.tensor([owner in known for owner in batch.owner], device=device)
    names = [known[owner] for owner in batch.owner if owner in known]
    shape = torch.tensor([SHAPES.index(s) for s, _ in names], device=device, dtype=torch.long)
    colour = torch.tensor([COLOURS.index(c) for _, c in names], device=device, dtype=torch.long)
    return told, shape, colour
