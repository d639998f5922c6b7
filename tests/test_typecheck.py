"""The check of signatures that runs with every test finds what is wrong, and says where."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import typecheck
from jaxtyping import Float
from torch import Tensor


def test_shapes_and_types_of_arguments_and_results_are_checked():
    @typecheck.jaxtyped
    def add(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], broken: bool = False) -> Tensor:
        return "no tensor" if broken else a + b  # type: ignore[return-value]

    ones = torch.ones(2, 3)
    assert torch.equal(add(ones, ones), 2 * ones)
    for wrong in ((ones, torch.ones(3, 3)), (ones, torch.ones(2, 3).long()), (ones, ones, True)):
        with pytest.raises(Exception, match=r"violates type hint|not .*instance"):
            add(*wrong)


def test_only_the_first_calls_of_a_test_are():
    @typecheck.jaxtyped
    def name(x: int) -> int:
        return x

    for _ in range(typecheck.INNER_CALLS):
        name(1)
    assert name("unchecked") == "unchecked"  # type: ignore[arg-type,comparison-overlap]
    typecheck.check_anew()
    with pytest.raises(Exception, match="violates type hint"):
        name("checked")  # type: ignore[arg-type]


def test_so_are_the_fields_of_a_data_class():
    @typecheck.jaxtyped
    @dataclass
    class Row:
        name: str
        numbers: list[int] = field(default_factory=list)

    @typecheck.jaxtyped
    @dataclass
    class Answered(Row):
        answer: str = ""

    assert Row("a").numbers == Answered("a").numbers == []
    for make in (lambda: Row(3), lambda: Row("a", 3), lambda: Answered("a", [], 3)):
        with pytest.raises(Exception, match="violates type hint"):
            make()
    for _ in range(typecheck.INNER_CALLS):
        Row("a")
    assert Row(3).name == 3  # type: ignore[arg-type,comparison-overlap]


def test_signatures_of_the_package_are():
    from mm_lens.metrics import linearity

    with pytest.raises(Exception, match="violates type hint"):
        linearity.linearity_paper([[1.0]])
