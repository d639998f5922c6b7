"""Nearest neighbours against the plain float64 loop: not one wrong row, whatever the geometry."""

import pytest
import torch
from made_tokens import normal
from torch import Tensor

from mm_lens.metrics import nearest
from mm_lens.metrics.numerics import neighbours as module
from mm_lens.metrics.numerics.neighbours import Search, nearest_of_first


def plain_loop(x: Tensor, k: int = 2) -> Tensor:
    rows = []
    for i in range(len(x)):
        distance = (x - x[i]).square().sum(1).sqrt()
        distance[i] = torch.inf
        rows.append(distance.sort().values[:k])
    return torch.stack(rows)


def clusters(size: int) -> Tensor:
    """Tight clusters far from the mean: float32 products see every pair at distance zero."""
    centres = normal(1, 40, 24) * 3
    return (centres[:, None] + normal(2, 40, size, 24) * 1e-7).flatten(0, 1)


def tighter() -> Tensor:
    """Clusters that even a float64 product cannot resolve."""
    return (normal(1, 30, 24)[:, None] + normal(2, 30, 8, 24) * 1e-13).flatten(0, 1)


def outliers() -> Tensor:
    x = normal(3, 700, 48)
    x[::50] *= 1e5
    return x


GEOMETRIES = {
    "gaussian": lambda: normal(0, 900, 48),
    "one block and a bit": lambda: normal(0, 257, 5),
    "clusters of 8": lambda: clusters(8),
    "clusters of 3": lambda: clusters(3),
    "clusters below float64": tighter,
    "outliers": outliers,
    "copies": lambda: normal(0, 150, 16).repeat(4, 1),
    "grid": lambda: torch.cartesian_prod(*[torch.arange(6.0).double()] * 3),
    "several levels of selection": lambda: normal(0, 2100, 3),
    "line": lambda: torch.linspace(0, 1, 400).double()[:, None] ** 3,
    "three": lambda: normal(0, 3, 4),
    "four": lambda: normal(0, 4, 4),
    "six": lambda: normal(0, 6, 4),
}


@pytest.mark.parametrize("k", [2, 16])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_no_wrong_row(name, k):
    x = GEOMETRIES[name]()
    k = min(k, len(x) - 1)
    found, truth = nearest(x, k), plain_loop(x, k)
    exactly = {"rtol": 1e-13, "atol": 0.0}  # both are sums of squared differences
    torch.testing.assert_close(found.distance, truth, **exactly)
    assert not (found.index == torch.arange(len(x))[:, None]).any()
    between = (x[:, None] - x[found.index]).square().sum(2).sqrt()
    torch.testing.assert_close(between, truth, **exactly)


def test_the_clusters_defeat_an_uncorrected_product():
    x = clusters(8)
    low = x.float()
    product = low.square().sum(1) + low.square().sum(1)[:, None] - 2 * low @ low.T
    product.fill_diagonal_(torch.inf)
    naive = product.clamp(min=0).sqrt().sort(1).values[:, 0]
    truth = plain_loop(x)[:, 0]
    assert ((naive - truth).abs() > 0.01 * truth).double().mean() > 0.9


def test_only_some_rows():
    x = normal(0, 600, 12)
    rows = torch.tensor([5, 599, 0, 77])
    whole, part = nearest(x), nearest(x, rows=rows)
    assert torch.equal(part.r1, whole.r1[rows])
    assert torch.equal(part.index, whole.index[rows])


def test_rounded_products_are_noticed(monkeypatch):
    """Where float32 products are rounded (TF32, bfloat16), the float64 product is used."""
    assert module.keeps_float32(torch.device("cpu"))
    used = []
    search = module._by_product

    def spy(x, rows, k, dtype):
        used.append(dtype)
        return search(x, rows, k, dtype)

    monkeypatch.setattr(module, "_by_product", spy)
    monkeypatch.setattr(module, "keeps_float32", lambda device: False)
    nearest(normal(0, 50, 4))
    assert used == [torch.float64]


@pytest.mark.parametrize(
    "name", ["gaussian", "clusters of 3", "clusters below float64", "outliers"]
)
def test_several_searches_from_one_product(name):
    """Prefixes among prefixes: what each of them gives alone, whatever the others want."""
    x = GEOMETRIES[name]()
    n = len(x)
    searches = [Search(n, n), Search(n // 2, n // 2), Search(n // 4, n // 4, 3), Search(60, n, 16)]
    for search, found in zip(searches, nearest_of_first(x, searches), strict=True):
        some = x[: search.among]
        truth = torch.cdist(some, some, compute_mode="donot_use_mm_for_euclid_dist")
        truth = truth.fill_diagonal_(torch.inf)[: search.rows].sort(1).values[:, : search.k]
        assert found.distance.shape == (search.rows, search.k)
        torch.testing.assert_close(found.distance, truth, rtol=1e-10, atol=0)
        apart = torch.linalg.vector_norm(x[: search.rows, None] - x[found.index], dim=2)
        torch.testing.assert_close(found.distance, apart, rtol=1e-12, atol=0)


def test_without_float32_each_is_searched_alone(monkeypatch):
    monkeypatch.setattr(module, "keeps_float32", lambda device: False)
    x = normal(0, 300, 12)
    one, far = nearest_of_first(x, [Search(300, 300), Search(10, 300, 4)])
    assert torch.equal(one.distance, nearest(x).distance)
    assert torch.equal(far.index, nearest(x, 4).index[:10])
