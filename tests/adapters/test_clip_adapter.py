from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters.clip_adapter import ClipAdapter


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_the_direction_is_the_papers(ratio: float) -> None:
    unit = adapter_of(ClipAdapter, 12, 3, ratio=ratio, init="normal", init_std=1.0)
    down, up = (half.projection.weight for half in (unit.down, unit.up))  # (3, 12), (12, 3)
    features = torch.randn(5, 12)
    adapted = torch.relu(features @ down.T) @ up.T
    wanted = ratio * adapted + (1 - ratio) * features
    assert_close(normalize(features + unit(features), dim=-1), normalize(wanted, dim=-1))


def test_it_starts_with_nothing_and_counts_as_said() -> None:
    unit = adapter_of(ClipAdapter, 512, 128)
    assert not unit(torch.randn(2, 512)).any()
    assert sum(parameter.numel() for parameter in unit.parameters()) == 2 * 512 * 128 == 131_072
    assert sum(p.numel() for p in adapter_of(ClipAdapter, 512, 128, bias=True).parameters()) == 131_072 + 512 + 128


def test_it_goes_on_the_features_it_is_asked_for() -> None:
    taken = {role: ClipAdapter.takes(role, {"features": ["text"]}) for role in ("image", "text")}
    assert taken == {"image": False, "text": True}
    assert [role for role in ("image", "text") if ClipAdapter.takes(role, {})] == ["image"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": []}, "features="),
        ({"features": ["sound"]}, "features=sound"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"ratio": 0}, "ratio=0"),
    ],
)
def test_options_that_make_no_sense(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapter_of(ClipAdapter, 8, 2, **options)
