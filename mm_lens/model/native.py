"""The Hugging Face model itself: read completely, or taken out of what it is wrapped in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from mm_lens.checkpoints.building import check_entries, check_size, empty_model, say
from mm_lens.checkpoints.directory import check_directory, count_numbers
from mm_lens.errors import InputError, MMLensError, lacks_memory
from mm_lens.model.families import families, family_for

HUB = ("revision", "token", "cache_dir", "local_files_only")

MAX_EDGE, MAX_PIXELS = 4_096, 2**25
"""Most pixels along an edge of what a processor makes of a picture, and in all of it."""

_COMPUTED = re.compile(r"(^|\.)(position_ids|inv_freq)$")
"""Buffers that older versions of transformers stored, and that are computed today."""


def check_device(device: Any) -> None:
    """Refuse a device that is not here, before anything is read.

    Raises:
        InputError: naming it.
    """
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise InputError(f"There is no device {device!r} here. Try cpu.") from error
    if torch.device(device).type == "meta":
        raise InputError("On the device 'meta' there are no numbers. Try cpu.")


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say where in the hub to look, for config and processor."""
    return {k: options[k] for k in (*HUB, "trust_remote_code") if k in options}


def read_model(
    path: Any,
    dtype: Any,
    device: Any,
    device_map: Any,
    attention: str,
    options: Mapping[str, Any],
    declared: bool = True,
) -> Any:
    """The model at a path or of the hub, every weight of it read.

    Raises:
        MMLensError: no family serves it; weights are missing, or are not the model's.
    """
    families()  # their packages make model types of their own known to transformers
    config = _read_config(path, attention, options, declared)
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            path,
            config=config,
            dtype=dtype or "auto",
            device_map=device_map,
            attn_implementation=attention,
            output_loading_info=True,
            **options,
        )
    except (OSError, MMLensError):
        raise
    except Exception as error:  # many libraries read weights, each failing in its own way
        if lacks_memory(error):
            raise
        remedy = "Get the whole checkpoint again."
        if "device_map" in str(error):
            remedy = 'device_map="auto" places every part.'
        raise InputError(f"The weights of {path} cannot be read: {say(error)}. {remedy}") from error
    check_complete(report, str(path))
    if device is None and device_map is None and torch.cuda.is_available():
        model.to("cuda")
    return model


def _read_config(path: Any, attention: str, options: Mapping[str, Any], declared: bool) -> Any:
    """The configuration, of which it is known that a model can be built, before gigabytes are read.

    Raises:
        MMLensError: a file is damaged, no family serves the model, or it cannot be.
    """
    local = Path(path) if Path(path).is_dir() else None
    where = str(local / "config.json") if local else f"config.json of {path}"
    if local:
        check_directory(local)
    try:
        entries, _ = PreTrainedConfig.get_config_dict(path, **hub_options(options))
        check_entries(entries, where)
        config = AutoConfig.from_pretrained(path, **hub_options(options))
    except (OSError, MMLensError) as error:
        _require_access(path, error)
        raise
    except Exception as error:  # each class of a configuration fails in its own way
        raise InputError(f"{where} cannot be used: {say(error)}.") from error
    architectures = config.architectures or ["(none named in its config)"]
    if not isinstance(architectures, (list, tuple)):
        raise InputError(f"{where} cannot be used: its architectures are no list of names.")
    try:
        for architecture in architectures if declared else ():
            family_for(str(architecture))
    except MMLensError as error:
        raise MMLensError(f"{where}: {error}") from error
    with empty_model(where):
        empty = AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    quantised = getattr(config, "quantization_config", None) is not None  # numbers are packed
    check_size(empty, None if quantised or local is None else count_numbers(local), where)
    return AutoConfig.from_pretrained(path, **hub_options(options))


def read_processor(path: Any, options: Mapping[str, Any]) -> Any:
    """The processor at a path or of the hub.

    Raises:
        InputError: it cannot be read, or would make pictures of a size that no model takes.
        OSError: there is none.
    """
    where = f"The processor of {path}"
    try:
        processor = AutoProcessor.from_pretrained(path, use_fast=False, **hub_options(options))
    except OSError:
        raise
    except Exception as error:  # many libraries read its files, each failing in its own way
        if lacks_memory(error):
            raise
        if isinstance(error, ImportError):
            raise _lacks_library(where, error) from error
        raise InputError(
            f"{where} cannot be read: {say(error)}. Get processor_config.json and the files of the "
            "tokenizer again."
        ) from error
    _check_sizes(getattr(processor, "image_processor", None), where)
    return processor


def _require_access(path: Any, error: BaseException) -> None:
    """Tell of terms that were not accepted: transformers says that there is no such model, too.

    Raises:
        MMLensError: the repository is gated.
    """
    if isinstance(error.__cause__, GatedRepoError):
        raise MMLensError(
            f"{path} is gated: its files are given only to who accepted its terms. Accept them "
            "on its page in the hub, and log in here (hf auth login), or pass token=."
        ) from error


