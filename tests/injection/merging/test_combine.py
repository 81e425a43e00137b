"""New adapters from trained ones, against arithmetic by hand and against the models they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.injection.rows_fusion import written
from tests.injection.table import method
from tests.numerics import assert_close
from vlatrain.config import MergeConfig, UserError
from vlatrain.injection.merging.combine import pruned, side_by_side, summed
from vlatrain.injection.merging.mergeable import unmergeable
from vlatrain.injection.sources import Source, read_sources


def runs(tmp_path: Path, *configs: object, points: list[str] | None = None) -> list[Source]:
    folders = [
        str(written(tmp_path / f"run{n}", "blip", "vqa", config, points))  # type: ignore[arg-type]
        for n, config in enumerate(configs)
    ]
    return read_sources(folders, "sources")


def refused(sources: list[Source], **options: object) -> str:
    config = MergeConfig(sources=[str(source.folder) for source in sources], output="x", **options)  # type: ignore[arg-type]
    return "; ".join(unmergeable(config))


def test_the_sum_is_of_each_tensor(tmp_path: Path) -> None:
    sources = runs(tmp_path, method("bottleneck", dim=4), method("bottleneck", dim=4, dropout=0.1))
    assert not refused(sources)
    config, tensors = summed(sources, [0.75, -2.0])
    stored = [load_file(source.weights) for source in sources]
    assert config == sources[0].adapter
    assert tensors.keys() == stored[0].keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(tensor, 0.75 * stored[0][key] - 2.0 * stored[1][key])


def test_of_lora_the_changes_of_the_weights_are_summed(tmp_path: Path) -> None:
    options = {"r": 3, "lora_alpha": 12}
    sources = runs(tmp_path, method("lora", dim=2), method("lora", dim=3, options=options))
    assert not refused(sources)
    config, tensors = side_by_side(sources, [0.5, -1.5])
    assert (config["r"], config["lora_alpha"]) == (5, 5)
    one, two = (load_file(source.weights) for source in sources)
    for key in (key for key in tensors if ".lora_A." in key):
        other = key.replace(".lora_A.", ".lora_B.")
        expected = 0.5 * 2.0 * one[other] @ one[key] - 1.5 * 4.0 * two[other] @ two[key]  # alpha / r: 2 and 4
        assert_close(tensors[other] @ tensors[key], expected)


def test_pruning_keeps_the_most_used_sources(tmp_path: Path) -> None:
    folders = [
        str(written(tmp_path / name, "blip", "vqa", method("bottleneck", dim=dim), points))
        for name, dim, points in (("a", 2, ["vision.*.*"]), ("b", 3, ["*"]), ("c", 4, ["vision.*.*", "decoder.*.*"]))
    ]
    run = written(tmp_path / "fusion", "blip", "vqa", method("fusion", sources=folders, options={"value": "full"}))
    source = read_sources([str(run)], "sources")[0]
    tensors = load_file(source.weights)
    for key in tensors:
        if key.endswith("usage"):
            tensors[key] = {3: torch.tensor([0.6, 0.1, 0.3]), 2: torch.tensor([0.3, 0.7]), 1: torch.ones(1)}[
                len(tensors[key])
            ]
    save_file(tensors, source.weights, metadata={"format": "pt"})

    (config, left), kept = pruned(source, 2)
    # of 16 points in all, a is used at 4, with 0.6; c at 4 with 0.3 and at 6 with 0.7; b everywhere
    assert kept == [1, 2]
    assert [other["name"] for other in config["options"]["sources"]] == ["b", "c"]
    assert config["points"].keys() == source.points.keys()
    prefix = "base_model.model.vision_model.encoder.layers.0.mlp.fc2.adapter.vlatrain_unit."
    assert torch.equal(
        left[f"{prefix}sources.0.down.projection.weight"], tensors[f"{prefix}sources.1.down.projection.weight"]
    )
    assert torch.equal(
        left[f"{prefix}sources.1.down.projection.weight"], tensors[f"{prefix}sources.2.down.projection.weight"]
    )
    torch.testing.assert_close(left[f"{prefix}attention.usage"], torch.tensor([0.25, 0.75]))
    assert f"{prefix}attention.query.weight" in left

    (config, left), kept = pruned(source, 1)
    assert kept == [1]
    assert not any("attention.query" in key or "attention.key" in key for key in left)
    assert any("attention.value" in key for key in left)


def test_pruning_drops_points_without_a_source(tmp_path: Path) -> None:
    shapes = (("a", ["vision.*.*"]), ("b", ["vision.*.*", "decoder.*.*"]))
    folders = [
        str(written(tmp_path / name, "blip", "vqa", method("bottleneck", dim=2), points)) for name, points in shapes
    ]
    run = written(tmp_path / "fusion", "blip", "vqa", method("fusion", sources=folders))
    source = read_sources([str(run)], "sources")[0]
    tensors = load_file(source.weights)
    usage = {2: torch.tensor([1.0, 0.0]), 1: torch.zeros(1)}
    tensors |= {key: usage[len(tensors[key])].clone() for key in tensors if key.endswith("usage")}
    save_file(tensors, source.weights, metadata={"format": "pt"})
    (config, left), kept = pruned(source, 1)
    assert kept == [0]
    assert {point.split(".")[0] for point in config["points"]} == {"vision"}
    assert not any("text_decoder" in key for key in left)


@pytest.mark.slow
def test_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    plain = method("bottleneck", dim=4)
    sources = runs(tmp_path, plain, method("bottleneck", dim=8), method("lora", dim=2), method("ia3"))
    assert "run1: its options are dim=8, those of" in refused(sources[:2])
    assert "run2: its method is lora, that of" in refused([sources[0], sources[2]])
    assert "adapter=ia3 cannot be averaged" in refused([sources[0], sources[3]])
    assert "as most of vlatrain's own designs have a non-linearity" in refused(sources[:1], into="weights")
    assert "only a fusion has sources" in refused(sources[:1], keep=1)
    elsewhere = read_sources([str(written(tmp_path / "there", "blip", "vqa", plain, ["vision.*.*"]))], "sources")
    assert "its points are none, those of" in refused([sources[0], *elsewhere])
    dora = read_sources([str(written(tmp_path / "dora", "blip", "vqa", method("dora", dim=2)))], "sources")
    assert "cannot be averaged with use_dora" in refused([sources[2], *dora])


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    sources = runs(tmp_path, method("bottleneck", dim=4), method("bottleneck", dim=4))
    tensors = load_file(sources[1].weights)
    del tensors[min(tensors)]
    save_file(tensors, sources[1].weights)
    with pytest.raises(UserError, match=r"run1\S+ has not the tensors that \S+ has: 1 of 72 tensors missing \(base"):
        summed(sources, [0.5, 0.5])


def test_factors_of_lora_that_not_all_have_are_refused(tmp_path: Path) -> None:
    sources = runs(tmp_path, method("lora", dim=2), method("lora", dim=2))
    without(sources[0].weights, "lora_A")
    with pytest.raises(
        UserError, match=r"has not the tensors that \S+ has: \d+ tensors without a place \(\S+lora_A.weight"
    ):
        side_by_side(sources, [0.5, 0.5])


def test_a_fusion_without_its_attentions_is_not_pruned(tmp_path: Path) -> None:
    folders = [str(written(tmp_path / name, "blip", "vqa", method("bottleneck", dim=2))) for name in "ab"]
    fused = written(tmp_path / "fused", "blip", "vqa", method("fusion", dim=2, sources=folders))
    (source,) = read_sources([str(fused)], "sources")
    without(source.weights, "vision_model.encoder.layers.0", "usage")
    with pytest.raises(UserError, match=r"2 of 18 attentions missing \(\S+vision_model.encoder.layers.0\S+usage"):
        pruned(source, 1)
    source.weights.unlink()
    with pytest.raises(UserError, match=r"no adapter/adapter_model.safetensors there"):
        read_sources([str(fused)], "sources")


def without(file: Path, *words: str) -> None:
    """Take the tensors whose names have all these words out of a file."""
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if not all(word in key for word in words)}, file)


def test_heads_are_averaged_but_not_added(tmp_path: Path) -> None:
    folders = [
        str(written(tmp_path / name, "blip", "retrieval", method("bottleneck", dim=2, heads=True))) for name in "ab"
    ]
    sources = read_sources(folders, "sources")
    assert not refused(sources)
    assert "weights that add to 1" in refused(sources, weights=[1.0, 1.0])
