"""Repositories of the hub: downloaded once, and what is told without a network."""

from __future__ import annotations

import pytest
import torch
from mm_lens_adapters.omnifusion import (
    OmniFusionConfig,
)
from published_files import QUESTION
from tiny import random_image, tiny_tokenizer
from upstream import (
    PROMPT,
    upstream_logits,
)

import mm_lens
from mm_lens import MMLensError
from mm_lens.checkpoints.conversion import make_loadable


def test_load_downloads_converts_and_keeps(replica, parts, source):
    model = mm_lens.load("AIRI-Institute/OmniFusion", device="cpu")
    assert model.report.max_logit_difference == 0.0
    inputs = model.prepare(QUESTION, random_image(31, 57))
    plain = tiny_tokenizer(image_token=None)
    ids = [plain(part, add_special_tokens=False).input_ids for part in (PROMPT, QUESTION)]
    expected = upstream_logits(parts, inputs["pixel_values"], *ids)
    assert torch.equal(model(inputs), expected)
    assert replica.downloads == ["AIRI-Institute/OmniFusion", "openai/clip-vit-large-patch14-336"]
    snapshot = replica.root / "snapshots" / "AIRI-Institute" / "OmniFusion" / "c0ffee"
    assert not (snapshot / "models.py").exists()
    kept = replica.root / "cache" / "converted" / "AIRI-Institute--OmniFusion"
    assert sorted(path.name for path in kept.iterdir()) == ["c0ffee", "refs"]

    replica.offline = True
    again = mm_lens.load("AIRI-Institute/OmniFusion", device="cpu", check=False)
    assert again(inputs).equal(expected)
    replica.offline = False
    assert make_loadable("AIRI-Institute/OmniFusion") == str(kept / "c0ffee")
    assert len(replica.downloads) == 2
    replica.repositories["AIRI-Institute/OmniFusion"] = source, "decaf"
    assert make_loadable("AIRI-Institute/OmniFusion", torch.bfloat16) == str(
        kept / "decaf-bfloat16"
    )
    assert replica.downloads[2:] == replica.downloads[:2]
    config = OmniFusionConfig.from_pretrained(kept / "decaf-bfloat16")
    assert config.dtype == torch.bfloat16
    assert len(list((replica.root / "cache").rglob("*.partial"))) == 0


def test_load_without_network_or_cache_is_one_error(replica):
    replica.offline = True
    message = r"OmniFusion: .*HF_HUB_OFFLINE is set.*neither in the cache of the hub nor converted"
    with pytest.raises(MMLensError, match=message):
        mm_lens.load("AIRI-Institute/OmniFusion")
    replica.offline = False
    with pytest.raises(MMLensError, match="local_files_only forbids"):
        mm_lens.load("AIRI-Institute/OmniFusion", local_files_only=True)

    def no_route(*_, **__):
        raise ConnectionError("no route to host")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.model_info", no_route)
        with pytest.raises(MMLensError, match=r"does not answer .no route to host.*Connect once"):
            mm_lens.load("AIRI-Institute/OmniFusion")
    assert not replica.downloads
