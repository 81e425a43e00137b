from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests.training.conftest import make_config
from vlatrain.config import TrainerConfig, UserError
from vlatrain.training.fitting import SHARE, room_on
from vlatrain.training.precision import (
    autocast,
    choose_device,
    choose_precision,
    make_accelerator,
    naming_undetermined,
    peak_memory_mb,
    refuse_without_effect,
    reset_process_peak,
    set_torch,
)

CPU, GPU, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.mark.parametrize(
    ("precision", "device", "has_bf16", "expected"),
    [
        ("auto", CPU, False, "fp32"),
        ("auto", GPU, True, "bf16"),
        ("auto", GPU, False, "fp16"),
        ("bf16", CPU, False, "bf16"),
        ("bf16", GPU, True, "bf16"),
        ("fp16", GPU, False, "fp16"),
        ("fp32", GPU, True, "fp32"),
        ("bf16", GPU, False, "this GPU has no bfloat16; use fp16"),
        ("fp16", CPU, False, "fp16 needs a GPU"),
        ("half", CPU, False, "half is unknown; there are auto, fp32, bf16, fp16"),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: torch.device, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    if " " in expected:
        with pytest.raises(UserError, match=expected):
            choose_precision(precision, device)
    else:
        assert choose_precision(precision, device) == expected


@pytest.mark.parametrize(
    ("settings", "device", "precision", "refused"),
    [
        ({"low_norms": True}, CPU, "bf16", "low_norms"),
        ({"low_norms": True}, GPU, "fp32", "low_norms"),
        ({"low_norms": True}, GPU, "fp16", ""),
        ({"tf32": True}, CPU, "fp32", "tf32"),
        ({"tf32": True}, GPU, "fp32", ""),
    ],
)
def test_what_has_no_effect_is_refused(
    settings: dict[str, bool], device: torch.device, precision: str, refused: str
) -> None:
    expected = pytest.raises(UserError, match=f"^trainer.{refused}=true changes nothing but on a GPU")
    with expected if refused else nullcontext():
        refuse_without_effect(TrainerConfig(**settings), device, precision)


@pytest.mark.parametrize(
    ("precision", "macos", "expected"),
    [("auto", 14, "bf16"), ("auto", 13, "fp32"), ("bf16", 14, "bf16"), ("fp32", 13, "fp32"), ("bf16", 13, "needs macOS 14"),
     ("fp16", 14, "use bf16 or fp32")],
)  # fmt: skip
def test_precision_on_apples(monkeypatch: pytest.MonkeyPatch, precision: str, macos: int, expected: str) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major)
    if " " in expected:
        with pytest.raises(UserError, match=expected):
            choose_precision(precision, MPS)
    else:
        assert choose_precision(precision, MPS) == expected
        assert autocast(MPS, expected).device == "mps"


def test_apples_gpu_is_taken_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3_000_000)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16e9)
    assert choose_device("auto") == choose_device("mps") == MPS
    assert choose_device("cpu") == CPU
    assert peak_memory_mb(MPS) == 3.0
    assert room_on(MPS) == SHARE * 16e9
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == GPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="Apple's"):
        choose_device("mps")


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(UserError, match="torch sees no GPU"):
        choose_device("cuda")
    with pytest.raises(UserError, match="tpu is unknown"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == GPU


def test_ways_to_share_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="accelerate is set to FSDP, which has no effect here"):
        make_accelerator(make_config().trainer)


def test_bf16_on_a_cpu_trains_with_adapters_and_trunk_in_fp32(small: SimpleNamespace) -> None:
    loop = small.loop(config=make_config(precision="bf16"))
    types = set()
    loop.model.layers[0].linear.register_forward_hook(lambda module, args, output: types.add(output.dtype))
    result = loop.run()
    assert types == {torch.bfloat16}
    assert result.precision == "bf16"
    assert {parameter.dtype for parameter in loop.model.parameters()} == {torch.float32}
    full = small.loop("fp32").run()  # the next job of a sweep, in the same process
    assert full.precision == "fp32"


@pytest.mark.parametrize("tf32", [False, True])
def test_fp32_is_rounded_only_when_asked_for(tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    set_torch(make_config(tf32=tf32).trainer)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32
    set_torch(make_config().trainer)


def test_gradient_checkpointing_trains_to_the_same_weights(small: SimpleNamespace) -> None:
    plain, recomputed = small.loop("a"), small.loop("b", config=make_config(gradient_checkpointing=True))
    plain.run()
    recomputed.run()
    assert recomputed.model.layers[0].calls > plain.model.layers[0].calls
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter, recomputed.parameters[name])


def test_autocast_and_memory() -> None:
    with autocast(CPU, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert 10 < peak_memory_mb(CPU) < 1e6


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot reset a process's peak")
def test_the_peak_of_a_job_is_not_that_of_the_job_before() -> None:
    before = bytearray(300_000_000)
    before[::4096] = b"1" * len(before[::4096])  # touched, so that it is resident
    high = peak_memory_mb(torch.device("cpu"))
    del before
    reset_process_peak()
    assert peak_memory_mb(torch.device("cpu")) < high - 250


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    yield
    set_torch(TrainerConfig())


def test_deterministic_kernels_are_asked_for(torch_as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_torch(TrainerConfig(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_torch(TrainerConfig())
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_an_operation_without_such_a_kernel_is_named(torch_as_before: None) -> None:
    text = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."
    with pytest.raises(RuntimeError, match=r"^adaptive"), naming_undetermined():
        raise RuntimeError(text)
    set_torch(TrainerConfig(deterministic=True))
    with (
        pytest.raises(UserError, match=r"deterministic=true: adaptive_avg_pool2d_backward_cuda has no"),
        naming_undetermined(),
    ):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match=r"^shapes differ"), naming_undetermined():
        raise RuntimeError("shapes differ")
