"""Visual grounding by a head: the box of what an expression names, or those of all things of a class.

The head (`vlatrain.backbones.box_head`) says of each cell of the image's grid how likely the box lies on it, and the box. Of one
box, these are averaged, by softmax over the cells; of several, each cell is one, by sigmoid, and non-maximum suppression leaves
the surest of those that overlap (by half, as in R-CNN; Girshick et al., CVPR 2014).

The losses are DETR's of boxes (Carion et al., ECCV 2020): 5 times L1 of centre and sides and 2 times 1 - GIoU; for one of the
average, for several of every cell that lies in a box, as in FCOS (Tian et al., ICCV 2019), with the smallest box of several. To
these comes that of the cells: cross-entropy with the cells in the box, or RetinaNet's focal loss (Lin et al., ICCV 2017). A box
between the centres of cells is that of the nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vlatrain.backbones.base import Backbone, Grounder
from vlatrain.backbones.box_head import BoxHead, cells, corners
from vlatrain.config import TaskConfig, UserError
from vlatrain.data.images import upright_size
from vlatrain.data.sample import Sample
from vlatrain.metrics import grounding as metric
from vlatrain.metrics.grounding import Box, giou, iou
from vlatrain.tasks.base import Asking, Batches, Evaluation, Found, ImageBatch, Task
from vlatrain.tasks.lengths import Use, question_use
from vlatrain.tasks.yardsticks import Baseline, Yardsticks, question_lengths

L1, GIOU = 5.0, 2.0  # DETR's weights of the losses
FOCUS, BALANCE = 2.0, 0.25  # RetinaNet's gamma and alpha
OVERLAP = 0.5  # IoU from which the less sure of two boxes is left out
MOST = 100  # boxes of an image, as many as COCO's evaluation counts


class GroundingBatch(ImageBatch, total=False):
    """Images, expressions, and what they name.

    Attributes:
        boxes: (B, K, 4) left, top, right, bottom in shares of the image, padded.
        there: (B, K) whether each is one.
        sizes: of each image the width and height in pixels.
        taken: the same as the model takes it, where it writes boxes.
    """

    boxes: Tensor
    there: Tensor
    sizes: Sequence[tuple[int, int]]
    taken: Sequence[tuple[int, int]]


class GroundingScores(Task):
    """What both ways of grounding have in common: metrics, baselines, records."""

    def questions(self, samples: Sequence[Sample]) -> GroundingBatch:
        """Images and expressions."""
        return {
            "ids": [sample.id for sample in samples],
            "inputs": self.inputs(samples, asked=True),
            "sizes": [upright_size(sample.image) for sample in samples],
        }

    def scored(
        self, samples: Sequence[Sample], answers: Sequence[Sequence[Found]], settings: Mapping[str, Any]
    ) -> Evaluation:
        """The scores of what was found in samples, boxes in pixels, the surest first."""
        sizes = [upright_size(sample.image) for sample in samples]
        predicted = [
            [(shares(one.box, size), one.score) for one in own if one.box]
            for own, size in zip(answers, sizes, strict=True)
        ]
        scores = metric.score(predicted, [sample.boxes for sample in samples], self.config.several)
        predictions = [
            {
                "id": sample.id,
                "question": sample.question,
                "prediction": [list(one.box) for one in own if one.box],
                "scores": [round(one.score, 4) for one in own],
                "references": [list(pixels(box, size)) for box in sample.boxes],
                "score": 100.0 * fit,
            }
            for sample, own, size, fit in zip(samples, answers, sizes, scores.per_sample, strict=True)
        ]
        expressions = [sample.question for sample in samples]
        kinds = {"question_words": question_lengths(expressions)}
        if self.config.several:  # classes
            kinds["question"] = expressions
        shown = ["ap_50"] if self.config.several else ["accuracy", "mean_iou"]
        return Evaluation(
            scores.metrics,
            {"box": "left, top, right, bottom in pixels of the upright image", **settings},
            predictions,
            scores.statistics,
            [len(samples)],
            self.groupings(samples, shown, **kinds),
        )

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """The mean box."""
        boxes = [box for sample in train for box in sample.boxes]
        return {"box": list(metric.mean_box(boxes))} if boxes else {}

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """The box in the middle of the image, and the mean one of the training data."""
        known = {"centre_box": (metric.CENTRE, "always the middle, half as wide and as high as the image")}
        if box := constants.get("box"):
            known["mean_box"] = (cast(Box, tuple(box)), "always the box of the mean centre and sides")
        references = [sample.boxes for sample in samples]
        return Yardsticks(
            {
                name: Baseline(
                    metric.score([[(box, 1.0)]] * len(samples), references, self.config.several).metrics, says
                )
                for name, (box, says) in known.items()
            }
        )

    def uses(self) -> list[Use]:
        """Expressions, which are read."""
        return [question_use(self.backbone)]


class Grounding(GroundingScores):
    """Grounding on a `Grounder` backbone, by its head.

    Args:
        config: its settings.
        backbone: the backbone.
        train: the training samples.

    Raises:
        UserError: the backbone has no states to ask, or a training sample has other boxes than one where one is found.
    """

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        if not isinstance(backbone, Grounder) or not backbone.has_grid:
            raise UserError(
                f"model={backbone.config.name}: has no states of a square grid of patches, which task={config.name} asks where "
                "things are; model=siglip2 has"
            )
        wrong = [sample for sample in train if len(sample.boxes) != 1] if not config.several else []
        if wrong:
            raise UserError(
                f"{wrong[0].source or wrong[0].id}: {len(wrong[0].boxes)} boxes of one expression"
                f"{f' (so have {len(wrong) - 1:,} more samples other numbers than one)' if len(wrong) > 1 else ''}: set "
                "task.several=true to find several, or none"
            )
        super().__init__(config, backbone)
        self.grounder = cast(Grounder, backbone)

    def collate(self, samples: Sequence[Sample]) -> GroundingBatch:
        """Images, expressions and boxes."""
        most = max(1, *(len(sample.boxes) for sample in samples))
        boxes, there = torch.zeros(len(samples), most, 4), torch.zeros(len(samples), most, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample.boxes:
                boxes[row, : len(sample.boxes)] = torch.tensor(sample.boxes)
                there[row, : len(sample.boxes)] = True
        return {**self.questions(samples), "boxes": boxes, "there": there}

    def _of_cells(self, batch: GroundingBatch) -> tuple[Tensor, Tensor]:
        """Of each cell its logit (B, C), and its box (B, C, 4) as centre and sides."""
        head = cast(BoxHead, self.backbone.model.box_head)
        logits, boxes = head(*self.grounder.grounding_states(batch["inputs"]))
        return logits, boxes

    def loss(self, batch: GroundingBatch) -> Tensor:
        """See this module; the mean over the samples."""
        logits, boxes = self._of_cells(batch)
        right, there = batch["boxes"], batch["there"]
        own = owners(right, there, cells(logits.shape[1], logits.device))  # (B, C)
        inside = own >= 0
        wanted = right.gather(1, own.clamp(min=0)[..., None].expand(-1, -1, 4))  # (B, C, 4)
        if self.config.several:
            number = inside.sum(dim=1).clamp(min=1)
            fit = (box_losses(boxes, wanted) * inside).sum(dim=1) / number
            return (focal(logits, inside.float()).sum(dim=1) / number + fit).mean()
        share = inside / inside.sum(dim=1, keepdim=True)
        hits = -(share * logits.log_softmax(dim=1)).sum(dim=1)
        return (hits + box_losses(averaged(logits, boxes), right[:, 0])).mean()

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """One box an image."""
        inputs = self.backbone.blank(batch_size, device, self.lengths["questions"])
        boxes = torch.zeros(batch_size, 1, 4, device=device)
        there = torch.ones(batch_size, 1, dtype=torch.bool, device=device)
        return self.loss({"ids": range(batch_size), "inputs": inputs, "boxes": boxes, "there": there})

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """What the head says."""
        inputs = self.backbone.blank(batch_size, device, self.lengths["questions"])
        self._of_cells({"ids": range(batch_size), "inputs": inputs})

    def asking(self) -> Asking:
        """Expressions, and where what they name is."""
        return self.questions, lambda batch, most: self.answer(cast(GroundingBatch, batch), self.config.threshold)

    def answer(self, batch: GroundingBatch, least: float = 0.0) -> list[list[Found]]:
        """For each expression its boxes in pixels, the surest first; of several, those that are at least so sure."""
        logits, boxes = self._of_cells(batch)
        sizes = batch["sizes"]
        if not self.config.several:
            sure = logits.softmax(dim=1).amax(dim=1).tolist()
            best = corners(averaged(logits, boxes)).clamp(0, 1).tolist()
            return [[Found.of(pixels(box, size), one)] for box, size, one in zip(best, sizes, sure, strict=True)]
        found = []
        for scores, own, size in zip(logits.sigmoid().cpu(), corners(boxes).clamp(0, 1).cpu(), sizes, strict=True):
            kept = [place for place in suppressed(own, scores) if float(scores[place]) >= least]
            found.append([Found.of(pixels(own[place].tolist(), size), float(scores[place])) for place in kept])
        return found

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Accuracy and IoU, of several boxes average precision, see `vlatrain.metrics.grounding`."""
        found = [own for answered in batches(samples, self.questions, self.answer) for own in answered]
        return self.scored(samples, [[Found(*one) for one in own] for own in found], {"route": "head"})


