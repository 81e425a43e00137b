"""Device and precision of a run, and the `accelerate` object that carries them."""

from __future__ import annotations

import atexit
import os
import resource
import sys

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from vlatrain.config import TrainerConfig, UserError
from vlatrain.tasks.base import Batch, Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str) -> torch.device:
    """The device of `trainer.device`: auto takes a GPU if there is one.

    Raises:
        UserError: a GPU is asked for and there is none, or the name is unknown.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"trainer.device={device} is unknown; there are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda: torch sees no GPU here; use trainer.device=cpu, or install torch for it")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def own(device: torch.device) -> torch.device:
    """Of several GPUs, the one of this process."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


def choose_precision(precision: str, device: torch.device) -> str:
    """fp32, bf16 or fp16, from `trainer.precision`: auto is fp32 on CPU; on a GPU bf16 where it can, else fp16.

    Raises:
        UserError: fp16 on CPU, bf16 on a GPU without it, or an unknown name.
    """
    if precision not in ("auto", *DTYPES):
        raise UserError(f"trainer.precision={precision} is unknown; there are auto, {', '.join(DTYPES)}")
    gpu = device.type == "cuda"
    if precision == "auto":
        return "fp32" if not gpu else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and not gpu:
        raise UserError("trainer.precision=fp16 needs a GPU; on a CPU use fp32 (exact) or bf16")
    if precision == "bf16" and gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("trainer.precision=bf16: this GPU has no bfloat16; use fp16")
    return precision


def set_torch(config: TrainerConfig) -> None:
    """Let torch compute with `trainer.threads` threads of the CPU, where they are chosen, and with TF32 only by `trainer.tf32`."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32  # torch's own default is to round in convolutions
    if config.threads:
        torch.set_num_threads(config.threads)


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """The `Accelerator` of a run: device, autocast, loss scaling, and the other processes if the launcher started
    several.

    May be called again in the same process with other settings (a sweep's next job).

    Raises:
        UserError: see `choose_device` and `choose_precision`.
    """
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
        # an adapter that a task leaves unused gets no gradient, and nobody should wait for it
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if alone and accelerator.num_processes > 1:  # a process that just ends now and then makes the others abort
        atexit.register(torch.distributed.destroy_process_group)
    return accelerator


class Stepper(nn.Module):
    """A task's loss as a module's forward pass, which is where DDP and autocast take hold."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch: a scalar."""
        return self.task.loss(batch)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring anew, where that is possible (a GPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far, in MB (10^6 bytes): allocated on the GPU, or resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of forward passes outside the loop, for a precision that `choose_precision` returned."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
