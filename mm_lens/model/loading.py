"""`load`: from a model's name to an instrumented, self-checked `TransformerBridge`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.utilities.multi_gpu import count_unique_devices, find_embedding_device
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mm_lens import demo
from mm_lens.checkpoints import conversion
from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.check import run_native, self_check
from mm_lens.model.families import families, family_for

_HUB = ("revision", "token", "cache_dir", "local_files_only")

Attention: TypeAlias = Literal["sdpa", "eager"]


def load(
    name_or_path: str | None = None,
    *,
    hf_model: Any = None,
    processor: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    attention: Attention = "sdpa",
    check: bool = True,
    **from_pretrained: Any,
) -> VisionLanguageBridge:
    """Load a vision-language model as a `TransformerBridge` with hook points per modality.

    Args:
        name_or_path: a hub id, a local directory, or a demo model ("demo/llava-next"). A checkpoint
            in a layout of its own (see `formats`) is converted first and kept in a cache.
        hf_model: a loaded Hugging Face model instead, e.g. a quantised one. It is wrapped in place.
        processor: the processor; None loads the one of `name_or_path`.
        dtype: of the weights; None keeps the checkpoint's.
        device: where the model goes; None takes the GPU if there is one.
        device_map: split over devices, as in transformers.
        attention: "sdpa" is fast and has no attention scores or patterns; "eager" has them.
        check: run `validation.self_check`: native logits, dead hooks, edits without effect.
        from_pretrained: passed on to transformers (`revision`, `token`, …).

    Raises:
        MMLensError: no installed family serves the model; the self-check finds wrong logits; a
            checkpoint that needs conversion is damaged or unsafe; or the hub cannot be asked.
        InputError: the arguments do not go together.
        OSError: transformers finds no such model.
    """
    if (name_or_path is None) == (hf_model is None):
        raise InputError("Pass either name_or_path or hf_model.")
    if attention not in ("sdpa", "eager"):
        raise InputError(f'attention is "sdpa" or "eager", not {attention!r}.')
    if hf_model is not None and (device_map is not None or dtype is not None):
        raise InputError("A loaded hf_model keeps its dtype and device_map: pass neither.")
    if device is not None and device_map is not None:
        raise InputError("Pass device or device_map, not both.")

    path = name_or_path
    if path is not None and path.startswith("demo/"):
        path = str(demo.path(path))
    if hf_model is None and (
        converted := conversion.make_loadable(str(path), dtype, from_pretrained)
    ):
        path = converted
        from_pretrained = {k: v for k, v in from_pretrained.items() if k not in _HUB}
    if hf_model is None:
        hf_model = _from_pretrained(path, dtype, device, device_map, attention, from_pretrained)
    elif processor is None:
        path = getattr(hf_model, "name_or_path", "")
        if not path:
            raise InputError("hf_model does not say where it comes from: pass processor=… too.")
    if device is not None and device_map is None and not hasattr(hf_model, "hf_device_map"):
        hf_model.to(device)
    hf_model.set_attn_implementation(attention)
    hf_model.eval()
    if processor is None:
        processor = AutoProcessor.from_pretrained(path, use_fast=False, **_hub(from_pretrained))

    architecture = (hf_model.config.architectures or [type(hf_model).__name__])[0]
    family_class = family_for(architecture)
    family = family_class(hf_model, processor)
    # The native model goes first: after boot its modules are part of the bridge.
    expected = run_native(hf_model, family, processor) if check else None

    split = find_embedding_device(hf_model), count_unique_devices(hf_model)
    bridge = build_bridge_from_module(
        hf_model,
        architecture,
        hf_config=hf_model.config,
        tokenizer=_save_tokenizer(processor.tokenizer),
        model_name=str(name_or_path or path or architecture),
        post_adapter_hook=lambda adapter: family_class.customise(adapter, attention),
    )
    if split[0] is not None:  # what boot_transformers does for a model over several devices
        bridge.cfg.device, bridge.cfg.n_devices = str(split[0]), split[1]
    model = VisionLanguageBridge.install(bridge, family, attention)
    model.processor = processor
    if expected is not None:
        model.report = self_check(model, expected)
        model.report.announce()
    return model


def _from_pretrained(
    path: Any, dtype: Any, device: Any, device_map: Any, attention: str, kwargs: dict[str, Any]
) -> Any:
    families()  # their packages make model types of their own known to transformers
    config = AutoConfig.from_pretrained(path, **_hub(kwargs))
    for architecture in config.architectures or ["(none named in its config)"]:
        family_for(architecture)  # before gigabytes are read
    model: Any = AutoModelForImageTextToText.from_pretrained(
        path,
        config=config,
        dtype=dtype or "auto",
        device_map=device_map,
        attn_implementation=attention,
        **kwargs,
    )
    if device is None and device_map is None and torch.cuda.is_available():
        model.to("cuda")
    return model


def _hub(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say where in the hub to look, for config and processor."""
    return {k: kwargs[k] for k in (*_HUB, "trust_remote_code") if k in kwargs}


def _save_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, on disk: TransformerLens reloads it by name to have it prepend BOS."""
    name = tokenizer.name_or_path
    if name and Path(name).exists():
        if type(tokenizer).from_pretrained(name).get_vocab() == tokenizer.get_vocab():
            return tokenizer  # else tokens were added since
    elif name and "/" in name:
        return tokenizer
    folder = tempfile.mkdtemp(prefix="mm_lens_tokenizer_")
    tokenizer.save_pretrained(folder)
    saved = type(tokenizer).from_pretrained(folder)
    saved.name_or_path = saved.init_kwargs["name_or_path"] = folder
    return saved
