"""The small files of a published OmniFusion: its four vectors, its tokenizer, CLIP's preprocessing.

They are data and are read as data: no class that a file names is imported.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers.normalizers import Prepend, Replace, Sequence
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mm_lens._storage.texts import MAX_JSON
from mm_lens.checkpoints import pickles
from mm_lens.checkpoints.building import blame
from mm_lens.checkpoints.weights import MemoryFile, read_object
from mm_lens.errors import MMLensError

from .configuration import MARKERS, OmniFusionConfig
from .processing import OmniFusionProcessor, add_markers

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_PROBES = ("This is a dialog with AI assistant.\n", "  What colour  is it? ", "Ж 你好 🙂\t1,5 ")
# Nothing else of a tokenizer's configuration is read, least of all `auto_map`, the name of a class
# in a Python file beside it.
_TOKENIZER_OPTIONS = (
    "add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens "
    "bos_token clean_up_tokenization_spaces eos_token legacy model_max_length pad_token unk_token"
)


def special_embeddings(path: Path) -> MemoryFile:
    """The vectors of `MARKERS`, stacked, as the tensor "special" [4, d_model].

    Raises:
        MMLensError: the file is missing, damaged or unsafe, or holds something else.
    """
    tensors = pickles.read_tensors(path)
    names = [marker.strip("<>") for marker in MARKERS]
    if set(tensors) != set(names):
        raise MMLensError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'} instead of {', '.join(names)}."
        )
    rows = [tensors[name] for name in names]
    if len({(row.shape, row.dtype) for row in rows}) > 1 or rows[0].ndim != 1:
        listed = ", ".join(
            f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}" for name in names
        )
        raise MMLensError(f"{path} holds {listed} instead of four vectors of one length and dtype.")
    return MemoryFile(path, {"special": torch.stack(rows)})


def read_processor(directory: Path, tower: Path, config: OmniFusionConfig) -> OmniFusionProcessor:
    """The processor of a tokenizer's directory and of CLIP's image preprocessing.

    Raises:
        MMLensError: a file is missing or damaged, or they do not fit the configuration.
    """
    preprocessing = tower / "preprocessor_config.json"
    settings = read_object(preprocessing)
    keys = (
        "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize "
        "image_mean image_std do_convert_rgb"
    )
    vision: Any = config.vision_config
    text: Any = config.text_config
    side = vision.image_size
    with blame(preprocessing):
        images = CLIPImageProcessorPil(**{k: settings[k] for k in keys.split() if k in settings})
        crop = images.crop_size["height"], images.crop_size["width"]
    if crop != (side, side):
        raise MMLensError(
            f"{preprocessing} crops to {crop[0]}×{crop[1]} pixels, the tower takes {side}×{side}. "
            "They are not of one checkpoint."
        )
    with blame(directory):
        tokenizer = _tokenizer(directory)
        try:
            add_markers(tokenizer, text.vocab_size)
        except ValueError as error:
            raise MMLensError(f"{directory}: {error}") from error
    with blame(preprocessing):
        made: OmniFusionProcessor = OmniFusionProcessor(
            images, tokenizer, patch_size=vision.patch_size
        )
    return made


def _tokenizer(directory: Path) -> Any:
    """The tokenizer, from copies of its data files with nothing in them that names code."""
    with tempfile.TemporaryDirectory(prefix="mm_lens_tokenizer_") as copy:
        for name in TOKENIZER_FILES:
            if (directory / name).is_file():
                _check_small(directory / name)
                (Path(copy) / name).write_bytes((directory / name).read_bytes())
        present = {path.name for path in Path(copy).iterdir()}
        if not present & {"tokenizer.json", "tokenizer.model"}:
            raise MMLensError(f"{directory} holds neither tokenizer.json nor tokenizer.model.")
        if "tokenizer_config.json" in present:
            settings = read_object(directory / "tokenizer_config.json")
            kept = {k: v for k, v in settings.items() if k in _TOKENIZER_OPTIONS.split()}
            (Path(copy) / "tokenizer_config.json").write_text(json.dumps(kept), "utf-8")
        try:
            tokenizer = LlamaTokenizer.from_pretrained(copy, local_files_only=True)
        except Exception as error:  # several libraries read these, each failing in its own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MMLensError(f"{directory}: the tokenizer cannot be read: {reason}.") from error
        if "tokenizer.model" in present:
            tokenizer = _as_sentencepiece(tokenizer, directory / "tokenizer.model")
        tokenizer.name_or_path = ""
        tokenizer.init_kwargs.pop("name_or_path", None)
        return tokenizer


def _check_small(file: Path) -> None:
    """Refuse what is no JSON object, or larger than any tokenizer."""
    if file.suffix == ".json":
        read_object(file)
    elif file.stat().st_size > MAX_JSON:
        raise MMLensError(
            f"{file} has {file.stat().st_size:,} bytes, more than the {MAX_JSON:,} of any "
            "tokenizer. Fetch it again."
        )


def _as_sentencepiece(tokenizer: Any, model: Path) -> Any:
    """The tokenizer with SentencePiece's treatment of spaces, which the pipeline was trained with.

    transformers 5 puts no space in front of a text that begins with one; SentencePiece does.
    """
    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    backend.pre_tokenizer = None
    names = ("bos_token", "eos_token", "unk_token")
    exact = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        **{name: getattr(tokenizer, name) for name in names},
    )
    with blame(model):
        reference = SentencePieceProcessor(model_file=str(model))
    for text in _PROBES:
        if exact(text, add_special_tokens=False).input_ids != reference.encode(text):
            raise MMLensError(
                f"{model} splits {text!r} in another way than transformers would: it is not a "
                "tokenizer of Mistral's kind (byte pairs, no normalisation), and cannot be kept."
            )
    return exact
