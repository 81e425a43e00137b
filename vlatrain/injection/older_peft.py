"""What PEFT before 0.21 lacks: a tuner that says how its tensors are named where they are saved. (It takes an adapter's name out of
those names only where it stands next to the end.) This file goes when the package's range begins with 0.21.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import peft.functional
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import save_and_load
from torch import Tensor

CURRENT = hasattr(BaseTuner, "_remove_adapter_name_from_key")

if TYPE_CHECKING or CURRENT:
    Tuner = BaseTuner
else:

    class Tuner(BaseTuner):
        """PEFT's base class with the two methods of 0.21 by which names are translated."""

        @classmethod
        def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
            return key

        @classmethod
        def _remap_adapter_state_dict_for_load(
            cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            named = {cls._remove_adapter_name_from_key(name, adapter_name): name for name in model.state_dict()}
            return {named.get(key, key): tensor for key, tensor in state_dict.items()}


def name_tensors(method: str, tuner: Any, key_prefix: str) -> None:
    """Have PEFT before 0.21 ask a tuner how its tensors are named, as 0.21 does by itself.

    Args:
        method: PEFT's name of the method.
        tuner: its class, a `Tuner`.
        key_prefix: what stands before an adapter's name in the names of its tensors.
    """
    if CURRENT:
        return
    get, put = save_and_load.get_peft_model_state_dict, save_and_load.set_peft_model_state_dict

    @wraps(get)
    def saved(model: Any, state_dict: Any = None, adapter_name: str = "default", **kwargs: Any) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = get(model, state_dict, adapter_name, **kwargs)
        if model.peft_config[adapter_name].peft_type != method:
            return tensors
        # those of an adapter whose name has this one in it are among them; of a parameter of a unit itself the name is out already
        others = model.peft_config.keys() - {adapter_name}
        own = {
            name: tensor
            for name, tensor in tensors.items()
            if name.partition(f"{key_prefix}.")[2].partition(".")[0] not in others
        }
        return {tuner._remove_adapter_name_from_key(name, adapter_name): tensor for name, tensor in own.items()}

    @wraps(put)
    def loaded(model: Any, peft_model_state_dict: Any, adapter_name: str = "default", **kwargs: Any) -> Any:
        config = model.peft_config[adapter_name]
        if config.peft_type == method:  # PEFT names them by itself; this lets the tuner refuse some
            own = {name: tensor for name, tensor in peft_model_state_dict.items() if key_prefix in name}
            tuner._remap_adapter_state_dict_for_load(model, config, adapter_name, own)
        return put(model, peft_model_state_dict, adapter_name, **kwargs)

    for module in (peft, peft.functional, peft.peft_model, peft.utils, save_and_load):
        for original, ours in ((get, saved), (put, loaded)):
            if getattr(module, original.__name__, None) is original:
                setattr(module, original.__name__, ours)
