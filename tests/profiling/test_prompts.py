"""What a profile says of its prompts: templated or as written, with an image or without."""

from __future__ import annotations

import dataclasses
import warnings

import pandas as pd
import pytest
from made_data import make_data, quick

from mm_lens import MMLensWarning


def in_llavas_format(data):
    return [dataclasses.replace(s, text=f"<image>\n{s.text}") for s in data if s.image]


def test_prompts_without_the_template_are_said_and_counted(fresh):
    """LLaVA's own data format: warned of once for the run, counted, and templated when asked to."""
    plain = [sample for sample in make_data() if sample.image]
    model = fresh
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        want = quick(model, plain)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        left = quick(model, in_llavas_format(plain), batch_size=2)
    told = [str(w.message) for w in found if issubclass(w.category, MMLensWarning)]
    assert len(told) == 1
    assert "chat template is not applied" in told[0]
    assert left.provenance["data"]["n_templated"] == 0
    assert want.provenance["data"]["n_templated"] == len(plain)
    asked = quick(model, in_llavas_format(plain), chat_template=True)
    assert asked.provenance["data"]["n_templated"] == len(plain)
    assert asked.provenance["options"]["chat_template"] is True
    # The items' texts are other ones, the model's inputs are not.
    pd.testing.assert_frame_equal(asked.table, want.table)
    assert not left.table.equals(want.table)


def test_the_count_outlives_a_kill_and_the_option_is_part_of_the_run(model, tmp_path):
    data = make_data()
    first = quick(model, data, run_dir=tmp_path)
    again = quick(model, data, run_dir=tmp_path)
    assert again.provenance["data"]["n_templated"] == first.provenance["data"]["n_templated"] == 9
    with pytest.raises(ValueError, match="chat_template"):
        quick(model, data, run_dir=tmp_path, chat_template=False)


def test_samples_without_an_image_are_meant(model):
    """A profile of mixed data says nothing of hooks on visual tokens, and of text alone NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(model, make_data(text_only=(1, 4, 7)))
    found = quick(model, make_data(text_only=range(9))).table
    visual = found[found.modality == "visual"]
    assert visual.value.isna().all()
    assert (visual.warning == "no visual tokens in the data").all()
