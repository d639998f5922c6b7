"""Numbers of each sample are those of its states alone, whatever the batch and the run."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from made_data import make_data

import mm_lens
from mm_lens.profiling.per_sample import collecting
from mm_lens.profiling.per_sample.collecting import COLUMNS
from mm_lens.profiling.per_sample.quantities import QUANTITIES, describe_tokens


def measure(model, data, run_dir=None, **options):
    given = {"metrics": ["anisotropy"], "tokens": 900, "batch_size": 3, **options}
    return mm_lens.profile(model, data, per_sample=True, progress=False, run_dir=run_dir, **given)


@pytest.fixture(scope="module")
def data():
    return make_data(5, text_only=(4,))


@pytest.fixture(scope="module")
def whole(model, data):
    return measure(model, data).samples


def test_each_is_that_of_the_native_states(model, native, data, whole):
    assert tuple(whole) == COLUMNS
    for index, sample in enumerate(data):
        inputs = model.prepare(sample.text, sample.image)
        with torch.no_grad():
            states = native(**inputs.native, output_hidden_states=True).hidden_states
        masks = {name: inputs.layout.mask(name)[0] for name in ("visual", "text")}
        for layer in (0, 1, 2):  # the native model's last one is after the final norm
            for name, other in (("visual", "text"), ("text", "visual")):
                rows = whole.query(
                    f"index == {index} and stream == 'residual' and layer == {layer} "
                    f"and modality == '{name}'"
                )
                if not masks[name].any():
                    assert rows.empty
                    continue
                row = rows.iloc[0]
                x = states[layer][0][masks[name]]
                before = states[layer - 1][0][masks[name]] if layer else None
                beside = states[layer][0][masks[other]].mean(0) if masks[other].any() else None
                expected = describe_tokens(x, before, beside)
                assert row.n_tokens == len(x)
                for quantity in QUANTITIES:
                    assert row[quantity] == pytest.approx(
                        expected[quantity], rel=2e-3, abs=2e-5, nan_ok=True
                    ), (quantity, layer, name)


def test_both_streams_and_every_layer(model, data, whole):
    visual = sum(sample.image is not None for sample in data)
    n_states = model.cfg.n_layers + 1
    assert len(whole) == 2 * n_states * (visual + len(data))
    first = whole[whole.layer == 0]
    assert first["update"].isna().all()
    assert not whole[whole.layer > 0]["update"].isna().any()


class Died(BaseException):
    """What stands for a kill."""


def test_a_killed_run_goes_on(model, data, whole, tmp_path, monkeypatch):
    left, describe = [3], collecting._describe_batch

    def stops(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Died
        return describe(*args)

    with monkeypatch.context() as patch:
        patch.setattr(collecting, "_describe_batch", stops)
        with pytest.raises(Died):
            measure(model, data, tmp_path / "run")
    left[0] = 2  # one batch of two streams was done, the other is left
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "_describe_batch", stops)
        found = measure(model, data, tmp_path / "run").samples
    pd.testing.assert_frame_equal(found, whole, check_exact=True)


def test_only_so_many_tokens_are_looked_at(model, data, monkeypatch):
    monkeypatch.setattr(collecting, "MOST", 7)
    found = measure(model, data, streams=["residual"]).samples
    assert found.n_tokens.max() > 7
    ranks = found.query("modality == 'visual'").participation_ratio
    assert ranks.max() <= 6 + 1e-9
    assert not math.isnan(ranks.max())


def test_it_is_saved_and_read_back(model, data, whole, tmp_path):
    profile = measure(model, data)
    profile.save(tmp_path / "one")
    found = mm_lens.Profile.load(tmp_path / "one").samples
    pd.testing.assert_frame_equal(found, whole, check_exact=True)
