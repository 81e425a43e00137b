"""A batch whose rows have adapters of their own: whether the names fit the call, and the heads that were trained with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from vlatrain.injection.context import BASE, Context, context_of, rows

# they have a row for each sample, whatever else a model takes
INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids")
EXPANDING = ("num_beams", "num_return_sequences")  # generation makes so many rows of one


@contextmanager
def named_rows(
    model: nn.Module, names: Sequence[str], known: set[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Mix adapters in one call of a model or of its `generate`. The words of the errors are those of PEFT's LoRA.

    Args:
        model: the model.
        names: for each row the name of its adapter, `__base__` for none.
        known: the adapters that there are.
        args: what the call is given by position.
        kwargs: what it is given by name.

    Raises:
        ValueError: a name that no adapter has, or not a name for each row.
    """
    if unknown := sorted({*names} - known - {BASE}):
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; there are {', '.join(sorted(known))}, and "
            f"{BASE} for none"
        )
    if (count := _rows_of(args, kwargs)) not in (None, len(names)):
        raise ValueError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {len(names)} and {count} respectively."
        )
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                handle = module.register_forward_pre_hook(partial(_with_names, context_of(model)), with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(rows(model, names, _repeats(model, kwargs)))
        yield


def _rows_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Rows of the batch that a model is called with; None if it cannot be told."""
    given = [*(kwargs.get(name) for name in INPUTS), *args[:1], kwargs.get("pixel_values")]
    return next((len(value) for value in given if isinstance(value, Tensor)), None)


def _repeats(model: nn.Module, kwargs: Mapping[str, Any]) -> frozenset[int]:
    """How many rows a call may make of one: itself, and in generation its beams or samples."""
    settings = [kwargs.get("generation_config"), *(getattr(m, "generation_config", None) for m in model.modules())]
    asked = [kwargs.get(key) or getattr(own, key, None) for key in EXPANDING for own in settings]
    return frozenset({1, *(number for number in asked if isinstance(number, int))})


def _with_names(
    context: Context, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pre-hook of a trained head: each row its own adapter's, or the frozen one where that has none. Calls of other threads, which
    name no rows, are as they were."""
    if not (names := context.call.rows):
        return None
    times = max(len(args[0]) // len(names), 1)
    own = [name if name in module.modules_to_save else BASE for name in names for _ in range(times)]
    return args, {**kwargs, "adapter_names": own}
