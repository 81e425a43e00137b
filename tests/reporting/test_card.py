"""What a model card says to the hub, and to people. Its code runs in `tests/verbs/test_export.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.conftest import adapter_config, model_config
from tests.injection.test_mixed import train_config
from vlatrain.config import AdapterConfig, DataConfig, TaskConfig, TrainConfig
from vlatrain.reporting.card import MERGED, Place, write_card

METRICS: dict[str, Any] = {
    "backbone": "x", "versions": {"vlatrain": "1"}, "training": {"epochs": 1.5},
    "parameters": {"trainable": 1000, "total": 20000, "percent": 5.0},
    "metrics": {"accuracy": 90.12345}, "units": {"accuracy": "%"},
    "baselines": {"most_frequent": {"metrics": {"accuracy": 50.0}, "says": "yes"}},
    "test": {"metrics": {"accuracy": 80.0, "other": float("nan")}},
}  # fmt: skip


def card_of(folder: Path, config: TrainConfig, metrics: dict[str, Any] = METRICS, **more: Any) -> ModelCard:
    write_card(folder, config, metrics, Place("outputs/run", "outputs/run/adapter"), **more)
    return ModelCard.load(folder / "README.md")


def of_model(name: str, **more: Any) -> TrainConfig:
    return replace(train_config(adapter_config("bottleneck")), model=model_config(name, **more))


def test_figures_stand_beside_their_baselines_in_each_split(tmp_path: Path) -> None:
    card = card_of(tmp_path, of_model("tiny_blip"))
    assert "| accuracy | eval | 90.12 % | 50.00 % (most frequent) |" in card.text
    assert "| accuracy | test | 80.00 % |  |" in card.text
    assert "1,000 parameters (5.00 % of 20,000) have trained (`adapter=bottleneck`), 1.5 epochs" in card.text
    shown = [(one.dataset_split, one.metric_type, one.metric_value) for one in card.data.eval_results]
    assert shown == [("eval", "accuracy", 90.1235), ("test", "accuracy", 80.0)]
    assert card.data.model_name == "bottleneck for vqa on tiny_blip"


@pytest.mark.parametrize(
    ("config", "bases", "license"),
    [
        (of_model("tiny_blip"), None, "apache-2.0"),
        (of_model("blip"), "Salesforce/blip-vqa-base", "unknown"),
        (of_model("blip", checkpoint="you/finer"), "you/finer", "unknown"),
        (of_model("blip", random_init=True), None, "apache-2.0"),
        (replace(of_model("tiny_blip"), data=DataConfig(name="files", train="a.jsonl")), None, "unknown"),
    ],
)
def test_the_backbone_is_named_where_it_is_the_hub_s(
    config: TrainConfig, bases: str | None, license: str, tmp_path: Path
) -> None:
    data = card_of(tmp_path, config).data
    assert (data.base_model, data.license, data.library_name) == (bases, license, "peft")
    assert data.get("base_model_relation") == ("adapter" if bases else None)
    assert data.pipeline_tag == "visual-question-answering"
    assert ("licence is not said" in ModelCard.load(tmp_path / "README.md").text) == (license == "unknown")


def test_a_folder_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "backbone").mkdir(parents=True)
    assert card_of(tmp_path, of_model("blip", checkpoint="my/backbone")).data.base_model is None


def test_what_was_said_of_licence_data_and_form(tmp_path: Path) -> None:
    config = replace(of_model("blip"), data=DataConfig(name="hub", path="me/doors"))
    data = card_of(tmp_path, config, license="mit", form=MERGED).data
    assert (data.license, data.datasets, data.library_name) == ("mit", ["me/doors"], "transformers")
    assert data.get("base_model_relation") == "finetune"
    assert data.eval_results[0].dataset_type == "me/doors"


def test_several_methods_have_a_card_each(tmp_path: Path) -> None:
    for component in ("vision", "rest"):
        (tmp_path / component).mkdir()
    card = card_of(tmp_path, train_config(adapter_config("mixed")))
    assert "lora as `vision` and bottleneck as `rest`" in card.text
    own = ModelCard.load(tmp_path / "vision" / "README.md")
    assert own.data.library_name == "peft"
    assert "../README.md" in own.text


def test_a_router_is_of_what_its_runs_are_of(tmp_path: Path) -> None:
    """Its own task, a joint one, need not be served by the backbone."""
    own = TaskConfig(name="classification")
    config = replace(
        of_model("clip"),
        adapter=AdapterConfig(name="router"),
        task=TaskConfig(name="joint", metric="mean", subtasks={"cats": own, "dogs": own}),
        data=DataConfig(subtasks={"cats": DataConfig(), "dogs": DataConfig()}),
    )
    chosen = {"sources": ["cats", "dogs"], "accuracy": 90.0, "of_oracle": 80.0}
    card = card_of(tmp_path, config, {**METRICS, "training": {}, "router": chosen})
    assert card.data.base_model == "openai/clip-vit-base-patch16"
    assert "picks among `cats`, `dogs`: the sample's own run for 90.00 %" in card.text
    assert "have trained (`adapter=router`), on `data=shapes`" in card.text
    assert (
        'model = vlatrain.load("outputs/run")\nprint(model.predict("photo.jpg", question="what is it?"))' in card.text
    )


def test_one_without_scores_says_so_little(tmp_path: Path) -> None:
    """What `merge` has made."""
    card = card_of(tmp_path, of_model("tiny_blip"), {})
    assert card.data.eval_results is None
    assert "made by vlatrain from finished runs." in card.text
