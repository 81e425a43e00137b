from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from vlatrain.adapters import Call, Facts
from vlatrain.adapters.knn import Knn, KnnOptions


def unit(k: int, samples: int = 7) -> Knn:
    torch.manual_seed(0)
    made = Knn(Facts(width=3, inputs=5), KnnOptions(k=k, temperature=0.2, samples=samples))
    made.store(normalize(torch.randn(samples, 5), dim=-1), one_hot(torch.arange(samples) % 3, 3).float())
    return made


@pytest.mark.parametrize("k", [1, 4, 7, 20])
def test_the_nearest_vote_by_their_likeness(k: int) -> None:
    made, features = unit(k), 9 * torch.randn(6, 5)
    shares = made(torch.zeros(6, 3), Call(inputs=features)).exp()
    for row, feature in zip(shares, features, strict=True):
        likeness = [float(key @ feature / feature.norm()) for key in made.keys]
        votes = [0.0, 0.0, 0.0]
        for place in sorted(range(7), key=lambda one: -likeness[one])[:k]:
            votes[place % 3] += float(torch.tensor(likeness[place] / 0.2).exp())
        assert row.tolist() == pytest.approx([vote / sum(votes) for vote in votes], abs=1e-6)


def test_a_class_without_a_vote_has_a_finite_logarithm() -> None:
    found = unit(1)(torch.zeros(4, 3), Call(inputs=torch.randn(4, 5)))
    assert found.isfinite().all()
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(4))


def test_nothing_trains_and_what_is_kept_is_saved() -> None:
    assert not [*unit(2).parameters()]
    assert {name: tuple(tensor.shape) for name, tensor in unit(2).state_dict().items()} == {
        "keys": (7, 5),
        "values": (7, 3),
    }


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}, {"samples": -1}])
def test_what_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        Knn(Facts(width=3, inputs=5), KnnOptions(**options))  # type: ignore[arg-type]
