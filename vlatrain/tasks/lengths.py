"""How long the texts of a run may be, what is cut off them, and from which samples nothing would be learned: found out and said
before anything trains.

`task.max_length=auto` is the least that cuts nothing, `task.decode.max_new_tokens=auto` lets the longest target be written; a text
of more than four times the 99th percentile does not count. A text is cut to that, or to what the model has positions for. Where a
limit, or a tokenizer that does not know the characters, leaves nothing to learn or to score of any sample, the run is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlatrain.backbones.architecture import quiet
from vlatrain.backbones.base import BUCKET, Backbone, Generator
from vlatrain.backbones.lengths import UNLIMITED
from vlatrain.backbones.several import numbered
from vlatrain.config import TaskConfig, UserError
from vlatrain.data.lazy import Images, by_subtask, distinct, joined, most_images
from vlatrain.tasks.looks import Form, Seen, looked_at, reading, writing

if TYPE_CHECKING:
    from vlatrain.data.sample import Sample
    from vlatrain.tasks.base import Task

log = logging.getLogger("vlatrain")

SHOWN = 3  # choices that are the same, and groups of them, that are named
LIMIT, NEW = "max_length", "decode.max_new_tokens"  # what lengths are set by
USUAL, OUTLIER = 0.99, 4  # texts of more than so many times the length of so large a share of them do not count
LEAST_NEW = 8  # tokens: a model that has not learned yet how short the answers are says something all the same
CLIP = 60  # characters of a text that are shown
AS_WRITTEN = "_as_written"  # ends the name of a score against what comes back of the references


@dataclass(frozen=True)
class Use:
    """A kind of text, and what a task does with it.

    Attributes:
        name: in the plural, for messages.
        room: which of `Backbone.rooms` it has.
        of: its texts in a sample.
        look: what tokenising such texts shows, text by text.
        splits: `train`, `asked` (evaluation and prediction) or `all`.
        setting: what its length is limited by, a key of the task.
        whole: whether a text counts only if it is whole and has no unknown token, as an answer that is to be written.
        lost: what to say of samples of whose texts none counts, `{}` in place of how many.
        nothing: why, where no length is the reason.
        left: of texts that must not all be the same, the tokens that are left.
    """

    name: str
    room: str
    of: Callable[[Sample], Sequence[Any]]
    look: Callable[[Sequence[Any]], Iterable[Seen]]
    splits: str = "all"
    setting: str = LIMIT
    whole: bool = False
    lost: str = "nothing would be learned from {}"
    nothing: str = "the tokenizer knows none of their characters"
    left: Callable[[Sequence[Any]], Iterable[Hashable]] | None = None


def question_use(backbone: Backbone) -> Use:
    """Questions, which are read."""
    look = reading(backbone)
    return Use(
        "questions",
        "question",
        lambda one: [numbered(one.question) if one.more else one.question][: bool(one.question)],
        look,
        lost="no word is left of the questions of {}",
    )


def reference_use(
    name: str, of: Callable[[Sample], Sequence[str]], backbone: Any, form: Form, whole: bool = False
) -> Use:
    """References of texts that are generated.

    Args:
        name: in the plural.
        of: those of a sample.
        backbone: a `Generator`.
        form: how the metric compares them.
        whole: whether a part of one is worth nothing.
    """
    nothing = "they have characters that the tokenizer does not know" if whole else Use.nothing
    lost = f"no {name} of {{}} can be written"
    return Use(name, "new", of, writing(backbone, end=False, form=form), "asked", NEW, whole, lost, nothing)


def settled(task: Task, samples: Mapping[str, Sequence[Sample]]) -> TaskConfig:
    """The settings of a task that is not joint with numbers for the lengths that are `auto`. What no text tells stays as it is.

    Args:
        task: the task; its backbone has measured the images.
        samples: those of the task, by split.
    """
    config, uses = task.config, task.uses()
    new = config.decode.max_new_tokens
    if new == "auto" and (
        long := max((_needed(use, samples.values()) for use in uses if use.setting == NEW), default=0)
    ):
        most = task.backbone.rooms(config)["new"].tokens
        new = max(1, min(max(long + 1, LEAST_NEW, config.decode.min_new_tokens), most))  # and the token that ends it
        config = replace(config, decode=replace(config.decode, max_new_tokens=new))
    if config.max_length == "auto":
        rooms, needed = task.backbone.rooms(config), 0
        for use in (use for use in uses if use.setting == LIMIT):
            used = [found for split, found in samples.items() if _used(use, split)]
            needed = max(needed, min(_needed(use, used), rooms[use.room].tokens))
        config = replace(config, max_length=needed) if needed > 0 else config
    return config


def _needed(use: Use, splits: Iterable[Sequence[Sample]]) -> int:
    """Tokens that the longest text of a kind has, outliers left out; 0: there is none."""
    texts = [text for samples in splits for sample in looked_at(samples) for text in use.of(sample)]
    if not texts:
        return 0
    lengths = sorted(seen.tokens for seen in use.look(texts))
    return min(lengths[-1], OUTLIER * lengths[math.ceil(USUAL * len(lengths)) - 1])


def _used(use: Use, split: str) -> bool:
    """Whether texts of a kind are used of a split's samples."""
    return use.splits in ("all", "train" if split == "train" else "asked")


