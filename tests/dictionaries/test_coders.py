"""Files of SAELens, against what SAELens itself made of the same activations (make_sae.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mm_lens import DataError
from mm_lens.dictionaries import load_coder

FILES = Path(__file__).parents[1] / "outside" / "sae"
KINDS = sorted(path.name for path in FILES.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_what_is_made_of_them_are_saelenss(kind):
    assert len(KINDS) == 9
    coder = load_coder(FILES / kind)
    given = load_file(FILES / kind / "outputs.safetensors")
    features = coder.encode(given["x"])
    torch.testing.assert_close(features, given["features"], atol=1e-5, rtol=1e-5)
    made = coder.decode(features, given["x"])
    torch.testing.assert_close(made, given["made"], atol=1e-5, rtol=1e-4)
    assert coder.n_features == 40
    assert coder.transcodes == ("transcoder" in kind or kind == "skip")
    assert 0 < (features > 0).float().mean() < 0.9


def test_a_file_of_before_version_6(tmp_path):
    """It says topk as the name of an activation, and where it stands at the top."""
    shutil.copytree(FILES / "topk", tmp_path / "old")
    config = json.loads((FILES / "topk" / "cfg.json").read_text())
    old = {"architecture": "standard", "activation_fn_str": "topk", "hook_name": "blocks.1.hook_in"}
    old["activation_fn_kwargs"] = {"k": config["k"]}
    (tmp_path / "old" / "cfg.json").write_text(json.dumps(old))
    coder = load_coder(tmp_path / "old")
    assert coder.hook_name == "blocks.1.hook_in"
    x = torch.randn(4, 24)
    assert torch.equal(coder.encode(x), load_coder(FILES / "topk").encode(x))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architecture": "temporal"}, "of the architecture 'temporal'"),
        ({"normalize_activations": "covariance_whitening"}, "by 'covariance_whitening'"),
        ({"architecture": "gated"}, "lacks the weight 'b_gate'"),
        ({"k": 0}, "does not say how many"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, change, told):
    shutil.copytree(FILES / "topk", tmp_path / "sae")
    config = json.loads((FILES / "topk" / "cfg.json").read_text())
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=told):
        load_coder(tmp_path / "sae")


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read as a sparse autoencoder"):
        load_coder(tmp_path)
    shutil.copytree(FILES / "topk", tmp_path / "sae")
    for text in ("[]", "{"):
        (tmp_path / "sae" / "cfg.json").write_text(text)
        with pytest.raises(DataError, match="cannot be read as a sparse autoencoder"):
            load_coder(tmp_path / "sae")
    coder = load_coder(FILES / "standard")
    with pytest.raises(DataError, match="needs the activations"):
        coder.decode(torch.zeros(1, 40))
