"""The data report as a person sees it: tables, a line or two, and the warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vlatrain.reporting.console import print_sentence
from vlatrain.reporting.fitted import fitted


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print a data report: tables by subtask, then the warnings, each once."""
    for name, own in report["subtasks"].items():
        splits = own["splits"]
        title = f"Data{f' of subtask {name}' if name else ''}"
        for table in (_splits(splits, title), _texts(splits, console), _classes(splits), _boxes(splits)):
            if table is not None:
                console.print(table)
    for warning in report["warnings"]:
        print_sentence(f"warning: {warning['message']}", console, marked={"warning:": "yellow"})
    if not report["warnings"]:
        console.print("Nothing stands out.")


def brief_lines(report: Mapping[str, Any]) -> list[str]:
    """A data report in a line or two for each subtask; the warnings are not among them."""
    lines = []
    for name, own in report["subtasks"].items():
        splits, said = own["splits"], f"{name}: " if name else ""
        train = splits.get("train") or next(iter(splits.values()))
        images = train["images"]
        about = [f"{images['number']:,} images"]
        if "width" in images:
            about.append(_sizes(images))
        if images.get("decode_ms") and "width" in images:
            about.append(f"{images['decode_ms']:.3g} ms each to decode")
        if classes := train.get("classes"):
            about.append(f"{classes['number']:,} classes, {classes['largest_share']:.3g} % '{classes['largest']}'")
        if boxes := train.get("boxes"):
            about.append(f"{boxes['number']:,} boxes of usually {boxes['area']['median']:.2g} % of the image")
        for row in train.get("texts", ()):
            tokens = row["tokens"]
            usual, most = tokens["median"], tokens["longest"]
            counted = f"{usual}" if usual == most else f"usually {usual}, at most {most}"
            about.append(f"{row['kind']} of {counted} tokens (limit {row['limit']})")
        lines.append(f"{said}Training data: {', '.join(about)}")
    return lines


def _splits(splits: Mapping[str, Any], title: str) -> Table:
    table = Table(Column("what", no_wrap=True), *splits, title=title, title_justify="left")
    each = {
        "samples": lambda facts: f"{facts['samples']:,}",
        "images": lambda facts: f"{facts['images']['number']:,}",
        "without an image": lambda facts: _if(facts["images"], "text_only", "{:,}"),
        "with several images": lambda facts: _several(facts["images"].get("several")),
        "images by content": lambda facts: f"{facts['images']['distinct']:,}",
        "pixels, least to most": lambda facts: _sizes(facts["images"]) if "width" in facts["images"] else "",
        "formats": lambda facts: _counts(facts["images"]["formats"]),
        "modes": lambda facts: _counts(facts["images"].get("modes", {})),
        "bytes": lambda facts: _bytes(facts["images"]["bytes"]) if "bytes" in facts["images"] else "",
        "decoding, an image": lambda facts: _if(facts["images"], "decode_ms", "{:.3g} ms"),
        "questions, different": lambda facts: _if(facts.get("answers", {}), "questions", "{:,}"),
        "answers, different": lambda facts: _if(facts.get("answers", {}), "distinct", "{:,}"),
        "most frequent answer": lambda facts: (
            _if(facts.get("answers", {}), "most_frequent_share", "{:.1f} %")
            + _if(facts.get("answers", {}), "most_frequent", " '{}'")
        ),
        "answers not in train": lambda facts: _if(facts.get("answers", {}), "unseen_share", "{:.1f} %"),
        "captions": lambda facts: _if(facts.get("captions", {}), "number", "{:,}"),
        "captions, different": lambda facts: _if(facts.get("captions", {}), "distinct", "{:,}"),
        "captions of several images": lambda facts: _if(facts.get("captions", {}), "shared", "{:,}"),
        "boxes": lambda facts: _if(facts.get("boxes", {}), "number", "{:,}"),
        "boxes, a row": lambda facts: _span(facts.get("boxes", {}).get("each")),
        "rows without a box": lambda facts: _if(facts.get("boxes", {}), "without", "{:,}"),
        "boxes' share of the image": lambda facts: _span(facts.get("boxes", {}).get("area"), " %"),
        "boxes' sides, of the image's": lambda facts: _span(facts.get("boxes", {}).get("sides"), " %"),
        "expressions, different": lambda facts: _if(facts.get("boxes", {}), "expressions", "{:,}"),
        "classes": lambda facts: _if(facts.get("classes", {}), "number", "{:,}"),
        "largest class": lambda facts: (
            _if(facts.get("classes", {}), "largest_share", "{:.1f} %")
            + _if(facts.get("classes", {}), "largest", " '{}'")
        ),
    }
    for what, cell in each.items():
        cells = [cell(facts) for facts in splits.values()]
        if any(cells):
            table.add_row(what, *map(escape, cells))
    return table


