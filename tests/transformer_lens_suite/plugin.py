"""A pytest plugin under which TransformerLens's own tests get a tiny LLaVA-NeXT from its loaders.

`boot_native` gives a language model of the sizes that the test asks for, `boot_transformers` one of
six blocks. Which bridge, `UPSTREAM_BRIDGE` says: "plain" (as TransformerLens builds it), "eager" or
"sdpa" (as `mm_lens.load` gives it). `UPSTREAM_OUT` names the file for the outcome of every test.

With `UPSTREAM_IMAGES` every prompt that is long enough shows a picture (`pictures`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

OUTCOMES: dict[str, str] = {}
BOOTED: set[str] = set()
SHOWN: set[str] = set()
RUNNING: list[str] = []
KIND = os.environ.get("UPSTREAM_BRIDGE", "plain")
IMAGES = bool(os.environ.get("UPSTREAM_IMAGES"))


def _tiny(language: dict[str, Any], tokenizer: Any, dtype: torch.dtype | None, seed: int) -> Any:
    """A bridge of the kind that is asked for, around a model of these sizes."""
    from pictures import SMALLEST, show_pictures
    from tiny import tiny_llava_next
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    import mm_lens
    from mm_lens.model.loading import _on_disk

    BOOTED.update(name.split("::")[0] for name in RUNNING)
    # Outside of the vocabulary: tests draw tokens at random, and none may be an image.
    model, processor = tiny_llava_next(
        seed,
        text="llama",
        language=language,
        image_token_index=language["vocab_size"],
        **(SMALLEST if IMAGES else {}),
    )
    model.to(dtype or torch.float32)
    if IMAGES:  # before the bridge, whose hooks then see the prompt with its picture
        show_pictures(model, processor, lambda: SHOWN.update(RUNNING))
    processor.image_token_id = language["vocab_size"]
    if KIND == "plain":
        model.set_attn_implementation("eager")
        with _on_disk(processor.tokenizer) as saved:
            bridge = build_bridge_from_module(
                model,
                "LlavaNextForConditionalGeneration",
                hf_config=model.config,
                tokenizer=saved,
                model_name="tiny",
            )
    else:
        bridge = mm_lens.load(hf_model=model, processor=processor, attention=KIND, check=False)
    if tokenizer is not False:
        bridge.tokenizer = tokenizer
    return bridge


def _boot_native(
    config: Any, tokenizer: Any = None, *args: Any, dtype: Any = None, **kw: Any
) -> Any:
    cfg = config if isinstance(config, dict) else config.to_dict()
    if cfg.get("d_model") is None or cfg.get("attn_only"):
        pytest.skip("no LLaVA-NeXT of this configuration")
    heads = cfg.get("n_heads") or cfg["d_model"] // cfg["d_head"]
    sizes = {
        "hidden_size": cfg["d_model"],
        "num_hidden_layers": cfg["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": cfg.get("n_key_value_heads") or heads,
        "head_dim": cfg.get("d_head") or cfg["d_model"] // heads,
        "intermediate_size": cfg.get("d_mlp") or 4 * cfg["d_model"],
        "vocab_size": cfg.get("d_vocab") or 113,
        "max_position_embeddings": cfg.get("n_ctx") or 2048,
        "pad_token_id": None,
    }
    return _tiny(sizes, tokenizer, dtype, cfg.get("seed") or 0)


def _boot_transformers(name: Any = None, *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
    layers = 12 if name == "gpt2" else 6
    sizes = {"num_hidden_layers": layers, "num_key_value_heads": 4, "vocab_size": 113}
    return _tiny(sizes, False, dtype, 0)


def pytest_configure(config: pytest.Config) -> None:
    """Replace the loaders."""
    import transformer_lens.model_bridge.sources as sources
    from transformer_lens.model_bridge import TransformerBridge

    for owner, name, made in (
        (TransformerBridge, "boot_native", _boot_native),
        (TransformerBridge, "boot_transformers", _boot_transformers),
        (sources, "boot_native", _boot_native),
        (sources, "boot", _boot_transformers),
    ):
        setattr(owner, name, staticmethod(made) if isinstance(owner, type) else made)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Note which test runs, so that the loader can tell who called it."""
    RUNNING[:] = [item.nodeid]
    yield


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Cut a prompt to the mask that a test has for it: GPT-2 has a token for each of its words."""
    given = pyfuncitem.funcargs
    if "mask_row" in given and "tokens" in given:
        given["tokens"] = given["tokens"][:, : len(given["mask_row"])]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the outcome, and why a test failed; a failing setup counts as a failure."""
    known = OUTCOMES.get(report.nodeid, "")
    if known.startswith("failed") or (report.when != "call" and report.outcome == "passed"):
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    why = f": {crash.message}" if report.failed and crash is not None else ""
    OUTCOMES[report.nodeid] = report.outcome + why


def pytest_sessionfinish() -> None:
    """Write the outcomes of the files whose tests used a loader."""
    if out := os.environ.get("UPSTREAM_OUT"):
        kept = {k: v for k, v in OUTCOMES.items() if k.split("::")[0] in BOOTED}
        found = {"outcomes": kept, "shown": sorted(SHOWN & kept.keys())}
        Path(out).write_text(json.dumps(found, indent=1))
