"""What is asked of a trained model: whether it fits the task, from the command line and from Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from vlatrain.config import joint
from vlatrain.config.checks import data_files
from vlatrain.config.schema import PredictConfig
from vlatrain.config.spec import QUESTION, TEXT, shipped_spec, shipped_tasks
from vlatrain.config.task import TaskConfig

MARK = "<image>"  # as in rows, see `vlatrain.data.sample`


def is_conversation(config: PredictConfig) -> bool:
    """Whether queries are to be typed: there is none, and somebody sits at a terminal."""
    return config.asks_nothing and sys.stdin.isatty() and sys.stdout.isatty()


def problems(config: PredictConfig, task: TaskConfig) -> Iterator[str]:
    """What is wrong with the query of a prediction.

    Args:
        config: the configuration.
        task: the task, or the subtask of a joint one, that is asked.
    """
    if is_conversation(config):
        return
    yield from _asked_about(config, "boxes" in task.spec.fields, f"this run's task is {task.name}")
    if config.images and not task.spec.several_images:
        yield f"images=[...]: a sample of task={task.name} has one image; image=FILE, or a folder, asks about each"
    marks = (config.question or "").count(MARK)
    if config.images and marks and marks != len(config.images):
        yield f"question: marks {marks} places of images by {MARK}, and images= has {len(config.images)}: mark each, or none"
    if config.input and config.question:
        yield "question= goes with image=; of input=FILE, each sample has its own"
    else:
        asks = bool(config.question) or (bool(config.input) and task.spec.query == QUESTION)
        yield from unasked(task, asks, bool(config.text), bool(config.texts), bool(config.input))


def of_router(config: PredictConfig) -> Iterator[str]:
    """What is wrong with the query of a router, which chooses the run that it asks."""
    runs = joint.tasks(config.task).values()
    tasks, choosing = [task.spec for task in runs], [task for task in runs if task.wording.chooses]
    if config.subtask is not None:
        yield f"subtask={config.subtask}: adapter=router chooses by itself; ask the run of your choice with run=FOLDER"
    yield from _asked_about(config, any("boxes" in spec.fields for spec in tasks), "none of the router's runs is of it")
    if config.input and config.question:
        yield "question= goes with image=; of input=FILE, each sample has its own"
    elif config.image and not config.question and all(spec.query == QUESTION for spec in tasks):
        yield 'all runs of this router are asked questions: set question="..."'
    if config.images and (few := [spec for spec in tasks if not spec.several_images]):
        yield f"images=[...]: {len(few)} of this router's runs take one image; ask the run of your choice with run=FOLDER"
    if len(choosing) == len(runs) and not config.texts and not config.input:
        yield "the questions of all runs of this router have options: set texts=[...] to them"
    if config.text or (config.texts and not choosing):
        yield f"text= and texts= are for {_asked_by(TEXT)}; a router has no run of that"


def _asked_about(config: PredictConfig, finds: bool, otherwise: str) -> Iterator[str]:
    if config.image and not Path(config.image).expanduser().exists():
        yield f"image={config.image}: no such file or folder"
    if config.input and (fault := data_files.fault(config.input)):
        yield f"input={config.input}: {fault}"
    for path in config.images:
        if not Path(path).expanduser().is_file():
            yield f"images: {path}: no such file"
    if bool(config.image) + bool(config.images) + bool(config.input) != 1:
        yield "set image=FILE (or a folder of images), images=[FILE,FILE] or input=FILE of samples: one of them, and not both"
    if config.draw and not finds:
        yield f"draw={config.draw}: boxes are found by task=grounding; {otherwise}"


def unasked(task: TaskConfig, question: bool, text: bool, texts: bool, has_rows: bool = False) -> list[str]:
    """What is missing of a query, or has no place in it.

    Args:
        task: the run's task.
        question: whether there are questions.
        text: whether images are searched for a text.
        texts: whether texts are ranked for images, or are the options of a question.
        has_rows: whether rows are asked about, which have their own.
    """
    query, found = task.spec.query, []
    if query == QUESTION and not question:
        found.append('this run answers questions: set question="..."')
    if query != QUESTION and question:
        found.append(f"question= is for {_asked_by(QUESTION)}; this run's task is {task.name}")
    if query == TEXT and text == texts:
        found.append(
            'this run matches images and texts: set text="..." to search the images, or texts=[...] (or a file with '
            "one a line) to rank texts for each image"
        )
    chooses = query == QUESTION and (task.wording.chooses or task.wording.lists)
    if chooses and question and not texts and not has_rows:
        found.append("this run's questions have options: set texts=[...] to them")
    if query != TEXT and (text or (texts and not chooses)):
        found.append(f"text= and texts= are for {_asked_by(TEXT)}; this run's task is {task.name}")
    return found


def _asked_by(query: str) -> str:
    """The tasks that are asked in a way."""
    return " and ".join(f"task={name}" for name in shipped_tasks() if shipped_spec(name).query == query)