def _texts(splits: Mapping[str, Any], console: Console) -> Table | None:
    rows = [(split, row) for split, facts in splits.items() for row in facts.get("texts", ())]
    if not rows:
        return None
    tokens = {"median": "median", "90 %": "p90", "99 %": "p99", "longest": "longest"}
    columns = {
        "texts": [row["kind"] for _, row in rows],
        "of": [split for split, _ in rows],
        "number": [f"{row['texts']:,}" for _, row in rows],
        **{heading: [f"{row['tokens'][name]:,}" for _, row in rows] for heading, name in tokens.items()},
        "limit": [f"{row['limit']:,}" for _, row in rows],
        "cut": [f"{row['cut']:.3g} %" for _, row in rows],
        "unknown": [f"{row['unknown']:.3g} %" for _, row in rows],
        "not given back": [escape(_changed(row)) for _, row in rows],
    }
    return fitted(columns, console, ("90 %", "number", "median"), ("not given back",), title="Texts, in tokens")


def _changed(row: Mapping[str, Any]) -> str:
    """The share of texts that the tokenizer does not give back, with an example."""
    if "changed" not in row:
        return ""
    example = next(iter(row.get("changed_to", {}).items()), None)
    return f"{row['changed']:.3g} %" + (f": '{example[0][:30]}' as '{example[1][:30]}'" if example else "")


def _classes(splits: Mapping[str, Any], most: int = 20) -> Table | None:
    with_classes = {split: facts["classes"]["counts"] for split, facts in splits.items() if "classes" in facts}
    if not with_classes:
        return None
    names = list(dict.fromkeys(name for counts in with_classes.values() for name in counts))
    title = "Classes" if len(names) <= most else f"Classes, {most} of {len(names):,}"
    table = Table("class", *with_classes, title=title, title_justify="left")
    for name in names[:most]:
        table.add_row(escape(name), *(f"{counts.get(name, 0):,}" for counts in with_classes.values()))
    return table


def _boxes(splits: Mapping[str, Any]) -> Table | None:
    classes = {
        split: facts["boxes"]["classes"] for split, facts in splits.items() if "classes" in facts.get("boxes", {})
    }
    if not classes:
        return None
    table = Table("boxes of", "in", "rows", "boxes", "median share of the image", title="Boxes", title_justify="left")
    for split, own in classes.items():
        for name, one in own.items():
            share = "" if one["area"] is None else f"{one['area']:.3g} %"
            table.add_row(escape(name), split, f"{one['samples']:,}", f"{one['boxes']:,}", share)
    return table


def _span(spread: Mapping[str, float] | None, unit: str = "") -> str:
    if not spread:
        return ""
    return f"{spread['min']:.3g} to {spread['max']:.3g}{unit} (median {spread['median']:.3g})"


def _sizes(images: Mapping[str, Any]) -> str:
    width, height = images["width"], images["height"]
    if width["min"] == width["max"] and height["min"] == height["max"]:
        return f"{width['max']} x {height['max']} pixels"
    ends = [f"{width[end]:g} x {height[end]:g}" for end in ("min", "max", "median")]
    return f"{ends[0]} to {ends[1]} pixels (median {ends[2]})"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" if len(counts) > 1 else name for name, count in counts.items())


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _several(facts: Mapping[str, int] | None) -> str:
    return f"{facts['samples']:,}, {facts['most']} at most" if facts else ""


def _if(facts: Mapping[str, Any], key: str, form: str) -> str:
    return form.format(facts[key]) if key in facts else ""
