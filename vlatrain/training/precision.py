"""Device and precision of a run, and the `accelerate` object that carries them."""

from __future__ import annotations

import atexit
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from vlatrain.config import TrainerConfig, UserError
from vlatrain.training.processes import Agreed, gather

OTHERS = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # what shares the weights themselves, as accelerate calls it
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str) -> torch.device:
    """The device of `trainer.device`: auto takes a GPU if there is one, NVIDIA's (or AMD's) before Apple's.

    Raises:
        UserError: a GPU is asked for and there is none, or the name is unknown.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"trainer.device={device} is unknown; there are auto, cpu, cuda, mps")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("trainer.device=mps: torch sees no GPU of Apple's here; use trainer.device=auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda: torch sees no GPU here; use trainer.device=cpu, or install torch for it")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if device != "cpu" and torch.backends.mps.is_available() else "cpu")


def own(device: torch.device) -> torch.device:
    """Of the GPUs that this process sees, its own: where `CUDA_VISIBLE_DEVICES` shows each process another one, the only one."""
    if device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))


def refuse_shared(device: torch.device) -> None:
    """Refuse processes that share a GPU, which cannot exchange gradients (NCCL).

    Raises:
        UserError: which of them do; in all processes.
    """
    names = gather(str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None)
    shared = [name for name in dict.fromkeys(names) if name is not None and names.count(name) > 1]
    if shared:
        groups = [" and ".join(str(n) for n, name in enumerate(names) if name == one) for one in shared]
        raise Agreed(
            f"processes {', '.join(groups)} share a GPU: start at most as many as there are GPUs, or show each another one "
            "by CUDA_VISIBLE_DEVICES"
        )


def choose_precision(precision: str, device: torch.device) -> str:
    """fp32, bf16 or fp16, from `trainer.precision`: auto is fp32 on CPU; on a GPU bf16 where it can, else fp16; on Apple's bf16
    from macOS 14 on, else fp32, as its losses cannot be scaled.

    Raises:
        UserError: fp16 on CPU or on Apple's GPU, bf16 on a GPU without it, or an unknown name.
    """
    if precision not in ("auto", *DTYPES):
        raise UserError(f"trainer.precision={precision} is unknown; there are auto, {', '.join(DTYPES)}")
    gpu = device.type == "cuda"
    if device.type == "mps":
        able = torch.backends.mps.is_macos_or_newer(14, 0)
        if precision == "fp16" or (precision == "bf16" and not able):
            way = "use bf16 or fp32" if able else "use fp32; bf16 needs macOS 14"
            raise UserError(f"trainer.precision={precision} cannot be had on trainer.device=mps: {way}")
        return precision if precision != "auto" else "bf16" if able else "fp32"
    if precision == "auto":
        return "fp32" if not gpu else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and not gpu:
        raise UserError("trainer.precision=fp16 needs a GPU; on a CPU use fp32 (exact) or bf16")
    if precision == "bf16" and gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("trainer.precision=bf16: this GPU has no bfloat16; use fp16")
    return precision


def refuse_without_effect(config: TrainerConfig, device: torch.device, precision: str) -> None:
    """Refuse what only a GPU does, or only a type below fp32.

    Args:
        config: the configuration of the loop.
        device: of the run.
        precision: what `choose_precision` returned.

    Raises:
        UserError: `trainer.low_norms` on a CPU or in fp32, `trainer.tf32` on a CPU.
    """
    problems = []
    if config.low_norms and (device.type == "cpu" or precision == "fp32"):
        problems.append("trainer.low_norms=true changes nothing but on a GPU in bf16 or fp16: leave it out")
    if config.tf32 and device.type != "cuda":
        problems.append("trainer.tf32=true changes nothing but on a GPU: leave it out")
    if problems:
        raise UserError(problems)


def set_torch(config: TrainerConfig) -> None:
    """Let torch compute with `trainer.threads` threads of the CPU, where they are chosen, with TF32 only by `trainer.tf32`, and by
    deterministic kernels alone with `trainer.deterministic`."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32  # torch's own default is to round in convolutions
    if config.threads:
        torch.set_num_threads(config.threads)


@contextmanager
def naming_undetermined() -> Iterator[None]:
    """While entered, an operation without a deterministic kernel, where only those are to be had, is an error of the user's."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not torch.are_deterministic_algorithms_enabled() or "determinis" not in text:
            raise
        what = text.split(" ")[0] if "does not have a deterministic" in text else text.split(". ")[0]
        raise UserError(
            f"trainer.deterministic=true: {what} has no deterministic kernel here: leave it out, or use trainer.device=cpu"
        ) from error


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """The `Accelerator` of a run: device, autocast, loss scaling, and the other processes if the launcher started
    several.

    May be called again in the same process with other settings (a sweep's next job).

    Raises:
        UserError: see `choose_device` and `choose_precision`; processes that share a GPU; a launcher that is set to share the
            weights, which `trainer.shard` does.
    """
    for name in OTHERS:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UserError(
                f"accelerate is set to {name}, which has no effect here: use torchrun or accelerate launch --multi_gpu, with "
                "trainer.shard=true where the processes are to hold the frozen weights together"
            )
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    set_torch(config)
    # accelerate keeps the settings of the first object for all later ones; the process group, if any, stays
    alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if alone:
        PartialState._reset_state()
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
    )
    if alone and accelerator.num_processes > 1:  # a process that just ends now and then makes the others abort
        atexit.register(torch.distributed.destroy_process_group)
    if accelerator.num_processes > 1:
        refuse_shared(accelerator.device)
    return accelerator


def join_processes(config: TrainerConfig) -> None:
    """Meet the other processes, if a launcher started several: before anything can go wrong in one of them.

    Raises:
        UserError: see `make_accelerator`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        make_accelerator(config)


def reset_process_peak() -> None:
    """Let the peak of the process's memory be what is resident now, where the system can (Linux): a job before had its own."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring anew, where that is possible (a GPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far, in MB (10^6 bytes): allocated on the GPU, or resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "mps":  # what its driver has given: it keeps that for the next time
        return torch.mps.driver_allocated_memory() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of forward passes outside the loop, for a precision that `choose_precision` returned."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
