"""OmniFusion as published: its pipeline by hand from plain parts, and its files, in miniature.

The pipeline (README of AIRI-Institute/OmniFusion) is the oracle of the tests: nothing of mm_lens or
of its model classes is in it. The files have the published names, formats and module path.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import VOCAB_SIZE, randomise, tiny_tokenizer
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, MistralConfig, MistralForCausalLM

SIDE, PATCH, HEADS, FEEDFORWARD = 20, 4, 5, 28
MARKERS = ("SOI", "EOI", "USER", "BOT")
PROMPT = "This is a dialog with AI assistant.\n"

# The published call, but for what follows from the tokenizer.
PUBLISHED = {
    "do_sample": False,
    "max_new_tokens": 50,
    "early_stopping": True,
    "num_beams": 3,
    "repetition_penalty": 1.0,
    "remove_invalid_values": True,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "forced_eos_token_id": 2,
    "use_cache": True,
    "no_repeat_ngram_size": 4,
    "num_return_sequences": 1,
}


@dataclass
class Parts:
    """What the published script has in its hands."""

    vision: CLIPVisionModel
    layer: nn.TransformerEncoderLayer
    linear: nn.Linear
    special: dict[str, Tensor]  # of MARKERS, each [d_model]
    language: MistralForCausalLM

    def to(self, dtype: torch.dtype) -> Parts:
        """All of them in one dtype."""
        for module in (self.vision, self.layer, self.linear, self.language):
            for parameter in module.parameters():  # rotary frequencies stay in float32
                parameter.data = parameter.data.to(dtype)
        self.special = {name: vector.to(dtype) for name, vector in self.special.items()}
        return self


def random_parts(seed: int = 0, **language: Any) -> Parts:
    """Random float32 parts in eval mode; `language` are entries of the `MistralConfig`."""
    vision = CLIPVisionConfig(
        hidden_size=20,
        num_attention_heads=2,
        num_hidden_layers=4,
        intermediate_size=36,
        projection_dim=14,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = MistralConfig(
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "intermediate_size": 44,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **language,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = Parts(
            CLIPVisionModel(vision).eval(),
            nn.TransformerEncoderLayer(20, HEADS, FEEDFORWARD, batch_first=True).eval(),
            nn.Linear(20, text.hidden_size).eval(),
            {name: torch.randn(text.hidden_size) for name in MARKERS},
            MistralForCausalLM(text).eval(),
        )
        for module in (parts.vision, parts.layer, parts.linear, parts.language):
            randomise(module)
    return parts


def parts_of(model: Any) -> Parts:
    """The parts of an OmniFusion model, as copies of the plain classes, found by weight names."""
    state, config = model.state_dict(), model.config

    def filled(module: Any, prefix: str, **more: Tensor) -> Any:
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        own.pop("embed_tokens.special", None)
        module.load_state_dict({**own, **more})
        return module.to(next(iter(state.values())).dtype).eval()

    width = config.vision_config.hidden_size
    layer = nn.TransformerEncoderLayer(
        width, config.projector_num_heads, config.projector_intermediate_size, batch_first=True
    )
    language = MistralForCausalLM(config.text_config).eval()
    filled(language.model, "model.language_model.")
    filled(language.lm_head, "lm_head.")
    special = state["model.language_model.embed_tokens.special"]
    return Parts(
        filled(CLIPVisionModel(config.vision_config), "model.vision_tower."),
        filled(layer, "model.multi_modal_projector.transformer_layer."),
        filled(
            nn.Linear(width, config.text_config.hidden_size), "model.multi_modal_projector.linear."
        ),
        dict(zip(MARKERS, special.clone(), strict=True)),
        language,
    )


def upstream_embeddings(
    parts: Parts, pixel_values: Tensor, prompt_ids: list[int], question_ids: list[int]
) -> Tensor:
    """Prompt, SOI, image, EOI, USER, question, BOT as embeddings [1, pos, d_model].

    Args:
        parts: the model.
        pixel_values: [1, 3, height, width].
        prompt_ids: of the prompt, without BOS.
        question_ids: of the question, without BOS.
    """
    table = parts.language.get_input_embeddings()
    features = parts.vision(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
    projected = parts.linear(parts.layer(features))
    mark = {name: vector[None, None] for name, vector in parts.special.items()}
    return torch.cat(
        [
            table(torch.tensor([prompt_ids])),
            mark["SOI"],
            projected,
            mark["EOI"],
            mark["USER"],
            table(torch.tensor([question_ids])),
            mark["BOT"],
        ],
        dim=1,
    )


@torch.no_grad()
def upstream_logits(
    parts: Parts, pixel_values: Tensor, prompt_ids: list[int], question_ids: list[int]
) -> Tensor:
    """Logits [1, pos, vocabulary] of the published pipeline; arguments of `upstream_embeddings`."""
    embeddings = upstream_embeddings(parts, pixel_values, prompt_ids, question_ids)
    logits: Tensor = parts.language(inputs_embeds=embeddings).logits
    return logits


@torch.no_grad()
def upstream_generate(
    parts: Parts,
    pixel_values: Tensor,
    prompt_ids: list[int],
    question_ids: list[int],
    **options: Any,
) -> list[int]:
    """New tokens of the published pipeline.

    `options` go to `generate`, e.g. `num_beams=3`; `**PUBLISHED` and `bad_words_ids` as published.
    """
    embeddings = upstream_embeddings(parts, pixel_values, prompt_ids, question_ids)
    tokens: Tensor = parts.language.generate(inputs_embeds=embeddings, **options)
    return list(tokens[0].tolist())


def write_upstream(
    directory: Path,
    parts: Parts,
    *,
    version: str = "OmniMistral-v1_1",
    shards: int = 3,
    binary: bool = False,
    index: bool = True,
    legacy: bool = False,
) -> Path:
    """Write the published files; returns the directory of the version.

    Args:
        directory: where the repository is to lie.
        parts: the model.
        version: name of the directory inside.
        shards: number of weight files.
        binary: `pytorch_model-*.bin` instead of safetensors.
        index: write the index of the shards.
        legacy: files of `torch.save` in the form of torch before 1.6, but for the projection.
    """
    root = directory / version
    model = root / "tuned-model"
    model.mkdir(parents=True)
    config = parts.language.config.to_dict()
    dtype = str(parts.language.dtype).removeprefix("torch.")
    config |= {"architectures": ["MistralForCausalLM"], "torch_dtype": dtype}
    (model / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.clone() for name, tensor in parts.language.state_dict().items()}
    write_weights(model, weights, shards=shards, binary=binary, index=index, legacy=legacy)
    tiny_tokenizer(image_token=None).save_pretrained(root / "tokenizer")
    write_projection(root / "projection.pt", parts)
    special = {name: vector.clone().requires_grad_() for name, vector in parts.special.items()}
    torch.save(special, root / "special_embeddings.pt", _use_new_zipfile_serialization=not legacy)
    (directory / "models.py").write_text("raise RuntimeError('models.py was imported')\n")
    return root


def write_weights(
    directory: Path,
    weights: dict[str, Tensor],
    *,
    shards: int,
    binary: bool = False,
    index: bool = True,
    legacy: bool = False,
) -> None:
    """A state dict as transformers saves it, in one file or several of about the same size."""
    stem, suffix = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    total, files, taken = sum(t.nbytes for t in weights.values()), [{}], 0
    for name, tensor in weights.items():
        if taken >= total * len(files) / shards:
            files.append({})
        files[-1][name] = tensor
        taken += tensor.nbytes
    where = {}
    for number, tensors in enumerate(files, 1):
        name = f"{stem}-{number:05d}-of-{len(files):05d}.{suffix}"
        name = f"{stem}.{suffix}" if len(files) == 1 else name
        where |= dict.fromkeys(tensors, name)
        if binary:
            torch.save(tensors, directory / name, _use_new_zipfile_serialization=not legacy)
        else:
            save_file(tensors, directory / name, metadata={"format": "pt"})
    if index and len(files) > 1:
        table = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(table))


def write_projection(path: Path, parts: Parts, *, legacy: bool = False, **attributes: Any) -> None:
    """`projection.pt`: a whole module of class `models.VisualToGPTMapping`, in training mode."""
    with models_module() as models:
        module = models.VisualToGPTMapping()
        module.transformer_layer, module.linear = parts.layer, parts.linear
        module.n_embeddings = (SIDE // PATCH) ** 2
        module.embedding_dim = parts.linear.out_features
        for name, value in attributes.items():
            setattr(module, name, value)
        module.train()
        torch.save(module, path, _use_new_zipfile_serialization=not legacy)
        module.eval()


@contextmanager
def models_module() -> Iterator[Any]:
    """A module called `models`, importable as long as the block lasts."""
    models: Any = types.ModuleType("models")
    mapping = type("VisualToGPTMapping", (nn.Module,), {"__module__": "models"})
    models.VisualToGPTMapping = mapping
    assert "models" not in sys.modules
    sys.modules["models"] = models
    try:
        yield models
    finally:
        del sys.modules["models"]


def write_tower(directory: Path, parts: Parts, *, binary: bool = True) -> Path:
    """The CLIP checkpoint whose vision tower OmniFusion takes: float32, text tower included."""
    directory.mkdir(parents=True)
    vision = parts.vision.config.to_dict()
    (directory / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": vision, "text_config": {}})
    )
    (directory / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": SIDE,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "size": SIDE,
            }
        )
    )
    weights = {f"vision_model.{k}": v.float() for k, v in parts.vision.state_dict().items()}
    weights |= {
        "vision_model.embeddings.position_ids": torch.arange(26)[None],
        "text_model.final_layer_norm.weight": torch.ones(8),
        "visual_projection.weight": torch.ones(14, 20),
        "text_projection.weight": torch.ones(14, 8),
        "logit_scale": torch.tensor(2.0),
    }
    write_weights(directory, weights, shards=1, binary=binary)
    return directory
