"""The published sizes in audit.yaml against what our recipes come to when they are built, without weights: prints both.

    python scripts/audit.py [RECIPE ...]          such as single_adapter, or vl_adapter/clip_t5/ladder; none: all of them

Exit status 1 if a count is not that of the file, or if the printed digits are not ours in a row that the file does not except.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.loading import meta_model
from vlatrain.cli.compose import typed
from vlatrain.cli.registry import register
from vlatrain.config import TrainConfig
from vlatrain.config.folder import conf_dir
from vlatrain.verbs.inspect import without_values

FILE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Counted:
    """What a recipe comes to.

    Attributes:
        trainable: parameters that train; total: all, shared ones once.
        alone: those of the language model before words were added to it; of a backbone that is no composite all of its own.
    """

    trainable: int
    total: int
    alone: int

    def shown(self, published: str, of: int) -> str:
        """The trainable parameters in the form, and to as many digits, as something published."""
        number, _, unit = published.partition(" ")
        digits = len(number.partition(".")[2])
        value = {"%": 100 * self.trainable / of, "M": self.trainable / 1e6, "": float(self.trainable)}[unit]
        return f"{value:,.{digits}f} {unit}".strip()


def configured(recipe: str) -> TrainConfig:
    """The configuration of a recipe, as `vlatrain inspect experiment=RECIPE` has it."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = typed(compose("inspect", overrides=[f"experiment={recipe}"]), TrainConfig)
    assert not incompatibilities(config), incompatibilities(config)
    return config


def counted(recipe: str) -> Counted:
    """Build what a recipe says on the meta device, and count."""
    config = configured(recipe)
    _, adapted = without_values(config)
    parameters = list(adapted.parameters())
    base: Any = meta_model(config.model, config.task.name)
    language, added = base, 0
    if config.model.submodels:
        language = base.language
        added = config.model.options.get("added_tokens", 0) * language.get_input_embeddings().weight.shape[1]
    return Counted(
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        total=sum(parameter.numel() for parameter in parameters),
        alone=sum(parameter.numel() for parameter in language.parameters()) - added,
    )


def problems(row: dict[str, Any], found: Counted) -> Iterator[str]:
    """Where a row of the file is not what was counted."""
    for what in ("trainable", "total"):
        if row.get(what, getattr(found, what)) != getattr(found, what):
            yield f"{what}: {getattr(found, what):,} counted, {row[what]:,} expected"
    for what, of in (("published", found.total), ("alone", found.alone)):
        if what in row and (found.shown(row[what], of) == row[what]) == ("differs" in row):
            yield (
                "excepted, and yet the same"
                if "differs" in row
                else f"{found.shown(row[what], of)} counted, {row[what]} published"
            )


def rows_of(table: dict[str, Any], wanted: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table that are wanted, all if none is, each with the whole name of its recipe."""
    for row in table["rows"]:
        recipe = f"{table['folder']}/{row['recipe']}"
        if not wanted or row["recipe"] in wanted or recipe in wanted:
            yield recipe, row


def main(wanted: list[str], console: Console) -> int:
    """Print the tables.

    Args:
        wanted: recipes; none: all.
        console: where to.

    Returns:
        Exit status.
    """
    wrong: list[str] = []
    for described in yaml.safe_load(FILE.read_text(encoding="utf-8")):
        table = Table(
            "", "trainable", "of all", "published", "of the language model", "published", title=described["title"]
        )
        for recipe, row in rows_of(described, wanted):
            found = counted(recipe)
            bad = list(problems(row, found))
            wrong += [f"{recipe}: {problem}" for problem in bad]
            percents = [f"{100 * found.trainable / of:.3f} %" for of in (found.total, found.alone)]
            table.add_row(
                row["name"], f"{found.trainable:,}", percents[0], row.get("published", "-"),
                percents[1] if described["folder"].startswith("vl_adapter") else "-", row.get("alone", "-"),
                style="bold red" if bad else "yellow" if "differs" in row else None,
            )  # fmt: skip
        if table.row_count:
            console.print(table)
            for recipe, row in rows_of(described, wanted):
                if "differs" in row:
                    console.print(f"[yellow]{recipe}[/]: {row['differs']}")
    for problem in wrong:
        console.print(f"[bold red]{problem}[/]")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Console(width=max(110, Console().width))))