def alike(
    names: Sequence[str], tokens: Iterable[tuple[int, ...]], key: str, backbone: Backbone
) -> tuple[list[str], bool]:
    """What there is to say of choices that are the same to a backbone.

    Args:
        names: the choices.
        tokens: ids of what it sees of each.
        key: where they are set.
        backbone: the backbone.

    Returns:
        A message for each group of such choices, of the first few, and whether there is nothing to choose at all.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, seen in zip(names, tokens, strict=True):
        groups.setdefault(seen, []).append(name)
    same = {seen: group for seen, group in groups.items() if len(group) > 1}
    said = []
    for seen, group in [*same.items()][:SHOWN]:
        shown = " and ".join(f"'{name}'" for name in group[:SHOWN])
        more = f" and {len(group) - SHOWN:,} more" if len(group) > SHOWN else ""
        written = " ".join(
            backbone.tokenizer.convert_ids_to_tokens([one for one in seen if one != backbone.tokenizer.pad_token_id])
        )
        said.append(
            f"{key}: {shown}{more} are the same tokens ({written}) to model={backbone.config.name}, which cannot tell them apart: "
            "give them other names, or take a backbone whose tokenizer can"
        )
    if len(same) > SHOWN:
        said.append(f"{key}: ... and {len(same) - SHOWN:,} more groups that are the same tokens")
    return said, len(groups) < 2 <= len(names)


def check_lengths(tasks: Mapping[str, Task], samples: Mapping[str, Sequence[Sample]]) -> None:
    """Say what is cut, and what nothing can be learned from; see this module.

    Args:
        tasks: the subtasks of a joint task by name; any other task under an empty name.
        samples: by split; `asked`: those of a prediction, which have no references.

    Raises:
        UserError: nothing would be left of some kind of text, or what is to be generated does not fit. All such problems.
    """
    problems: list[str] = []
    with quiet():  # tokenizers tell of texts that are too long
        for task in [*tasks.values()][:1]:  # all have the same backbone
            every = joined(samples.values())
            task.backbone.measure(Images(every), most_images(every))
        for name, task in tasks.items():
            own = by_subtask(samples, name)
            report = _Report(task, f"task.subtasks.{name}." if name else "task.", f"subtask {name}: " if name else "")
            report.look(own)
            problems += report.problems
            for note in report.notes:
                log.warning("%s", note)
    if problems:
        raise UserError(problems)


class _Report:
    """What there is to say of one task."""

    def __init__(self, task: Task, key_prefix: str, subtask: str) -> None:
        self.task, self.prefix, self.subtask = task, key_prefix, subtask
        self.problems: list[str] = []
        self.notes: list[str] = []

    def look(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Look at the settings, and at the samples of each split."""
        rooms, name = self.task.backbone.rooms(self.task.config), self.task.backbone.config.name
        new, most = self.task.config.decode.most_new, rooms["new"]
        if self.task.generates and new > most.tokens:
            fits = f"set it to {most.tokens} or less, or take" if most.tokens > 0 else "no text fits: take"
            more = self.task.backbone.more_room
            self.problems.append(f"{self.prefix}{NEW}={new}: model={name} has {most}; {fits} {more}")
            return
        choices, none = self.task.alike(self.prefix)
        (self.problems if none else self.notes).extend(choices)
        uses = self.task.uses()
        length, limited = (
            self.task.config.max_length,
            {use.name: rooms[use.room] for use in uses if use.setting == LIMIT},
        )
        if isinstance(length, int) and (
            less := [f"{kind} {room.tokens} of {room}" for kind, room in limited.items() if room.tokens < length]
        ):
            log.info("%smax_length=%s: less room in model=%s: for %s", self.prefix, length, name, ", ".join(less))
        for split, found in samples.items():
            for use in uses:
                if _used(use, split):
                    self._split(split, found, use)

    def _split(self, split: str, samples: Sequence[Sample], use: Use) -> None:
        """What there is to say of one kind of text in one split."""
        every = distinct(samples)
        looked = looked_at(every)
        some = [one for one in looked if use.of(one)]
        texts = list(dict.fromkeys(text for sample in some for text in use.of(sample)))
        if not texts:
            return
        seen = dict(zip(texts, use.look(texts), strict=True))
        most = self.task.longest(use.room) if use.setting == LIMIT else self.task.config.decode.most_new
        cut = [sample for sample in some if any(seen[text].tokens > most for text in use.of(sample))]
        lost = [sample for sample in some if not any(_counts(seen[text], most, use) for text in use.of(sample))]
        of = f"{len(some):,}" + (f" looked at (of {len(every):,})" if len(looked) < len(every) else "")
        where = f"{self.subtask}{'input' if split == 'asked' else f'data.{split}'}"
        longest = max(seen[text].tokens for text in texts)
        if lost:
            count = f"{'any of the' if len(lost) == len(some) else f'{len(lost):,} of'} {of} samples"
            message = f"{where}: {use.lost.format(count)}{_first(lost)}: {self._reason(lost, use, seen, most)}"
            (self.problems if len(lost) == len(some) else self.notes).append(message)
        elif use.left and split != "asked" and len(some) > 1 and len(set(use.left(texts))) < 2:
            self.problems.append(f"{where}: the {use.name} are all the same tokens, so no image can be told by them")
        if len(lost) == len(some):
            return
        if cut:
            word = "are cut to" if use.setting == LIMIT else "cannot be written whole, with"
            self.notes.append(
                f"{where}: {use.name} of {len(cut):,} of {of} samples {word} {most} tokens{_first(cut)}; the longest has "
                f"{longest:,}: {self._remedy(use, longest)}"
            )
        gone = {sample.id for sample in lost}
        changed = [one for one in some if one.id not in gone and not any(seen[text].returns for text in use.of(one))]
        if changed:
            text = use.of(changed[0])[0]
            back = self.task.backbone.as_written([text])[0]
            self.notes.append(
                f"{where}: {use.name} of {len(changed):,} of {of} samples do not come back from the tokenizer as they are"
                f"{_first(changed)}, '{_clipped(text)}' as '{_clipped(back)}': no model of it can write them; a second score, "
                f"*{AS_WRITTEN}, compares with what comes back"
            )
        partly = [one for one in some if one.id not in gone and any(seen[text].unknown for text in use.of(one))]
        if partly:
            self.notes.append(
                f"{where}: {use.name} of {len(partly):,} of {of} samples have characters that the tokenizer does not know"
                f"{_first(partly)}"
            )

    def _reason(self, lost: Sequence[Sample], use: Use, seen: Mapping[Any, Seen], most: int) -> str:
        found = [seen[text] for sample in lost for text in use.of(sample)]
        needed = [one.first for one in found if one.first is not None and one.first > most]
        if use.whole and (long := [one.tokens for one in found if one.first is not None and one.tokens > most]):
            return f"the longest has {max(long):,} tokens, and {most} can be written: {self._remedy(use, max(long))}"
        if not needed:
            return use.nothing
        kept = f"{most} tokens are kept, which leaves no word"
        if use.room == "conversation":
            kept = f"{most} tokens are kept, and the longest prompt before a reply has {max(needed) - 1:,}"
        return f"{kept}: {self._remedy(use, max(needed))}"

    def _remedy(self, use: Use, wanted: int) -> str:
        """What to set for texts of so many tokens."""
        room = self.task.backbone.rooms(self.task.config)["new" if use.setting == NEW else use.room]
        now = self.task.longest(use.room) if use.setting == LIMIT else self.task.config.decode.most_new
        if wanted <= room.tokens:
            return f"set {self.prefix}{use.setting}={wanted}"
        more = f"{self.prefix}{use.setting}={room.tokens} is the most: " if now < room.tokens else ""
        less = f"a smaller {self.prefix}{NEW}, or " if room.reply else ""
        backbone = self.task.backbone
        return f"{more}model={backbone.config.name} has {room}; more is kept with {less}{backbone.more_room}"


