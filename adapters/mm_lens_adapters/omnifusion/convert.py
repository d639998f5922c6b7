"""From OmniFusion's published files to a transformers directory.

The layout: a Mistral checkpoint (`tuned-model/`) with its tokenizer (`tokenizer/`), and beside
them two files of `torch.save`: `projection.pt`, a pickled module, and `special_embeddings.pt`,
a dict of four vectors. The CLIP tower is not among them; it was never trained and is OpenAI's.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import CLIPVisionConfig, MistralConfig

from mm_lens.checkpoints import hub
from mm_lens.checkpoints.building import blame, check_entries, empty_model
from mm_lens.checkpoints.formats import CheckpointFormat
from mm_lens.checkpoints.shards import ConversionPlan, TensorSource, check_names
from mm_lens.checkpoints.weights import MemoryFile, names_of_weights, read_object, weight_files
from mm_lens.errors import MMLensError

from .configuration import OmniFusionConfig
from .generation import published_generation
from .modeling import OmniFusionForConditionalGeneration
from .projection import Projection, read_projection
from .published import TOKENIZER_FILES, read_processor, special_embeddings

VISION_TOWER = "openai/clip-vit-large-patch14-336"
SPECIAL = "special_embeddings.pt"
PROJECTION = "projection.pt"

# Buffers that older versions saved, and the parts of CLIP beside its vision tower.
_NOT_WEIGHTS = re.compile(r".*\.(rotary_emb\.inv_freq|position_ids)|(embeddings\.)?position_ids")
_CLIP_TEXT = re.compile(r"text_model\..*|(text|visual)_projection\.weight|logit_scale")


class OmniFusionFormat(CheckpointFormat):
    """The layout of AIRI-Institute/OmniFusion on the hub."""

    name: ClassVar[str] = "omnifusion"

    @classmethod
    def files(cls, available: Collection[str]) -> list[str]:
        """What a conversion needs; of several versions side by side, the last by name."""
        for file in sorted(available, reverse=True):
            root, slash, name = file.rpartition("/")
            if name != PROJECTION or "/" in root:
                continue
            inside = {
                path.removeprefix(root + slash) for path in available if path.startswith(root)
            }
            model = [p.removeprefix("tuned-model/") for p in inside if p.startswith("tuned-model/")]
            weights = names_of_weights(model)
            if SPECIAL in inside and "config.json" in model and weights:
                wanted = [
                    PROJECTION,
                    SPECIAL,
                    *(f"tuned-model/{name}" for name in ("config.json", *weights)),
                    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
                ]
                return [f"{root}{slash}{name}" for name in wanted if name in inside]
        return []

    @classmethod
    def plan(cls, source: Path, *, vision_tower: str | None) -> ConversionPlan:
        """Read all that is small, and find out what lies where."""
        root = _root(source)
        tower = _tower(vision_tower or VISION_TOWER)
        with blame(root / PROJECTION):
            projection = read_projection(root / PROJECTION)
        files = root / "tuned-model" / "config.json", tower / "config.json"
        config = build_config(read_object(files[0]), read_object(files[1]), projection, files=files)
        with blame(root / SPECIAL):
            special = special_embeddings(root / SPECIAL)
        parts = [
            *_tower_parts(tower),
            TensorSource(
                MemoryFile(root / PROJECTION, projection.tensors),
                {f"model.multi_modal_projector.{name}": name for name in projection.tensors},
            ),
            TensorSource(special, {"model.language_model.embed_tokens.special": "special"}),
            *_language_parts(root / "tuned-model"),
        ]
        with empty_model(f"{files[0]} with {files[1]}"):
            expected = shapes(config)
        check_names(ConversionPlan(parts, expected, {}, lambda out, dtype: None))
        # After it: now there is a row for each token that the configuration names.
        processor = read_processor(root / "tokenizer", tower, config)
        sources = {
            **{f"tower/{p.relative_to(tower)}": p for p in _read(tower, parts)},
            **{str(p.relative_to(root)): p for p in _read(root, parts)},
        }

        def write_rest(out: Path, dtype: torch.dtype) -> None:
            config.dtype = dtype
            config.save_pretrained(out)
            processor.save_pretrained(out)
            published_generation(processor.tokenizer).save_pretrained(out)

        return ConversionPlan(parts, expected, sources, write_rest)


def shapes(config: OmniFusionConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's weights, without making any."""
    with torch.device("meta"):
        model = OmniFusionForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def build_config(
    text: dict[str, Any],
    vision: dict[str, Any],
    projection: Projection,
    *,
    files: tuple[str | Path, str | Path] = ("tuned-model", "The vision tower"),
) -> OmniFusionConfig:
    """The configuration of the whole from those of its parts.

    Args:
        text: of the language model, as its `config.json` has it.
        vision: of CLIP or of its vision tower alone.
        projection: the projection between them.
        files: where the first two come from, for messages.

    Raises:
        MMLensError: they are of another kind, or do not fit together.
    """
    if text.get("model_type") != "mistral":
        raise MMLensError(
            f"tuned-model is of type {text.get('model_type')!r}, not mistral as OmniFusion 1.1 is."
        )
    if vision.get("model_type") == "clip":
        vision = vision.get("vision_config") or {}
    elif vision.get("model_type") != "clip_vision_model":
        raise MMLensError(
            f"The vision tower is of type {vision.get('model_type')!r}, not clip. OmniFusion 1.1 "
            f"was trained with {VISION_TOWER}."
        )
    for entries, file in zip((text, vision), files, strict=True):
        check_entries(entries, str(file))
    with blame(files[1]):
        tower = CLIPVisionConfig(**_plain(vision))
        given = _patches(tower), tower.hidden_size
    with blame(files[0]):
        language = MistralConfig(**_plain(text))
    taken = projection.n_tokens or given[0], projection.d_vision
    if given != taken:
        raise MMLensError(
            f"The vision tower gives {given[0]} patches of width {given[1]}, but the projection "
            f"takes {taken[0]} of width {taken[1]}: it was trained with another tower. Name that "
            f"one (--vision-tower; published: {VISION_TOWER})."
        )
    with blame(f"{files[0]} with {files[1]}"):
        return OmniFusionConfig(
            vision_config=tower,
            text_config=language,
            projector_num_heads=projection.num_heads,
            projector_intermediate_size=projection.d_feedforward,
            image_seq_length=given[0],
            architectures=[OmniFusionForConditionalGeneration.__name__],
        )


