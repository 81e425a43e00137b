"""`vlatrain predict run=R` in a terminal, without an input: the model is loaded once and asked as often as one likes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vlatrain.config import PredictConfig, UserError
from vlatrain.config.spec import IMAGE, QUESTION
from vlatrain.data import picture_files
from vlatrain.data.features import check_shown, picture_of
from vlatrain.data.sample import Picture, Sample, Turn
from vlatrain.reporting.console import wrapped
from vlatrain.tasks.sample_checks import check_samples
from vlatrain.verbs.hits import Hit
from vlatrain.verbs.predict import Predictor

END = ("quit", "exit", "q")
HELP = {
    QUESTION: "questions about it, or another path",
    IMAGE: "that of another",
}
SEARCHED = "texts, separated by semicolons, to be ranked; or that of a folder, and a text to search it for"


class Conversation:
    """Asks a finished run, line by line.

    Args:
        config: the configuration; of a joint run, that of the subtask that is asked.
        predictor: the run, loaded.
        console: where answers go.

    Attributes:
        names: of the images that are asked about.
        turns: what has been said about them, of a task that is told it.
    """

    def __init__(self, config: PredictConfig, predictor: Predictor, console: Console) -> None:
        self.config, self.predictor, self.console = config, predictor, console
        self.spec = config.task.spec
        self.names: list[str] = []
        self.pictures: list[Picture] = []
        self.turns: list[Turn] = []

    def run(self, read: Callable[[str], str] = input) -> None:
        """Answer lines until one of them says the end, or there are no more."""
        with suppress(ImportError):
            import readline  # noqa: F401, lines can then be edited and called back
        self._print(f"{self.config.source} is loaded.")
        said = f"Type the path of an image, then {HELP.get(self.spec.query, SEARCHED)}. Ctrl-D, or quit, ends."
        self._print(wrapped(said, self.console.width))
        while True:
            try:
                line = read(f"{self._about()}> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._print("")
                return
            if line.lower() in END:
                return
            try:
                self.answer(line)
            except UserError as error:
                for problem in error.problems:
                    self._print(problem)

    def answer(self, line: str) -> None:
        """Answer one line: a path, or what is asked about the images of the last path.

        Raises:
            UserError: there is no image yet, one cannot be read, or the line does not fit the task.
        """
        if not line:
            return
        path = Path(line.strip("'\"")).expanduser()
        if path.exists():
            self._look_at(path)
        elif not self.pictures:
            raise UserError(f"{line}: no such file; type the path of an image, or of a folder of images, first")
        elif self.spec.query == QUESTION:
            self._ask(line)
        elif self.spec.query == IMAGE:
            raise UserError(f"{line}: no such file; task={self.config.task.name} is asked no questions")
        elif len(self.pictures) > 1:
            self._show(self.predictor.find_images(line, self.pictures, self.names, self.config.top_k))
        else:
            texts = [text.strip() for text in line.split(";") if text.strip()]
            self._show(next(self.predictor.find_texts(self.pictures, texts, self.config.top_k)))

    def _look_at(self, path: Path) -> None:
        paths = [*picture_files(path)] if path.is_dir() else [path]
        if not paths:
            raise UserError(f"{path}: there is no image in it")
        samples = [Sample(id=str(one), image=picture_of(str(one))) for one in paths]
        check_shown(self.config.model, samples)
        for sample in samples:
            sample.image.load()  # what cannot be read is told now
        self.names, self.pictures, self.turns = [sample.id for sample in samples], [one.image for one in samples], []
        if self.spec.query == IMAGE:
            self._answered([replace(sample, subtask=self.predictor.subtask) for sample in samples])

    def _ask(self, question: str) -> None:
        speaks = "conversations" in self.spec.given
        said = {"turns": (*self.turns, Turn(question))} if speaks else {"question": question}
        samples = [
            Sample(id=name, image=picture, subtask=self.predictor.subtask, **said)
            for name, picture in zip(self.names, self.pictures, strict=True)
        ]
        best = self._answered(samples)
        if speaks and len(best) == 1:
            self.turns.append(Turn(question, best[0].text))

    def _answered(self, samples: list[Sample]) -> list[Hit]:
        """Answer samples and show it; the best answer to each."""
        check_samples(self.predictor.task.backbone, samples)
        best = []
        for sample, hits in zip(samples, self.predictor.ask(samples, self._alternatives()), strict=True):
            self._show(hits, Path(sample.id).name if len(samples) > 1 else "")
            best += hits[:1]
        return best

    def _alternatives(self) -> int:
        return self.config.top_k if self.spec.alternatives else 1

    def _show(self, hits: list[Hit], name: str = "") -> None:
        for hit in hits:
            score = "" if hit.score is None else f"  {hit.score:.3f}"
            self._print(f"  {f'{name}: ' if name else ''}{hit.text}{score}")
        if not hits:
            self._print(f"  {f'{name}: ' if name else ''}(nothing)")

    def _about(self) -> str:
        if not self.names:
            return "image"
        return Path(self.names[0]).name if len(self.names) == 1 else f"{len(self.names)} images"

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
