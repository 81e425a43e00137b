"""What the tests share: backbones small enough to build in milliseconds, and samples to feed them."""

from __future__ import annotations

import copy
import gc
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["VLATRAIN_CACHE"] = tempfile.mkdtemp(prefix="vlatrain-cache-")  # kept prefixes are the user's, not a test's
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from tests.backbones.small import BY_TASK, SETTINGS
from tests.loopback import TOKEN, Hub, client_of, serving
from vlatrain.backbones.base import Backbone
from vlatrain.cli.registry import register_resolvers
from vlatrain.config import AdapterConfig, ModelConfig
from vlatrain.data.sample import Sample, Turn
from vlatrain.reporting import pages

FAKE_CUDA = ("tests/gpu_free/test_kernels.py", "tests/gpu_free/test_stored_type.py")
PEFTS_OWN = "rslora|vblora|loha|lokr|oft|boft|hra|fourierft|waveft|c3a|hira|miss|randlora|delora|gralora|road"
OF_EACH_KIND = "(bottleneck|cross_modal|mixed|lora|prompt|lst)-.*"
#: Of costly tests with many cells those that are in the quick suite, as a pattern; their other cells are slow.
QUICK_CELLS = {
    "tests/backbones/families/test_blip_attention.py::test_generation_with_cache_and_beams": "kernel-vqa-3|absorbed-.*3",
    "tests/injection/test_methods.py::test_starts_as_the_frozen_model_and_trains_only_its_own": f"(?!{PEFTS_OWN})[^,]*",
    "tests/injection/test_methods.py::test_switches_disables_deletes_and_unloads": OF_EACH_KIND,
    "tests/injection/test_methods.py::test_generates_the_same_with_and_without_a_cache": OF_EACH_KIND,
    "tests/injection/test_methods.py::test_gradient_checkpointing_changes_no_gradient": OF_EACH_KIND,
    "tests/injection/test_methods.py::test_a_batch_of_several_adapters": OF_EACH_KIND,
    "tests/injection/test_methods.py::test_runs_in_a_bf16_trunk": OF_EACH_KIND,
    "tests/injection/test_methods.py::test_saves_exactly_its_own_and_loads_everywhere": f"(?!{PEFTS_OWN})[^,]*",
    "tests/cli/test_main.py::test_wrong_input_is_refused": "argv([0-9]|1[012])-.*",
    "tests/gpu_free/test_stored_type.py::test_types_on_a_gpu": "blip-vqa-decoder.*",
    "tests/verbs/test_new_tasks.py::test_a_run_keeps_what_it_needs_and_scores_the_same_again": "instruct",
    "tests/injection/test_methods.py::test_loads_with_transformers_alone": "(bottleneck|lora|prompt|mixed|cross_modal|full)-.*",
    "tests/injection/test_methods.py::test_loads_with_the_tensors_of_the_file_in_place": "(bottleneck|lora|prompt|mixed)-.*",
    "tests/training/test_interruptions.py::test_a_signal_saves_says_how_to_continue_and_continues": r".*\{\}",
    "tests/training/test_modes.py::test_recomputed_layers_are_compiled_unless_adapters_need_their_call": "cross_modal",
    "tests/backbones/families/test_chat.py::test_a_folder_loads_as_it_was_saved": "llava|florence2",
    "tests/backbones/families/test_composite.py::test_a_causal_model_gets_image_then_text": "(gpt2|llama)-clip|gpt2-features",
    "tests/backbones/families/test_composite.py::test_adapters_read_their_own_rows_image": "t5-.*",
    "tests/backbones/families/test_composite.py::test_full_size_is_built_without_weights": ".*0",
    "tests/backbones/families/test_vision_tower.py::test_features_are_those_of_transformers": "dinov2|convnext",
    "tests/backbones/test_lengths.py::test_composites_fit": "tokens-(gpt2|t5)|adapters-bart",
    "tests/backbones/test_loading.py::test_a_folder_loads_as_it_was_saved": "(blip|vilt)-vqa|(clip|siglip2_naflex|align)-retrieval",
    "tests/backbones/test_quantise.py::test_adapters_train_in_fp32_on_frozen_packed_weights": "bottleneck-4|lora-8",
    "tests/backbones/families/test_vilt_runs.py::test_what_it_cannot_do_is_said": "captioning",
    "tests/cli/test_compose.py::test_every_option_is_sound": ".*=(composite|fusion|mixed|smoke|joint)",
    "tests/config/checks/test_composites.py::test_any_vision_goes_with_any_language": "clip-(t5|gpt2)|.*s-bart|tiny_clip-bart",
    "tests/config/checks/test_composites.py::test_what_cannot_be_is_told": "overrides(1|4|5|7|9|10)-.*",
    "tests/gpu_free/test_bf16.py::test_a_task_is_trained_scored_again_and_asked": "llava-vqa",
    "tests/gpu_free/test_checkpointing.py::test_losses_and_gradients_are_equal_with_and_without_it": "blip2_opt|florence2|clip",
    "tests/gpu_free/test_kernels.py::test_a_forward_pass_is_on_one_device_and_does_not_wait": "clip-",
    "tests/gpu_free/test_pin.py::test_batches_can_be_pinned_kept_and_not": ".*(clip\\+gpt2|blip-|llava).*",
    "tests/gpu_free/test_ranks.py::test_an_image_that_one_process_cannot_read_is_told_by_all": "0-disk|1-off|1-memory",
    "tests/gpu_free/test_ranks.py::test_processes_that_disagree_train_the_same": "auto-clock-1|memory-memory-1",
    "tests/verbs/test_export.py::test_what_cannot_be_is_refused_with_what_can": "bottleneck-.*words0.*|lora-.*",
    "tests/injection/merging/test_exportable.py::test_what_changes_weights_goes_into_them": "(bitfit|task_lora)-blip.*",
    "tests/verbs/test_merge.py::test_every_method_of_peft_goes_into_the_weights": "lora|dora|ia3|oft|vera|lokr|miss|ln_tuning",
    "tests/verbs/test_new_tasks.py::test_wrong_queries_are_refused": ".*(choice needs|set question=|bad.jsonl).*",
    "tests/verbs/test_predict.py::test_wrong_queries_are_refused": "vqa-words[025].*|captioning.*|retrieval-words7.*",
    "tests/injection/test_attach.py::test_the_preset_is_small_and_quiet": "lora|ia3",
    "tests/injection/test_context.py::test_refused_by_name": "words[014].*",
    "tests/injection/merging/test_fuse.py::test_each_source_does_as_it_did_in_its_own_run": "overrides|hyperformer",
    "tests/injection/test_overrides.py::test_refused_by_name": ".*(visoin|dmi|four).*",
    "tests/injection/test_published.py::test_is_as_published": "(single|multiple) (adapters?|LoRA)|T5, (ladder|BitFit)",
    "tests/injection/test_saved.py::test_our_own_loading_refuses_them_for_every_method": "bottleneck.*|lora-overfull",
    "tests/injection/test_saved.py::test_tensors_that_do_not_fit_are_refused": "lacking.*|overfull-(load_adapter|transformers)",
    "tests/injection/test_sharing.py::test_refused_by_name": "words[0135].*",
    "tests/injection/test_sharing.py::test_what_a_design_ties_is_one_after_loading": "uniadapter.*",
    "tests/tasks/test_joint.py::test_counts": "options[02]-.*",
    "tests/tasks/test_table.py::test_learns_saves_loads_predicts_inspects": ".*(composite|vilt).*",
    "tests/tasks/test_tasks.py::test_an_adapter_in_a_shipped_backbone_overfits": "blip-vqa",
    "tests/tasks/test_segmentation.py::test_losses_and_scores_are_those_of_each_pixel": "convnext",
    "tests/tasks/test_segmentation.py::test_what_cannot_be_is_told": "words[23]-.*",
    "tests/training/prefix_cache/test_compute.py::test_the_course_of_a_training_is_the_same_to_the_last_bit": ".*CLIP.*",
    "tests/training/test_sample_cache.py::test_tasks_without_features_are_refused_by_name": "tip_adapter",
    "tests/training/test_interruptions.py::test_killed_at_random_steps": r"\{\}",
    "tests/verbs/test_train.py::test_a_finished_folder_is_not_overwritten": "vqa",
    "tests/verbs/test_train.py::test_evaluating_again_gives_the_same": "retrieval",
    "tests/verbs/test_train.py::test_the_adapter_loads_with_peft_alone_and_gives_the_same": "vqa",
    "tests/verbs/test_train.py::test_the_folder_holds_everything": "vqa",
}

