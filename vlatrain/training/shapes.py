"""Running a model on shapes alone (the meta device), for what it costs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Shapes(TorchFunctionMode):
    """Lets code run on shapes that looks at values: all masks are full, and what has values meets what has none."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func is torch.Tensor.__bool__ or (func is torch.Tensor.item and _is_mask(own)):
            return True
        if func is torch.Tensor.__getitem__ and own is not None and _is_mask(args[1]):
            return own.flatten(0, args[1].ndim - 1)
        if func is torch.Tensor.tolist and hasattr(own, "counted"):
            return [own.counted] * len(own)  # type: ignore[union-attr,arg-type]
        try:
            found = func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "not on the expected device" not in str(error):
                raise
            args, kwargs = tree_map_only(torch.Tensor, lambda value: value.to("meta"), (args, kwargs))
            found = func(*args, **(kwargs or {}))
        if func is torch.Tensor.sum and own is not None and _is_mask(own):
            found.counted = own.numel() // found.numel()
        return found


def _is_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and value.dtype == torch.bool


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that code makes: those alive now, and the most that ever were.

    What was there before (weights) is not counted, nor are views of it.

    Attributes:
        now: bytes alive.
        peak: the most of them so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._meet(tensor, counted=False)
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            self._meet(tensor, counted=True)
        return found

    def _meet(self, tensor: Any, counted: bool) -> None:
        if not isinstance(tensor, Tensor) or tensor.is_sparse:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0

        def gone(_: weakref.ref[Any]) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
