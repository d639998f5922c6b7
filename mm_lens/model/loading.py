"""`load`: from a model's name to an instrumented, self-checked `TransformerBridge`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.utilities.multi_gpu import count_unique_devices, find_embedding_device

from mm_lens import demo
from mm_lens.arguments import check_name
from mm_lens.checkpoints import conversion
from mm_lens.checkpoints.building import say
from mm_lens.data.prompts import render
from mm_lens.errors import InputError, MMLensError, MMLensWarning
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.check import PROMPT, run_native, self_check
from mm_lens.model.families import Family, Undeclared, families, family_for
from mm_lens.model.native import (
    HUB,
    check_device,
    hub_options,
    read_model,
    read_processor,
    unwrap,
)

Attention: TypeAlias = Literal["sdpa", "eager"]


def load(
    name_or_path: str | PathLike[str] | None = None,
    *,
    hf_model: Any = None,
    processor: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    attention: Attention = "sdpa",
    check: bool = True,
    geometry: bool = True,
    **from_pretrained: Any,
) -> VisionLanguageBridge:
    """Load a vision-language model as a `TransformerBridge` with hook points per modality.

    ```python
    model = mm_lens.load("demo/llava-next")
    model = mm_lens.load("llava-hf/llava-v1.6-mistral-7b-hf", dtype=torch.bfloat16)
    model = mm_lens.load("./my-checkpoint", attention="eager")     # with attention patterns
    ```

    Args:
        name_or_path: a hub id, a local directory, or a demo model ("demo/llava-next"). A checkpoint
            in a layout of its own (see `formats`) is converted first and kept in a cache.
        hf_model: a loaded Hugging Face model instead, e.g. a quantised one. It is wrapped in place;
            a compiled one is taken as it was before, adapters of a PeftModel are merged into it.
        processor: the processor; None loads the one of `name_or_path`.
        dtype: of the weights; None keeps the checkpoint's.
        device: where the model goes; None takes the GPU if there is one.
        device_map: split over devices, as in transformers.
        attention: "sdpa" is fast, and computes the scores and patterns of a block where a hook asks
            for them; "eager" always does, and has `hook_rot_q` and `hook_rot_k`.
        check: run `validation.self_check`: native logits, dead hooks, edits without effect.
        geometry: False opens a model whose family nobody declared, from its image token alone:
            hook points, metrics, patching by modality and segment work; what needs to know where
            tokens lie in the picture raises.
        from_pretrained: passed on to transformers (`revision`, `token`, …). Code of a checkpoint
            runs only with `trust_remote_code=True`.

    Raises:
        MMLensError: no installed family serves the model; weights are missing or not the model's;
            the self-check finds wrong logits; a checkpoint that needs conversion is damaged or
            unsafe; or the hub cannot be asked.
        InputError: the arguments do not go together, the processor is not the model's, its chat
            template drops the question, there is no such device, or hf_model cannot be unwrapped.
        OSError: transformers finds no such model.
    """
    _check_arguments(name_or_path, hf_model, dtype, device, device_map, attention, from_pretrained)
    from_pretrained = {"trust_remote_code": False, **from_pretrained}

    path = None if name_or_path is None else fspath(name_or_path)
    if path is not None and path.startswith("demo/"):
        path = str(demo.path(path))
    if hf_model is None and (
        converted := conversion.make_loadable(str(path), dtype, from_pretrained)
    ):
        path = converted
        from_pretrained = {k: v for k, v in from_pretrained.items() if k not in HUB}
    if hf_model is None:
        hf_model = read_model(
            path, dtype, device, device_map, attention, from_pretrained, declared=geometry
        )
    else:
        hf_model = unwrap(hf_model)
    if processor is None and path is None:
        path = getattr(hf_model, "name_or_path", "")
        if not path:
            raise InputError("hf_model does not say where it comes from: pass processor=… too.")
    if device is not None and device_map is None and not hasattr(hf_model, "hf_device_map"):
        hf_model.to(device)
    hf_model.set_attn_implementation(attention)
    hf_model.eval()
    if processor is None:
        processor = read_processor(path, from_pretrained)

    names = [c.__name__ for c in type(hf_model).__mro__ if c.__name__ in families()]
    architecture = names[0] if names else type(hf_model).__name__
    family_class = family_for(architecture) if geometry else Undeclared
    family = _fit(family_class, hf_model, processor)
    _require_adapter(architecture)
    _check_template(processor, path)
    # The native model goes first: after boot its modules are part of the bridge.
    expected = run_native(hf_model, family, processor) if check else None  # or refuses its weights

    split = find_embedding_device(hf_model), count_unique_devices(hf_model)
    with _on_disk(processor.tokenizer) as tokenizer:
        bridge = build_bridge_from_module(
            hf_model,
            architecture,
            hf_config=hf_model.config,
            tokenizer=tokenizer,
            model_name=str(name_or_path or path or architecture),
            post_adapter_hook=lambda adapter: family_class.customise(adapter, attention),
        )
    if split[0] is not None:  # what boot_transformers does for a model over several devices
        bridge.cfg.device, bridge.cfg.n_devices = str(split[0]), split[1]
    model = VisionLanguageBridge.install(bridge, family, attention)
    model.processor = processor
    if not geometry:
        warnings.warn(
            f"{architecture} was opened from its image token alone (geometry=False): which tile, "
            "row, column and pixels a token stands for is unknown, and its processor was not "
            "compared with the model. What needs places raises.",
            MMLensWarning,
            stacklevel=2,
        )
    if expected is not None:
        model.report = self_check(model, expected)
        model.report.announce()
    return model


def _fit(family_class: type[Family], model: Any, processor: Any) -> Family:
    """The family for a model and a processor.

    Raises:
        InputError: they do not fit each other.
    """
    try:
        return family_class(model, processor)
    except MMLensError:
        raise
    except Exception as error:  # a value that no arithmetic of a family was made for
        raise InputError(
            f"The processor or config.json of {getattr(model, 'name_or_path', '') or 'the model'} "
            f"cannot be used: {say(error)}. Get both again, of one checkpoint."
        ) from error


def _check_template(processor: Any, path: str | None) -> None:
    """Refuse a chat template that fails, drops the question, or never ends."""
    try:
        render(processor, PROMPT, 1, None)
    except InputError as error:
        raise InputError(f"{path}: {error}" if path else str(error)) from error


def _require_adapter(architecture: str) -> None:
    """Refuse a model whose modules TransformerLens does not know.

    Raises:
        MMLensError: naming what is missing.
    """
    ArchitectureAdapterFactory.discover_entry_points()
    if architecture not in ArchitectureAdapterFactory._adapters:
        raise MMLensError(
            f"TransformerLens has no adapter for {architecture}, so where its hook points go is "
            "unknown. A package adds one through the entry point group "
            "'transformer_lens.architectures'; see docs/adding_a_family.md."
        )


_MEANT = {
    "attn_implementation": 'attention="sdpa" or "eager"',
    "torch_dtype": "dtype=",
    "model": "hf_model=",
    "model_name": "name_or_path=",
    "name": "name_or_path=",
    "path": "name_or_path=",
    "pretrained_model_name_or_path": "name_or_path=",
    "tokenizer": "processor=, which has the tokenizer",
    "output_loading_info": "nothing: missing weights are an error",
    "ignore_mismatched_sizes": "nothing: weights of another shape are an error",
}


def _check_arguments(
    name_or_path: str | PathLike[str] | None,
    hf_model: Any,
    dtype: torch.dtype | None,
    device: Any,
    device_map: Any,
    attention: str,
    options: Mapping[str, Any],
) -> None:
    for name in options:
        if name in _MEANT:
            raise InputError(f"load takes no {name}=. What is meant is called {_MEANT[name]}.")
    if (name_or_path is None) == (hf_model is None):
        raise InputError("Pass either name_or_path or hf_model.")
    if name_or_path is not None:
        check_name(name_or_path)
    if attention not in ("sdpa", "eager"):
        raise InputError(f'attention is "sdpa" or "eager", not {attention!r}.')
    if hf_model is not None and (device_map is not None or dtype is not None):
        raise InputError("A loaded hf_model keeps its dtype and device_map: pass neither.")
    if hf_model is not None and (unused := options.keys() - hub_options(options).keys()):
        raise InputError(f"A loaded hf_model is not loaded again: {min(unused)}= has no effect.")
    if device is not None and device_map is not None:
        raise InputError("Pass device or device_map, not both.")
    check_device(device)


_CODE = ("auto_map", "trust_remote_code", "code_revision")
"""Entries of a tokenizer_config.json that could have code of the checkpoint run."""


@contextmanager
def _on_disk(tokenizer: Any) -> Iterator[Any]:
    """The tokenizer, on disk: TransformerLens reloads it by name to have it prepend BOS."""
    for entry in _CODE:  # TransformerLens would obey them when it reloads the tokenizer
        tokenizer.init_kwargs.pop(entry, None)
    name = tokenizer.name_or_path
    if name and Path(name).exists():
        if type(tokenizer).from_pretrained(name).get_vocab() == tokenizer.get_vocab():
            yield tokenizer  # else tokens were added since
            return
    elif name and "/" in name:
        yield tokenizer
        return
    with tempfile.TemporaryDirectory(prefix="mm_lens_tokenizer_") as folder:
        tokenizer.save_pretrained(folder)
        saved = type(tokenizer).from_pretrained(folder)
        saved.name_or_path = saved.init_kwargs["name_or_path"] = folder
        yield saved
