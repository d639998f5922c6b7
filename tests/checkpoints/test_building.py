"""Whether a configuration describes a model, without paying for one."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from mm_lens.checkpoints import building
from mm_lens.checkpoints.building import blame, check_entries, check_size, empty_model, say
from mm_lens.errors import InputError, MMLensError


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**7},
        {"text_config": {"n_layer": -(10**9)}},
        {"vision_config": {"depths": [2, 2, 10**6]}},
        {"a": [{"num_layers": float("inf")}]},
    ],
)
def test_layers_that_no_model_has(config):
    with pytest.raises(InputError, match="layers of any model"):
        check_entries(config, "config.json")


def test_other_numbers_may_be_large():
    check_entries({"vocab_size": 10**8, "num_hidden_layers": 100, "layer_norm_eps": 1e-5}, "c")


def test_modules_are_counted_while_they_are_made(monkeypatch):
    made = []

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            made.append(1)
            self.inner = nn.Linear(10**6, 10**6)  # four terabytes, if it were paid for

    monkeypatch.setattr(building, "MAX_MODULES", 100)
    with pytest.raises(InputError, match="more than 100 modules"), empty_model("config.json"):
        nn.ModuleList([Block() for _ in range(10**9)])
    assert len(made) < 200
    with empty_model("config.json"):
        nn.ModuleList([Block() for _ in range(30)])
    nn.Sequential(*(nn.Identity() for _ in range(500)))  # no one counts any more
    with empty_model("config.json"):
        other = threading.Thread(
            target=lambda: nn.Sequential(*map(nn.Linear, [1] * 300, [1] * 300))
        )
        other.start()
        other.join()


def test_what_cannot_be_built_is_one_line():
    with pytest.raises(InputError, match=r"^a/config\.json describes no model .*: no such\. Get"):  # noqa: SIM117
        with empty_model("a/config.json"):
            raise ValueError("no such.\nlong story")
    with pytest.raises(MemoryError), empty_model("a"):
        raise MemoryError


def test_sizes_are_compared_with_the_files():
    with torch.device("meta"):
        model = nn.Linear(10**4, 10**4)
    check_size(model, None, "config.json")
    check_size(model, 10**8, "config.json")
    with pytest.raises(InputError, match="a model of 100,010,000 numbers, but its files hold 900"):
        check_size(model, 900, "config.json")


def test_blame():
    with pytest.raises(MMLensError, match=r"^x\.json cannot be used: KeyError: 'size'\. Fetch"):  # noqa: SIM117
        with blame("x.json"):
            {}["size"]
    for told in (InputError("as it is"), FileNotFoundError("as it is"), MemoryError("as it is")):
        with pytest.raises(type(told), match=r"^as it is$"), blame("x.json"):
            raise told


def test_say():
    assert say(ValueError("a.\nb")) == "a"
    assert say(ValueError()) == "ValueError"
    assert "trust_remote_code=True" in say(ValueError("many\nlines of trust_remote_code"))
