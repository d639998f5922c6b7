"""One root; messages that are safe to print."""

from __future__ import annotations

import pytest

import mm_lens
import mm_lens.model
from mm_lens.errors import show_safely

ROOT = mm_lens.MMLensError
ERRORS = [mm_lens.InputError, mm_lens.HookError, mm_lens.DataError]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_of_the_root(error):
    assert issubclass(error, ROOT)
    assert issubclass(error, ValueError)
    assert str(error("no such\x1b[31m file\udc80")) == "no such\\x1b[31m file\\udc80"


def test_what_can_be_read_stays():
    text = "größe 57×31 px, “red” – 𝛼\n\tnext line"
    assert show_safely(text) == text
    assert show_safely("a\x07b\r\u202ec") == "a\\x07b\\r\\u202ec"
    show_safely("\udcff").encode("utf-8")


def test_a_torchvision_of_another_torch_is_told_by_its_name(monkeypatch):
    """transformers says that a class of its own could not be imported."""

    def find(name):
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError(f"Could not import module {name!r}.") from error

    monkeypatch.setattr(mm_lens.model, "_find", find)
    with pytest.raises(ROOT, match=r"built for another torch.*pip uninstall torchvision"):
        mm_lens.model.no_such_name  # noqa: B018
