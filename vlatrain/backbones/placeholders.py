"""Where the image's states go among a text's tokens, found without the host waiting for the device.

transformers counts the image's tokens in every call, and compares them with the states, for which the host waits twice. How many
there are is decided by the processor and the tower, which do not change: the first call is checked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.models.paligemma.modeling_paligemma import PaliGemmaModel


class _CheckedOnce:
    """Before a model in the order of methods.

    Attributes:
        checked: whether a call has been, and the places were those of the token that marks them.
    """

    config: Any
    checked = False

    def get_placeholder_mask(self, input_ids: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """The places, (B, L, 1)."""
        own = None if input_ids is None else (input_ids == self.config.image_token_id).unsqueeze(-1)
        if self.checked and own is not None:
            return own
        found = super().get_placeholder_mask(input_ids, *args, **kwargs)  # type: ignore[misc]
        self.checked = own is not None and not own.is_meta and torch.equal(found, own)
        return found


class _Llava(_CheckedOnce, LlavaModel):
    pass


class _PaliGemma(_CheckedOnce, PaliGemmaModel):
    pass


ONCE: dict[type[nn.Module], type[nn.Module]] = {LlavaModel: _Llava, PaliGemmaModel: _PaliGemma}
