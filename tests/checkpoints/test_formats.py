"""Which published layout a list of files is."""

from __future__ import annotations

import pytest
from mm_lens_adapters.omnifusion.convert import OmniFusionFormat

import mm_lens
from mm_lens.checkpoints import formats

FILES = [
    "README.md",
    "models.py",
    "V/projection.pt",
    "V/special_embeddings.pt",
    "V/tuned-model/config.json",
    "V/tuned-model/generation_config.json",
    "V/tuned-model/model-00001-of-00002.safetensors",
    "V/tuned-model/model-00002-of-00002.safetensors",
    "V/tuned-model/model.safetensors.index.json",
    "V/tokenizer/tokenizer.model",
    "V/tokenizer/custom.py",
]


def test_a_format_names_the_files_it_needs():
    assert set(OmniFusionFormat.files(FILES)) == {
        name for name in FILES[2:-1] if "generation_config" not in name
    }
    bare = [name.removeprefix("V/") for name in FILES[2:]]
    assert "projection.pt" in OmniFusionFormat.files(bare)
    two = [name.replace("V/", f"v1_{i}/") for i in (0, 1) for name in FILES]
    assert all(name.startswith("v1_1/") for name in OmniFusionFormat.files(two))
    for needed in ("projection.pt", "special_embeddings.pt", "tuned-model/config.json"):
        assert OmniFusionFormat.files([n for n in FILES if n != f"V/{needed}"]) == []
    assert formats.recognise(["config.json", "model.safetensors"]) is None
    assert formats.recognise(FILES) is OmniFusionFormat


def test_a_broken_format_takes_no_other_along(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mm_lens.formats]\nbroken = no_such_module:Format\n")
    monkeypatch.syspath_prepend(tmp_path)
    formats.formats.cache_clear()
    with pytest.warns(mm_lens.MMLensWarning, match="no_such_module"):
        assert formats.format_named("omnifusion") is OmniFusionFormat
    formats.formats.cache_clear()
