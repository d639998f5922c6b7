"""Running a recipe by its name."""

from __future__ import annotations

import pytest

from mm_lens import InputError, recipes


def test_all_have_a_claim_and_run_by_name(model, samples):
    table = recipes.table()
    assert len(table) == len(recipes.RECIPES) == 12
    assert table["paper"].str.contains(r"arXiv \d{4}\.\d{5}").all()
    found = recipes.run("token-pruning", model, samples, limit=3)
    assert (found.n_questions, found.n_pictures) == (3, 3)
    assert found.verdict in ("holds", "does not hold", "cannot be told")
    assert recipes.run("token-pruning", model, samples, limit=3).measured.value == (
        found.measured.value
    )
    with pytest.raises(InputError, match=r"No recipe is called 'prune'.*token-pruning"):
        recipes.run("prune", model, samples)
