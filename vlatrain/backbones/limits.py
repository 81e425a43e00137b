"""What the processor of a backbone cannot take: images of some shapes.

Of the families here, Qwen's image processors refuse sides of more than 200 : 1, and ViLT's those of which the shorter one becomes
less than a patch (about 20 : 1 as published). The others take any shape.
"""

from __future__ import annotations

from PIL import Image

from vlatrain.backbones.base import Backbone

SIDE = 2000  # pixels of the longer side by which the narrowest image that is taken is found


def refusal(backbone: Backbone, image: Image.Image) -> str:
    """Why the image processor cannot take an image, in its own words; empty if it can."""
    if backbone.image_processor is None:
        return ""
    try:
        backbone.image_processor(images=[image], return_tensors="pt", **backbone.image_options)
    except Exception as error:  # each processor has its own
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def widest_ratio(backbone: Backbone) -> float | None:
    """The most that an image's longer side may be of the shorter one; None where that is not what the processor goes by."""
    refused, taken = 0, SIDE  # pixels of the shorter side
    if refusal(backbone, Image.new("RGB", (SIDE, SIDE))) or not refusal(backbone, Image.new("RGB", (SIDE, 1))):
        return None
    while taken - refused > 1:
        middle = (refused + taken) // 2
        if refusal(backbone, Image.new("RGB", (SIDE, middle))):
            refused = middle
        else:
            taken = middle
    return SIDE / taken