def _patches(tower: Any) -> int:
    return int(tower.image_size // tower.patch_size) ** 2


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what would name code or a place to load from."""
    drop = ("auto_map", "_name_or_path", "architectures", "model_type", "torch_dtype", "dtype")
    return {key: value for key, value in config.items() if key not in drop}


def _root(source: Path) -> Path:
    """Where in the directory the layout begins."""
    if not source.is_dir():
        raise MMLensError(f"{source} is not a directory.")
    names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    files = OmniFusionFormat.files(names)
    if files:
        return (source / files[0]).parent
    roots = sorted({p.parent for p in source.rglob("tuned-model") if p.is_dir()}, reverse=True)
    root = roots[0] if roots else source
    wanted = (PROJECTION, SPECIAL, "tuned-model/config.json", "tokenizer")
    missing = [name for name in wanted if not (root / name).exists()]
    raise MMLensError(
        f"{root} is not a complete OmniFusion checkpoint: {', '.join(missing) or 'its weights'} "
        "missing. See docs/omnifusion.md for the layout."
    )


def _tower(name: str) -> Path:
    """A directory with the CLIP tower."""
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MMLensError(f"The vision tower {name} is not there. Name a directory or a hub id.")
    small = ("config.json", "preprocessor_config.json")
    try:
        return hub.fetch(name, lambda n: [*(f for f in n if f in small), *names_of_weights(n)])
    except MMLensError as error:
        raise MMLensError(f"The vision tower (--vision-tower) cannot be had: {error}") from error


def _tower_parts(tower: Path) -> list[TensorSource]:
    parts = []
    for file in weight_files(tower):
        names = {
            f"model.vision_tower.{name.removeprefix('vision_model.')}": name
            for name in file.specs
            if not _NOT_WEIGHTS.fullmatch(name) and not _CLIP_TEXT.fullmatch(name)
        }
        parts.append(TensorSource(file, names, foreign=True))
    return parts


def _language_parts(model: Path) -> list[TensorSource]:
    def renamed(name: str) -> str:
        return re.sub(r"^model\.", "model.language_model.", name)

    return [
        TensorSource(file, {renamed(n): n for n in file.specs if not _NOT_WEIGHTS.fullmatch(n)})
        for file in weight_files(model)
    ]


def _read(directory: Path, parts: list[TensorSource]) -> list[Path]:
    """The files of a directory that a conversion reads."""
    weights = [part.file.path for part in parts if part.file.path.is_relative_to(directory)]
    small = [directory / name for name in ("config.json", "preprocessor_config.json")]
    small += [directory / "tuned-model" / "config.json"]
    small += [directory / "tokenizer" / name for name in TOKENIZER_FILES]
    return [*weights, *(path for path in small if path.is_file())]
