"""How long the texts of a data set are in a backbone's tokens, and what of them is lost on the way: facts, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlatrain.backbones.architecture import quiet
from vlatrain.data.lazy import distinct
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Task
from vlatrain.tasks.lengths import LIMIT, NEW, Use
from vlatrain.tasks.looks import looked_at

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
SHOWN = 3  # examples


def text_facts(task: Task, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[dict[str, Any]]]:
    """Of each split, the facts of each kind of text that a task reads or writes.

    Args:
        task: the task, its lengths settled and its images measured; not a joint one.
        samples: the samples by split; one that is there several times by its id counts once.

    Returns:
        By split, for each kind: `kind`; `samples` and `texts` looked at; `tokens` (quantiles, and the longest, special tokens
        included as the limit counts them); `limit` and what sets it; shares in percent: `cut` of the samples, `unknown` (texts with
        a token that is unknown), and of references `changed` (those that no model can write, as the tokenizer does not give them
        back), with examples.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    with quiet():  # tokenizers tell of texts that are too long
        for split, given in samples.items():
            uses = [use for use in task.uses() if use.splits in ("all", "train" if split == "train" else "asked")]
            found[split] = [facts for use in uses if (facts := _facts(task, use, looked_at(distinct(given))))]
    return found


def _facts(task: Task, use: Use, samples: Sequence[Sample]) -> dict[str, Any]:
    each = [own for sample in samples if (own := list(use.of(sample)))]
    texts = list(dict.fromkeys(text for own in each for text in own))
    if not texts:
        return {}
    seen = dict(zip(texts, use.look(texts), strict=True))
    tokens = sorted(seen[text].tokens for own in each for text in own)
    limit = task.longest(use.room) if use.setting == LIMIT else task.config.decode.most_new
    facts: dict[str, Any] = {
        "kind": use.name,
        "samples": len(each),
        "texts": len(tokens),
        "distinct": len(texts),
        "tokens": {name: tokens[min(len(tokens) - 1, int(share * len(tokens)))] for name, share in QUANTILES.items()}
        | {"longest": tokens[-1]},
        "limit": limit,
        "set_by": f"task.{use.setting}",
        "cut": _percent(sum(any(seen[text].tokens > limit for text in own) for own in each), len(each)),
        "unknown": _percent(sum(seen[text].unknown for text in texts), len(texts)),
    }
    if use.setting == NEW:
        changed = [text for text in texts if not seen[text].returns]
        facts["changed"] = _percent(len(changed), len(texts))
        if changed:
            some = changed[:SHOWN]
            facts["changed_to"] = dict(zip(some, task.backbone.as_written(some), strict=True))
    return facts


def _percent(count: int, total: int) -> float:
    return round(100 * count / total, 2)