def _counts(seen: Seen, most: int, use: Use) -> bool:
    """Whether something is left of a text."""
    if use.whole and (seen.unknown or seen.tokens > most):
        return False
    return seen.first is not None and seen.first <= most


def _clipped(text: str) -> str:
    return text if len(text) <= CLIP else f"{text[:CLIP]}..."


def _first(samples: Sequence[Sample]) -> str:
    return f" (the first: {samples[0].source or samples[0].id})" if samples[0].source or samples[0].id else ""


def longest_texts(task: Task, samples: Sequence[Sample], size: int) -> dict[str, int]:
    """How long the texts of the largest batch of samples are, as `Task.lengths` has it.

    Args:
        task: the task; not a joint one.
        samples: the samples, see `looked_at`.
        size: samples of a batch.
    """
    some = looked_at(samples)
    found: dict[str, int] = {}
    for use in task.uses():
        if use.setting == NEW:
            continue
        every = [list(use.of(sample)) for sample in some]
        texts = list(dict.fromkeys(text for own in every for text in own))
        if use.name == "answers":
            texts += task.config.answer_list  # each is scored
        if not texts:
            continue
        seen = list(use.look(texts))
        tokens = min(max(one.tokens for one in seen), task.longest(use.room))
        if use.room == "target" and isinstance(task.backbone, Generator):
            tokens += task.backbone.target([""], UNLIMITED, task.config.begins_with)[1]
        if use.name == "questions":
            tokens = min(-(-tokens // BUCKET) * BUCKET, task.longest(use.room))
        if use.name == "conversations":
            found["replies"] = min(max(one.learned for one in seen), tokens)
        found[use.name] = max(tokens, found.get(use.name, 0))
        if use.name in ("captions", "answers"):
            most = sorted((len(dict.fromkeys(own)) for own in every), reverse=True)[:size]
            found["texts"] = max(1, -(-sum(most) // len(most)))
    return found