def _lacks_library(where: str, error: ImportError) -> InputError:
    """What to install, as transformers names it; its own advice goes on over many lines."""
    found = re.search(r"requires the (\S+) library", str(error))
    named = (found[1] if found else error.name or "").lower()
    if not named:
        return InputError(f"{where} cannot be read without a library: {say(error)}. Install it.")
    own = 'pip install "mm-lens[torchvision]"' if named == "torchvision" else f"pip install {named}"
    return InputError(f"{where} needs {named}, which is not installed. Install it: {own}.")


def _check_sizes(images: Any, where: str) -> None:
    """Refuse an image processor that would make pictures of a size that no model takes."""
    for name in ("size", "crop_size", "pad_size", "image_grid_pinpoints"):
        numbers = list(_numbers(getattr(images, name, None)))
        # Some classes keep numbers of pixels where others keep edges: their own default says so.
        usual = max(_numbers(getattr(type(images), name, None)), default=0)
        most = MAX_EDGE if usual <= MAX_EDGE else MAX_PIXELS
        if numbers and not 0 < min(numbers) <= max(numbers) <= most:
            wrong = min(numbers) if min(numbers) <= 0 else max(numbers)
            raise InputError(
                f"{where} has {name} of {wrong:,} pixels, where 1 to {most:,} are possible. "
                "Get processor_config.json (preprocessor_config.json) again, or raise "
                "MAX_EDGE (MAX_PIXELS) of mm_lens.model.native."
            )


def _numbers(value: Any) -> Iterator[float]:
    """Every number in nested objects and lists."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, Mapping) or is_dataclass(value):  # as image processors keep sizes
        for inner in (value if isinstance(value, Mapping) else vars(value)).values():
            yield from _numbers(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)


def check_complete(report: Mapping[str, Any], name: str) -> None:
    """Refuse a model of which some weights were not read: they would be random numbers.

    Args:
        report: what `from_pretrained(output_loading_info=True)` returns beside the model. Weights
            that are tied, or computed, are not in it.
        name: of the checkpoint.

    Raises:
        MMLensError: naming the weights.
    """
    mismatched = [
        f"{key} ({list(stored)} in the file, {list(wanted)} in the model)"
        for key, stored, wanted in sorted(report["mismatched_keys"])
    ]
    unexpected = [key for key in report["unexpected_keys"] if not _COMPUTED.search(key)]
    faults = {
        "are missing": sorted(report["missing_keys"]),
        "have another shape": mismatched,
        "are unknown to the model": sorted(unexpected),
        "cannot be read": [str(text) for text in report.get("error_msgs", ())],
    }
    told = [f"{_some(keys)} {fault}" for fault, keys in faults.items() if keys]
    if told:
        raise MMLensError(
            f"The weights of {name} are not those of its config.json: {'; '.join(told)}. The model "
            "would run on random numbers in their place. Get the whole checkpoint again, or mend "
            "the names in it."
        )


def _some(keys: Iterable[str]) -> str:
    first, *rest = keys
    return f"{first} and {len(rest)} more" if rest else first


def add_left_out(state: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """The state of a bridge with those tensors of the model it wraps that it lacks."""
    have = {id(tensor) for tensor in state.values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in have:
            have.add(id(tensor))
            state[name.replace("._original_component", "")] = tensor
    return state


def unwrap(model: Any) -> PreTrainedModel:
    """The Hugging Face model in what was given: adapters merged, not compiled.

    Raises:
        InputError: it is no model of transformers, or in a wrapper that cannot be taken off.
    """
    if hasattr(model, "_orig_mod"):
        model = model._orig_mod
    if hasattr(model, "peft_config") and hasattr(model, "merge_and_unload"):
        model = _merged(model)
    if not isinstance(model, PreTrainedModel):
        inner = " Pass what it wraps: hf_model.module." if hasattr(model, "module") else ""
        raise InputError(
            f"hf_model is a {type(model).__name__}, which is no model of transformers.{inner}"
        )
    for name, module in model.named_modules():
        if name.endswith("._original_component"):
            raise InputError(
                "hf_model is inside of a bridge already, which would hook it twice. Use that "
                "bridge, or load the model anew."
            )
        if hasattr(module, "_orig_mod"):
            raise InputError(
                f"{name} of hf_model is compiled, so that no hook point can be put into it. Pass a "
                "model that is not."
            )
        # Compiled in place: the module is whole, and only its call goes another way.
        module._compiled_call_impl = None
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            raise InputError(
                f"{name} of hf_model has an adapter, whose weights TransformerLens does not see. "
                "Merge it: PeftModel.from_pretrained(model, adapter).merge_and_unload()."
            )
    return model


def _merged(model: Any) -> Any:
    """The base model with the adapters in its weights: an adapter beside them would not be seen."""
    if getattr(model.get_base_model(), "is_quantized", False):
        raise InputError(
            "hf_model has an adapter on quantised weights, into which it cannot be merged without "
            "loss. Merge it into the unquantised model: merge_and_unload()."
        )
    try:
        return model.merge_and_unload()
    except Exception as error:  # prompt tuning has nothing to merge; each kind says so its own way
        raise InputError(
            f"The adapter of hf_model cannot be merged into its weights ({error}). Only adapters "
            "of weights, such as LoRA, can be looked into."
        ) from error
