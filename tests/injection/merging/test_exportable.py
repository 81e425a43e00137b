"""Designs of our own that are changes of weights go into them, exactly; the others are refused before anything has changed."""

from __future__ import annotations

import pytest

from tests.injection import rows_bottleneck, rows_structural
from tests.injection.test_methods import PLACES, adapted, loaded, loss_of
from vlatrain.adapters import DESIGNS
from vlatrain.injection.attach import merged
from vlatrain.injection.merging.exportable import changes_weights
from vlatrain.training.modes import fingerprint

ROWS = {name: row for name, row in rows_structural.ROWS.items() if changes_weights(name.split(",")[0])}


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


def test_a_design_that_says_what_it_changes_can_be_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One from outside the package, too; no other can."""
    assert {name for name in DESIGNS if changes_weights(name)} == {"bitfit", "task_lora"}
    monkeypatch.setitem(
        DESIGNS, "mine", type("Mine", (DESIGNS["bottleneck"],), {"change_of": lambda self, module: None})
    )
    assert changes_weights("mine")
    assert not changes_weights("nobody's")
