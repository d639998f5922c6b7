"""What a profile says of where it comes from."""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
from conftest import load_tiny
from made_data import make_data

from mm_lens.data.datasets import EasyVQA
from mm_lens.profiling import provenance


def test_versions_are_those_installed(monkeypatch):
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    assert {name: version(name) for name in provenance.PACKAGES} == {
        name: number for name, number in found.items() if name != "python"
    }
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert provenance.versions()["no-such-package"] == "unknown"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_is_told_by_its_settings(attention):
    model = load_tiny(attention=attention, check=False)
    native = model.original_model.config
    found = provenance.describe_model(model)
    assert found["architecture"] == "LlavaNextForConditionalGeneration"
    assert found["n_layers"] == native.text_config.num_hidden_layers
    assert found["d_model"] == native.text_config.hidden_size
    assert (found["dtype"], found["attention"], found["device"]) == ("float32", attention, "cpu")


def test_data_are_called_as_asked_or_as_they_call_themselves():
    data = make_data(3)
    assert provenance.describe_data(data, "mine") == {"name": "mine", "n_available": 3}
    assert provenance.describe_data(data, None)["name"] == "list"
    data = EasyVQA("test")
    found = provenance.describe_data(data, None)
    assert found == {"name": data.name, "n_available": len(data)}


def test_the_time_is_utc():
    time = datetime.fromisoformat(provenance.now())
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - time) < timedelta(minutes=5)
