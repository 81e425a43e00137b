"""Configuration of the method: what is trained.

An option that is null is none of the method's: its YAML file sets those that it has, `options` holds those that only it has. So a
method's file is its schema (`vlatrain.config.methods` checks it), and a new method needs no line here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from vlatrain.config.limits import AT_LEAST_ONE, DROP_RATE, NOT_NEGATIVE, POSITIVE, Choice


@dataclass
class ShareConfig:
    """What the adapters of several places have in common: stored once, counted once.

    Attributes:
        what: none, down (the lower half, with its norm), up (the upper half), columns (some outputs of the upper half) or all.
        over: what the places may differ in and still share: any of layer, tower, site, task.
        columns: number of outputs that are shared with `what=columns`.
    """

    what: Annotated[str, Choice("none", "down", "up", "columns", "all")] = "none"
    over: Annotated[list[str], Choice("layer", "tower", "site", "task")] = field(default_factory=lambda: ["layer"])
    columns: Annotated[int, AT_LEAST_ONE] = 16


@dataclass
class AdapterConfig:
    """A parameter-efficient method and its size.

    Attributes:
        name: the design (a key of `vlatrain.adapters.DESIGNS`), a method of PEFT by its PEFT name in lower case, `mixed` (see
            `components`), `full` (everything trains) or `none` (nothing does).
        needs: what it cannot do without: `other` (points whose tower gets states of the other modality), `features` (of image
            and text), `sources` (finished runs), `components`, `end` (points in towers that end in a head, their last layer among
            them), `chain` (the same, or in towers that these attend to), `layers` (all of them: none can be left out by
            `drop_layers`), `attn` (points at self-attention, and no others), `frozen` (a trunk in which nothing
            trains), `insert` (towers that more tokens can be put into: no rotary positions), `context` (classes that are compared
            by texts, with words in front of their names), `routes` (finished runs to choose among).
        targets: methods that change existing layers: roles of those they change (query, key, value, inner, out, norm).
        dim: bottleneck width, or rank, or number of prompt tokens.
        points: injection points as patterns (`vision.*.attn`, `decoder.6-11.{cross,ffn}`, `text.last4.*`); null takes
            the task's.
        overrides: by pattern, options that differ there: `{"vision.*.*": {dim: 8}}`.
        activation: non-linearity between the projections (gelu, relu, silu, tanh, leaky_relu or identity).
        dropout: drop rate in the bottleneck, or on the input (LoRA).
        scaling: factor on the output; LoRA: alpha / r.
        bias: whether the projections have biases.
        init: how it starts: `zero` (the up-projection; the adapted model equals the base) or `normal`.
        init_std: standard deviation of `init=normal`.
        router: `adapter=router`: what picks the run for a sample, `prototype`, `linear` or `mlp`; see `vlatrain.adapters.router`.
        options: options of this method alone; for a method of PEFT, those of its PEFT configuration.
        share: what places have in common.
        by_task: joint training: an adapter for each task instead of one for all.
        drop_layers: adapters in so many of the lowest layers of each tower are left out (AdapterDrop at inference).
        drop_random: training: in each step, those of 0 to so many of the lowest layers, drawn anew (AdapterDrop).
        sources: finished runs whose adapters are combined, or chosen among.
        components: `mixed`: methods by name, each with its own points.
        rate: the method's learning rate as a factor on `model.adapter_lr`, that of most (the components of a mixed one share it).
        heads: also train the task's heads (projections, matching head), with `optim.groups.head` as their rate.
        trunk: also train weights of the towers that have points, where they are, with `optim.groups.trunk` as their rate: `norms`
            (the layer norms, those outside the layers too), `biases` (all that has "bias" in its name).
    """

    name: str = "bottleneck"
    needs: list[str] = field(default_factory=list)
    targets: list[str] | None = None
    dim: Annotated[int | None, AT_LEAST_ONE] = None
    points: list[str] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    activation: Annotated[str | None, Choice("gelu", "relu", "silu", "tanh", "leaky_relu", "identity")] = None
    dropout: Annotated[float | None, DROP_RATE] = None
    scaling: Annotated[float | None, POSITIVE] = None
    bias: bool | None = None
    init: Annotated[str | None, Choice("zero", "normal")] = None
    init_std: Annotated[float | None, POSITIVE] = None
    router: Annotated[str | None, Choice("prototype", "linear", "mlp")] = None
    options: dict[str, Any] = field(default_factory=dict)
    share: ShareConfig = field(default_factory=ShareConfig)
    by_task: bool = False
    drop_layers: Annotated[int, NOT_NEGATIVE] = 0
    drop_random: Annotated[int, NOT_NEGATIVE] = 0
    sources: list[str] = field(default_factory=list)
    components: dict[str, Any] = field(default_factory=dict)
    rate: Annotated[float, POSITIVE] = 1.0
    heads: bool = False
    trunk: Annotated[list[str], Choice("norms", "biases")] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The method's options in one: those of its own, and of the common ones those that it has."""
        common = {key: getattr(self, key) for key in COMMON}
        return {key: value for key, value in common.items() if value is not None} | self.options


# Options that many designs have; null where one has not.
COMMON = ("dim", "activation", "dropout", "scaling", "bias", "init", "init_std", "router")
