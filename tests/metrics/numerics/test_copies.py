"""Several questions about one image: a token of the same image and position counts once."""

import math

import pytest
import torch
from made_tokens import normal, rotation, tokens_of

from mm_lens.metrics import METRICS, Tokens, evaluate, sampling_key
from mm_lens.metrics.numerics.copies import first_of_copies

NAMES = [name for name, metric in METRICS.items() if metric.kind == "dimension"]


def images(
    questions: int, dtype: torch.dtype = torch.float32, n_images: int = 24, size: int = 60
) -> Tokens:
    """Tokens on a 3-dimensional sheet; a question changes their last bits alone."""
    index = torch.arange(n_images * questions * size)
    prompt, position = index // size, index % size
    image = prompt // questions
    place = image * size + position
    x = (normal(0, n_images * size, 3) @ rotation(1, 16)[:3])[place].to(dtype)
    # One unit in the last place up or down, as other batches and paddings do.
    step = torch.randint(-1, 2, x.shape, generator=torch.Generator().manual_seed(2))
    x = (x.double() * (1 + step * torch.finfo(dtype).eps * (prompt % questions > 0)[:, None])).to(
        dtype
    )
    return Tokens(x, image, position, index % 9, sampling_key(prompt, position))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_four_questions_say_what_one_does(dtype):
    many, one = images(4, dtype), images(1, dtype)
    assert int(first_of_copies(many).sum()) == len(one)
    found, expected = (
        evaluate(many, None, ["dimension_mle"]),
        evaluate(one, None, ["dimension_mle"]),
    )
    value = found["dimension_mle"].value
    assert value == pytest.approx(expected["dimension_mle"].value, rel=0.02)
    assert value == pytest.approx(3, rel=0.2)
    assert found["dimension_mle"].n_tokens == len(one)
    assert "tokens dropped as copies up to rounding" in found["dimension_mle"].warning


def test_last_bits_of_float32_survive_a_conversion_to_float64():
    many = images(3)
    up = Tokens(many.x.double(), many.sample, many.position, many.token_id, many.key)
    assert torch.equal(first_of_copies(up), first_of_copies(many))


def test_patches_of_one_colour_are_copies_too():
    x = normal(0, 300, 8).float()
    x = torch.cat([x, x[:40] * (1 + 1e-7), x[:40] * (1 - 1e-7)])
    assert int(first_of_copies(tokens_of(x)).sum()) == 300


def test_distinct_tokens_stay_whatever_they_share():
    base = normal(0, 200, 8)
    near = base + 0.02 * base.norm(dim=1, keepdim=True) * normal(1, 200, 8) / 8**0.5
    index = torch.arange(200)
    for dtype in (torch.float32, torch.float16):
        same_place = Tokens(torch.cat([base, near]).to(dtype), *(index.repeat(2),) * 3)
        assert first_of_copies(same_place).all(), dtype
    # In bfloat16 two per cent are several units: kept at other places, and there alone.
    both = torch.cat([base, near]).bfloat16()
    elsewhere = Tokens(both, index.repeat(2), torch.arange(400), index.repeat(2))
    assert first_of_copies(elsewhere).all()


def test_the_one_that_is_kept_depends_on_keys_alone():
    many = images(4)
    order = torch.randperm(len(many), generator=torch.Generator().manual_seed(3))
    kept = first_of_copies(many)
    assert torch.equal(first_of_copies(many.take(order)), kept[order])


def test_the_paper_counts_them_all():
    many = images(2)
    assert evaluate(many, None, ["dimension_paper"])["dimension_paper"].n_tokens == len(many)


def test_a_dimension_of_near_copies_is_no_number():
    """A hundredth of a thousandth apart: too far for rounding, too near for a dimension."""
    base = normal(0, 400, 5) @ rotation(0, 12)[:5]
    x = torch.cat([base, base + 1e-4 * normal(1, 400, 12)])
    found = evaluate(tokens_of(x), None, NAMES)
    for name in ("dimension_mle", "dimension_fit90"):
        assert math.isnan(found[name].value)
        assert math.isnan(found[name].low)
        assert "near-copies, 100% of the tokens" in found[name].warning
    assert found["dimension_gride_8"].value == pytest.approx(5, rel=0.3)
    # A few are told of, and the value stays.
    few = torch.cat([base, base[:3] + 1e-4 * normal(1, 3, 12)])
    told = evaluate(tokens_of(few), None, ["dimension_mle"])["dimension_mle"]
    assert math.isfinite(told.value)
    assert "near-copy" in told.warning
