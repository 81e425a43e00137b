"""What a model that is run on shapes alone (the meta device) would hold in memory."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
