"""What a backbone cannot take of the samples is told before the first step, all of it; a batch that fails names its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.backbones.chatting import shared
from tests.conftest import make_samples, small_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.data.images import BytesPicture, FilePicture
from vlatrain.data.sample import Sample, Turn
from vlatrain.tasks import build
from vlatrain.tasks.sample_checks import check_samples
from vlatrain.training.display import SILENT
from vlatrain.training.prefix_cache.compute import cache_prefix


def problems_of(backbone: Backbone, samples: list[Sample]) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_samples(backbone, samples)
    return caught.value.problems


def row(number: int, **changes: Any) -> Sample:
    return replace(make_samples()[0], source=f"t.jsonl:{number}", **changes)


def test_tokens_that_look_like_text_are_text() -> None:
    """Some tokenizers of CLIP's pad with an exclamation mark."""
    backbone = load(small_config("clip"), "retrieval", texts=["a!"])
    backbone.tokenizer.pad_token = "!"
    check_samples(backbone, [row(1, captions=("a picture!",))])


@pytest.fixture
def strips(tmp_path: Path) -> Callable[..., list[Sample]]:
    """Samples whose images have these sizes."""

    def made(*sizes: tuple[int, int]) -> list[Sample]:
        samples = []
        for number, size in enumerate(sizes, 1):
            file = tmp_path / f"{number}.png"
            Image.new("RGB", size, "red").save(file)
            samples.append(row(number, image=FilePicture(file)))
        return samples

    return made


def test_images_too_narrow_for_qwen_are_named_with_the_limit(strips: Callable[..., list[Sample]]) -> None:
    samples = strips((40, 30), (1000, 4), (1000, 5), (3, 900), (1000, 4))
    samples.append(replace(samples[1], source="t.jsonl:6"))  # the same image once more
    data = Path(samples[3].image.path).read_bytes()  # type: ignore[attr-defined]
    samples.append(row(7, image=BytesPicture(data, "t.parquet[6]")))
    said = " pixels, and the image processor of model=qwen2_5_vl takes sides of at most about 200 : 1; crop or pad the image"
    found = [problem.partition(said) for problem in problems_of(shared("qwen2_5_vl"), samples)]
    folder = Path(samples[0].image.path).parent  # type: ignore[attr-defined]
    assert [start for start, _, rest in found if rest] == [
        f"t.jsonl:2: {folder}/2.png: 1000 x 4",
        f"t.jsonl:4: {folder}/4.png: 3 x 900",
        f"t.jsonl:5: {folder}/5.png: 1000 x 4",
        "t.jsonl:7: t.parquet[6]: 3 x 900",
    ]


def test_vilt_has_a_limit_and_others_have_none(strips: Callable[..., list[Sample]]) -> None:
    samples = strips((1000, 2), (2, 1000), (40, 30))
    vilt = load(small_config("vilt"), "vqa", texts=["a"])
    assert [problem.split(": ")[0] for problem in problems_of(vilt, samples)] == ["t.jsonl:1", "t.jsonl:2"]
    for name in ("blip2_opt", "smolvlm", "llava_onevision"):
        check_samples(shared(name), samples)


class Picky:
    """An image processor that takes no image of a height, as if that were a limit nobody knows of."""

    def __init__(self, own: Any, height: int) -> None:
        self.own, self.height = own, height

    def __call__(self, images: list[Image.Image], **options: Any) -> Any:
        if any(image.height == self.height for image in images):
            raise RuntimeError("no such\nheights")
        return self.own(images=images, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


NAMED = ["t.jsonl:2: {}: the image processor refuses this image: no such heights"]


@pytest.mark.parametrize("task", ["vqa", "instruct"])
def test_a_batch_that_fails_by_an_image_names_it(task: str, strips: Callable[..., list[Sample]]) -> None:
    samples = strips((40, 30), (40, 31), (40, 32))
    backbone = load(small_config("llava"), task, texts=["a"])
    work = build(TaskConfig(name=task), backbone, samples)
    backbone.processor.image_processor = Picky(backbone.image_processor, 31)
    for collate in (work.collate, work.asked if task == "instruct" else work.questions):  # type: ignore[attr-defined]
        with pytest.raises(UserError) as caught:
            collate(samples)
        assert caught.value.problems == [NAMED[0].format(samples[1].image.path)]  # type: ignore[attr-defined]
    wordless = replace(samples[0], question=None, turns=(Turn(None, "a"),))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):  # no image's fault: it is shown as it is
        work.collate([wordless])


def test_so_does_the_cache_of_the_frozen_prefix(strips: Callable[..., list[Sample]]) -> None:
    samples = strips((40, 30), (40, 31))
    backbone = load(small_config("blip"), "captioning", texts=["a"])
    backbone.processor.image_processor = Picky(backbone.image_processor, 31)
    config = TrainConfig(model=backbone.config, task=TaskConfig(name="captioning"))
    config.trainer.cache = "memory"
    with pytest.raises(UserError) as caught:
        cache_prefix(backbone, config, {"train": samples}, {"train": 3.0}, "fp32", SILENT)
    assert caught.value.problems == [NAMED[0].format(samples[1].image.path)]  # type: ignore[attr-defined]