CONF = Path(__file__).resolve().parent.parent / "conf"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (10, 10, 10)}


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """A model's YAML as the typed configuration."""
    return _typed(ModelConfig, _model(CONF / "model" / f"{name}.yaml"), overrides)


def adapter_config(name: str, **overrides: Any) -> AdapterConfig:
    """A method's YAML as the typed configuration: `adapter=NAME` with overrides."""
    return _typed(AdapterConfig, _adapter(name), overrides)


def _typed(schema: type, values: dict[str, Any], overrides: dict[str, Any]) -> Any:
    """A configuration of one's own, typed once: that takes long, and the cells are thousands."""
    register_resolvers()
    key = (schema, repr(values), repr(overrides))
    if key not in _TYPED:
        _TYPED[key] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), _over(values, overrides)))
    return copy.deepcopy(_TYPED[key])


_TYPED: dict[tuple[type, str, str], Any] = {}


def _over(base: dict[Any, Any], top: dict[Any, Any]) -> dict[Any, Any]:
    """Values laid over others, those below each key, too."""
    both = {
        k: _over(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in top.items()
    }
    return {**base, **both}


@cache
def _read(file: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]


@cache
def _model(file: Path) -> dict[str, Any]:
    """A model's YAML over those it extends, the groups that it takes in among them."""
    own = dict(_read(file))
    values: dict[str, Any] = {}
    for entry in own.pop("defaults", []):
        group, option = (".", entry) if isinstance(entry, str) else next(iter(entry.items()))
        if (base := file.parent / group / f"{option}.yaml").is_file():
            values = _over(values, _model(base))
    return _over(values, own)


@cache
def _adapter(name: str) -> dict[str, Any]:
    """A method's YAML over those it extends."""
    own = dict(_read(CONF / "adapter" / f"{name}.yaml"))
    values: dict[str, Any] = {}
    for entry in own.pop("defaults", []):
        option, _, place = entry.partition("@")  # lora@components.vision: a component of a mixed method
        if option not in ("adapter_schema", "_self_"):
            layer = _adapter(option)
            for key in reversed(place.split(".") if place else []):
                layer = {key: layer}
            values = _over(values, layer)
    return _over(values, own.get("adapter", own))


def small_config(name: str) -> ModelConfig:
    """A family's architecture at a size that builds in milliseconds, with random weights."""
    tasks = {task: {"config": settings} for task, settings in BY_TASK.get(name, {}).items()}
    return model_config(name, random_init=True, config=SETTINGS[name], tasks=tasks)


def copied(backbone: Backbone) -> Backbone:
    """A backbone of its own. What reads texts and images for it is the same for all: no test changes that."""
    return copy.deepcopy(backbone, {id(backbone.processor): backbone.processor})


class Plain:
    """A picture held in memory: one colour with an inverted corner, so that no two are equal."""

    def __init__(self, colour: tuple[int, int, int], mark: int) -> None:
        self.colour, self.mark = colour, mark

    @property
    def key(self) -> str:
        return f"{self.colour}-{self.mark}"

    def load(self) -> Image.Image:
        pixels = np.full((32, 32, 3), self.colour, dtype=np.uint8)
        corner = slice(0, 8 + 8 * self.mark)
        pixels[corner, corner] = 255 - pixels[corner, corner]
        return Image.fromarray(pixels)


class Corner(Plain):
    """The mask of such a picture: 1 for its corner, 0 for the rest, and a row between them that is ignored."""

    def ids(self) -> np.ndarray:
        found = np.zeros((32, 32), dtype=np.int32)
        side = 8 + 8 * self.mark
        found[:side, :side] = 1
        found[side, : side + 1] = 255
        return found


def make_samples() -> list[Sample]:
    """Eight samples that are good for every task: four colours, two marks."""
    return [
        Sample(
            id=f"{name}-{mark}",
            image=Plain(rgb, mark),
            question="what colour is it?" if mark else "is it red?",
            answers=(name,) if mark else ("yes" if name == "red" else "no",),
            captions=(f"a {name} picture number {mark}", f"picture {mark} is {name}"),
            label=name,
            mask=Corner(rgb, mark),
            turns=(Turn("what colour is it?", f"it is {name}."), Turn("and its mark?", f"mark {mark}."))[: 1 + mark],
        )
        for name, rgb in COLOURS.items()
        for mark in (0, 1)
    ]


@pytest.fixture
def samples() -> list[Sample]:
    return make_samples()


MISSING = pages.missing  # as it is: for the tests of reports


@pytest.fixture(scope="session", autouse=True)
def _runs_end_without_a_report() -> Iterator[None]:
    """A report takes a second, and the trainings of other tests are hundreds."""
    pages.missing = lambda: ["nothing, but this is no test of reports"]
    yield
    pages.missing = MISSING


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written, at the end of runs, too."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pages, "missing", MISSING)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are empty, which is most of the time that a report takes."""
    from markupsafe import Markup

    from vlatrain.reporting.pages import figures

    empty = Markup('<svg role="img" aria-label="{}"></svg>')
    monkeypatch.setattr(figures, "_svg", lambda figure, title: empty.format(title))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, whose client may write to it; and an empty working folder but for `photo.jpg`."""
    with serving() as found:
        client_of(found, tmp_path / "home", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (40, 30), "red").save("photo.jpg")
        yield found


@pytest.fixture(scope="session", autouse=True)
def _shipped_files_are_parsed_once() -> Iterator[None]:
    """Hydra parses each file of a composition anew, which takes a fourth of its time; these do not change."""
    parse, parsed = OmegaConf.load, {}

    def load(file: Any) -> Any:
        name = str(getattr(file, "name", file))
        if not name.startswith(str(CONF)):
            return parse(file)
        if name not in parsed:
            parsed[name] = parse(file)
        return copy.deepcopy(parsed[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load)
        yield


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a run writes into the working folder is not left in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name, _, cell = item.nodeid.partition("[")
        if name in QUICK_CELLS and not re.fullmatch(QUICK_CELLS[name], cell.removesuffix("]")):
            item.add_marker(pytest.mark.slow)
    # last: with the device guard of fake CUDA there, a backward pass starts threads, and then no process can be forked
    items.sort(key=lambda item: item.nodeid.startswith(FAKE_CUDA))


def pytest_collection_finish() -> None:
    """What the imports and the collection have made stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
