"""Small random models of the real classes, their processors, and random images, for all tests.

Every size differs from every other (heads, widths, vocabulary, layers), norm weights are random and
the patch grid of a tile is odd: a test that passes here does not pass by coincidence of shapes.
"""

from __future__ import annotations

import atexit
import copy
import shutil
import string
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

IMAGE_TOKEN = "<image>"
VOCAB_SIZE = 113  # more rows than the tokenizer has tokens, as in the published checkpoints
# In tiles, (height, width): the shapes of llava-v1.6 and a wider one.
GRID = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (2, 3))
TEXTS = {
    "mistral": MistralConfig,
    "llama": LlamaConfig,
    "granite": GraniteConfig,
    "qwen2": Qwen2Config,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}[INST] "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %} [/INST]"
    "{% else %} {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}</s>"
    "{% endif %}{% endfor %}"
)


def tiny_llava_next(
    seed: int = 0, text: str = "mistral", **overrides: Any
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """A random float32 LLaVA-NeXT in eval mode and its processor; yours to change.

    Built once per set of arguments, then copied: what a test does to its copy (booting a bridge
    rewires a model) stays with that test.

    Args:
        seed: of the weights.
        text: language model, one of `TEXTS`.
        overrides: `image_size` and `patch_size` of a tile in pixels (12 and 4: 3×3 patches),
            `grid` (shapes in tiles), `vision` and `language` (dicts of configuration entries), and
            any entry of `LlavaNextConfig`.
    """
    return copy.deepcopy(_build(seed, text, _Frozen(overrides)))


def place_parts(
    native: LlavaNextForConditionalGeneration, here: str | int, elsewhere: str | int
) -> dict[str, str | int]:
    """A `device_map`: the projector and all blocks but the first lie elsewhere."""
    parts = ["vision_tower", "image_newline"]
    parts += [f"language_model.{part}" for part in ("embed_tokens", "norm", "rotary_emb")]
    blocks = len(native.model.language_model.layers)
    where: dict[str, str | int] = {
        f"model.language_model.layers.{k}": elsewhere if k else here for k in range(blocks)
    }
    where |= {f"model.{part}": here for part in parts} | {"lm_head": here}
    return {**where, "model.multi_modal_projector": elsewhere}


def tiny_tokenizer(
    padding_side: str = "left", image_token: str | None = IMAGE_TOKEN
) -> LlamaTokenizer:
    """One token for each character, loaded from a directory, so that it can be loaded again."""
    directory = _tokenizer_directory(image_token)
    tokenizer: LlamaTokenizer = LlamaTokenizer.from_pretrained(directory)
    tokenizer.padding_side = padding_side
    return tokenizer


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB image of uniform noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class _Frozen(dict[str, Any]):
    """Keyword arguments as a key of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@cache
def _directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def _tokenizer_directory(image_token: str | None = IMAGE_TOKEN) -> Path:
    characters = [c for c in string.printable if c.isprintable() and c != " "]
    vocab = ["<unk>", "<s>", "</s>", "<pad>", "▁", "\n", *characters]
    tokenizer = LlamaTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=[],
        pad_token="<pad>",
        add_bos_token=True,
        extra_special_tokens={"image_token": image_token} if image_token else {},
    )
    path = _directory() / f"tokenizer {bool(image_token)}"
    tokenizer.save_pretrained(path)
    return path


@cache
def _build(
    seed: int, text: str, overrides: _Frozen
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    entries = dict(overrides)
    size, patch = entries.pop("image_size", 12), entries.pop("patch_size", 4)
    grid = [[size * rows, size * cols] for rows, cols in entries.pop("grid", GRID)]
    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        **{
            "hidden_size": 20,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "intermediate_size": 36,
            "projection_dim": 14,
            "image_size": size,
            "patch_size": patch,
        }
        | entries.pop("vision", {})
    )
    language = TEXTS[text](
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "intermediate_size": 44,
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | entries.pop("language", {})
    )
    config = LlavaNextConfig(
        **{
            "vision_config": vision,
            "text_config": language,
            "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            "image_grid_pinpoints": grid,
            "image_seq_length": (size // patch) ** 2,
            "architectures": ["LlavaNextForConditionalGeneration"],
        }
        | entries
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_grid_pinpoints=config.image_grid_pinpoints or grid,
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaNextForConditionalGeneration(config).float().eval()
        randomise(model)
    return model, processor


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Weights of a size at which every part matters; norms neither all one nor all zero."""
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
        elif "embed" in name:
            parameter.normal_()
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