def box_losses(boxes: Tensor, right: Tensor) -> Tensor:
    """DETR's loss (...) of boxes (..., 4) of centre and sides, with right ones (..., 4) by their edges."""
    wanted = torch.cat([(right[..., :2] + right[..., 2:]) / 2, right[..., 2:] - right[..., :2]], dim=-1)
    return L1 * (boxes - wanted).abs().sum(dim=-1) + GIOU * (1 - giou(corners(boxes), right))


def focal(logits: Tensor, right: Tensor) -> Tensor:
    """RetinaNet's focal loss of logits with 0 or 1, of the same shape."""
    plain = binary_cross_entropy_with_logits(logits, right, reduction="none")
    sure = torch.exp(-plain)  # the probability of what is right
    return (BALANCE * right + (1 - BALANCE) * (1 - right)) * (1 - sure) ** FOCUS * plain


def averaged(logits: Tensor, boxes: Tensor) -> Tensor:
    """The mean (B, 4) of the cells' boxes (B, C, 4), by the softmax of their logits (B, C)."""
    return (logits.softmax(dim=1)[..., None] * boxes).sum(dim=1)


def owners(boxes: Tensor, there: Tensor, centres: Tensor) -> Tensor:
    """Which box each cell is of.

    Args:
        boxes: (B, K, 4) by their edges, padded.
        there: (B, K) whether each is one.
        centres: (C, 2) of the cells.

    Returns:
        (B, C) the place of the smallest box that the centre lies in, and for the nearest centre of a box that none lies in, of that
        one; -1: none.
    """
    x, y = centres.T  # (C,) each
    left, top, right, bottom = (edge[..., None] for edge in boxes.unbind(dim=-1))  # (B, K, 1) each
    inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom) & there[..., None]  # (B, K, C)
    away = ((left + right) / 2 - x) ** 2 + ((top + bottom) / 2 - y) ** 2
    nearest = torch.zeros_like(inside).scatter(2, away.argmin(dim=2, keepdim=True), True) & there[..., None]
    inside = inside | (nearest & ~inside.any(dim=2, keepdim=True))
    area = ((right - left) * (bottom - top)).expand_as(inside).masked_fill(~inside, torch.inf)
    smallest, place = area.min(dim=1)  # (B, C) each
    return place.masked_fill(smallest.isinf(), -1)


def suppressed(boxes: Tensor, scores: Tensor, overlap: float = OVERLAP) -> list[int]:
    """The places of boxes (N, 4) that are left of those that overlap, the surest first."""
    left = scores.argsort(descending=True, stable=True)
    kept: list[int] = []
    while len(left) and len(kept) < MOST:
        first, left = left[0], left[1:]
        kept.append(int(first))
        left = left[iou(boxes[left], boxes[first]) < overlap]
    return kept


def pixels(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A box in pixels of an image, to a hundredth, from shares of its size."""
    left, top, right, bottom = (round(share * size[axis % 2], 2) for axis, share in enumerate(box))
    return left, top, right, bottom


def shares(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A box in shares of an image's size, from pixels."""
    left, top, right, bottom = (edge / size[axis % 2] for axis, edge in enumerate(box))
    return left, top, right, bottom
