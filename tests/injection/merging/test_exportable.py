"""Designs of our own that are changes of weights go into them, exactly; the others are refused before anything has changed."""

from __future__ import annotations

import pytest

from tests.injection import rows_bottleneck, rows_structural
from tests.injection.test_methods import PLACES, adapted, loaded, loss_of
from vlatrain.adapters import DESIGNS
from vlatrain.injection.attach import merged
from vlatrain.injection.merging.exportable import LINEAR
from vlatrain.training.modes import fingerprint

ROWS = {name: row for name, row in rows_structural.ROWS.items() if name.split(",")[0] in LINEAR}


@pytest.mark.parametrize("place", PLACES[::3], ids="-".join)
@pytest.mark.parametrize("name", ROWS)
def test_what_changes_weights_goes_into_them(name: str, place: tuple[str, str]) -> None:
    backbone, model = adapted(ROWS[name], place)
    expected, frozen = loss_of(backbone), loaded(place)
    assert abs(expected - loss_of(frozen)) > 1e-4
    assert merged(model) is backbone.model
    assert loss_of(backbone) == pytest.approx(expected, rel=1e-5)
    assert {*backbone.model.state_dict()} == {*frozen.model.state_dict()}


def test_others_are_refused_and_leave_the_weights_alone() -> None:
    backbone, model = adapted(rows_bottleneck.ROWS["bottleneck"], ("blip", "vqa"))
    before = fingerprint(backbone.model)
    with pytest.raises(ValueError, match="cannot be merged into the weights"):
        model.merge_and_unload()
    assert fingerprint(backbone.model) == before


def test_the_designs_that_say_what_they_change_are_those_that_are_exported() -> None:
    assert {name for name, design in DESIGNS.items() if "change_of" in vars(design)} == {*LINEAR}
