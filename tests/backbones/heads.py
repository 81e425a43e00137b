"""That descriptions know the heads of attention as its modules have them."""

from __future__ import annotations

from torch import nn

from vlatrain.injection.peft_method import inputs_of, width_of
from vlatrain.injection.points import Place

SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim")  # what transformers calls the size of a head


def assert_heads(model: nn.Module, place: Place) -> None:
    """The query of a self-attention has as many heads as described, each of the size that the attention itself says; of keys and
    values there are as many, or fewer that serve groups."""
    modules = {role: model.get_submodule(path) for role, path in place.modules.items()}
    path = place.modules.get("query") or place.modules["qkv"]
    attention = model.get_submodule(path.rpartition(".")[0])
    query = width_of(modules["query"]) if "query" in modules else width_of(modules["qkv"]) // 3
    size = next((getattr(attention, name) for name in SIZES if hasattr(attention, name)), query // place.heads)
    assert query == place.heads * size == inputs_of(modules["out"]), path
    for role in ("key", "value"):
        if role in modules:
            groups, rest = divmod(width_of(modules[role]), size)
            assert rest == 0, path
            assert place.heads % groups == 0, path
