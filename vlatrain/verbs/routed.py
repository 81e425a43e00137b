"""A trained router, ready to be asked: it picks the run that answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vlatrain.config import PredictConfig, TaskConfig, TrainConfig, joint
from vlatrain.config.spec import QUESTION, TaskSpec
from vlatrain.data.features import Given
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Answer
from vlatrain.tasks.sample_checks import check_samples
from vlatrain.training.batches import SharedBatches, chunks
from vlatrain.training.journal import Journal
from vlatrain.training.precision import choose_device, choose_precision, own
from vlatrain.training.routing.router import Router
from vlatrain.verbs.hits import Asked, Hit, hits_of

ROW = TaskSpec(fields=["question"], optional=["options"], given=[], query=QUESTION)
"""What is read of a row that a router is asked about: its image, and a question and options where there are some."""


class RoutedPredictor:
    """A trained router with its runs.

    Args:
        config: the router's configuration.
        run: its folder.

    Raises:
        UserError: runs that are gone or have changed, weights that cannot be had, or the device or precision.
    """

    def __init__(self, config: TrainConfig, run: Path) -> None:
        device = own(choose_device(config.trainer.device))
        self.router = Router(config, device, choose_precision(config.trainer.precision, device), run)

    def predict(
        self,
        images: Given | Sequence[Given],
        question: str | Sequence[str] | None = None,
        top_k: int = 1,
        texts: Sequence[str] = (),
    ) -> list[Hit] | list[list[Hit]]:
        """Ask about images; the run that answers is picked for each.

        Args:
            images: an image or several: PIL images, encoded bytes, or paths.
            question: a question, an expression, or what a user may say to get a task that is asked nothing; one for all images, or
                one for each.
            top_k: the most answers or classes.
            texts: the options of the questions, if they have some.

        Returns:
            Of one image its hits, best first; of several a list of them.

        Raises:
            UserError: an image cannot be read, or no run can be asked so.
        """
        asked = Asked.of(images, question)
        samples = [
            Sample(id=name, image=picture, question=text or "", options=tuple(texts))
            for name, picture, text in zip(asked.names, asked.pictures, asked.questions, strict=True)
        ]
        check_samples(self.router.reader.backbone, samples)
        found = [hits for _, hits in self.ask(samples, top_k)]
        return found if asked.several else found[0]

    def ask(
        self, samples: Sequence[Sample], alternatives: int = 1, journal: Journal | None = None
    ) -> Iterator[tuple[str, list[Hit]]]:
        """For each sample the run that was picked, and its best answers, as they come."""

        def answered(places: range) -> list[tuple[str, list[Answer]]]:
            own = self.router.ask(samples[places.start : places.stop], alternatives)
            return [(f"{one.best}, frozen" if one.abstains else one.best, [*answers]) for one, answers in own]

        batches = SharedBatches(self.router.device, self.router.size, local=True, journal=journal)
        for found in batches.map(answered, chunks(len(samples), self.router.size)):
            yield from ((name, hits_of(answers)) for name, answers in found)


def row_config(config: PredictConfig) -> PredictConfig:
    """A router's configuration as one by which rows are read that it is asked about."""
    several = all(task.spec.several_images for task in joint.tasks(config.task).values())
    return replace(config, task=replace(TaskConfig(), spec=replace(ROW, several_images=several)))
