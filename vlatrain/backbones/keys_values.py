"""How much a search for texts keeps: keys and values of all tokens so far, and of what they attend to, in each layer."""

from __future__ import annotations

from torch import Tensor, nn

from vlatrain.backbones.base import Backbone, Context


def kept_in_search(backbone: Backbone, context: Context, beams: int, new: int) -> int:
    """The numbers (not bytes) that the keys and values of a whole batch have when the last token is written.

    Args:
        backbone: a `Generator`.
        context: what the texts are written from.
        beams: texts that are followed for each row.
        new: tokens that are written.
    """
    tower = backbone.config.towers[backbone.config.tasks[backbone.task].output_towers[-1]]
    crosses = "cross" in tower.sites
    rows = len(next(iter(context.values())))
    given = context["states"].shape[1] if crosses else _given(backbone, context)
    total = 0
    for layer in backbone.model.get_submodule(tower.layers).children():
        for name, site in tower.sites.items():
            widths = [_width(layer, site.modules[role]) for role in ("key", "value") if role in site.modules]
            width = sum(widths) or (2 * _width(layer, site.modules["qkv"]) // 3 if "qkv" in site.modules else 0)
            if name == "cross":
                total += width * given * rows * (1 if backbone.shares_beams else beams)
            else:
                total += width * rows * beams * (new + (0 if crosses else given))
    return total


def _given(backbone: Backbone, context: Context) -> int:
    """Tokens of the sequence that a causal model goes on from, the image's among them."""
    ids: Tensor = context["input_ids"] if "input_ids" in context else context["ids"]
    seen = context["visual"].shape[1] if getattr(backbone, "shows", False) else 0
    return ids.shape[1] + seen


def _width(layer: nn.Module, path: str) -> int:
    module = layer.get_submodule(path) if path else layer
    features: int = getattr(module, "out_features", 0) or getattr(module, "nf", 0)  # GPT-2's layers count them so
    return features
