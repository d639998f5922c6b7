"""The population's recipe, from nothing to its tables, in miniature."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from demo_training import across, population, train


@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.slow
def test_the_recipe_runs_to_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(population, "MOMENTS", ("joined", 1.0))
    stages = "--see 1 --read 1 --negate 0 --connect 1 --answer 1 --images 2 --batch 2 --questions 2"
    sizes = f"--out {tmp_path} --device cpu --seeds 0 --each 1 --profiled 3"
    sizes += " --metrics linearity_paper anisotropy mean_cosine"
    args = population.options().parse_args([*stages.split(), *sizes.split()])
    state = torch.get_rng_state()
    population.run(args)
    torch.set_rng_state(state)
    models, geometry = across.read(tmp_path)
    moments = geometry.groupby(["fusion", "seed", "stage", "step"]).size()
    assert len(moments) == 2 * 2
    assert {stage for _, _, stage, _ in moments.index} == {"joined", "answering"}
    assert {*models["kind"]} == {*population.KINDS}
    assert models["accuracy"].between(0, 1).all()
    assert {*geometry["stream"]} == {"residual", "main"}
    found = across.relate(across.join(models, geometry))
    assert {*found["metric"]} == {"linearity_paper", "anisotropy", "mean_cosine"}
    # What is done is not done again.
    monkeypatch.setattr(train.Training, "loop", None)
    population.run(args)
    pd.testing.assert_frame_equal(across.read(tmp_path)[0], models)


def test_a_run_asks_as_many_questions_of_each_kind():
    data = population.questions(3)
    assert [data[i].about["kind"] for i in range(3)] == [*population.KINDS]
    assert len(data) == 9
