"""LoRA as a design of vlatrain's own: at the modules of a site, so that it can have a set for each task, share and mix in a batch.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022, arXiv:2106.09685): a frozen linear layer `W x` becomes
`W x + s B A x`. As PEFT's (adapter=lora), which also merges into the weights; one for each task as in Sung et al., "VL-Adapter"
(CVPR 2022, arXiv:2112.06825). No deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts
from vlatrain.adapters.projections import Dense

FUSED = {"qkv": {"query", "key", "value"}}  # a layer that serves several roles


@dataclass(frozen=True)
class TaskLoraOptions:
    """Options of `TaskLora`.

    Attributes:
        dim: rank.
        dropout: drop rate of the inputs.
        scaling: factor on the change, alpha / r.
        roles: the layers of a site that it changes: `ROLE` or `SITE.ROLE`; a fused `qkv` counts as each of its three.
    """

    dim: int = 8
    dropout: float = 0.0
    scaling: float = 2.0
    roles: Sequence[str] | None = None


class TaskLora(Adapter):
    """`x -> scaling * up(down(dropout(x)))`, added to what a linear layer makes of x.

    Parameters: `dim * (inputs + outputs)` for each layer: 196,608 for 768 -> 768 and dim 128.

    Raises:
        ValueError: a rank of less than 1, or a module that is no linear layer.
    """

    Options = TaskLoraOptions
    at: ClassVar[str] = "modules"
    reads = "input"

    def __init__(self, facts: Facts, options: TaskLoraOptions) -> None:
        super().__init__(facts, options)
        inputs, dim = facts.inputs, options.dim
        if dim < 1:
            raise ValueError(f"dim={dim}: must be 1 or more")
        if not inputs:
            raise ValueError(f"roles={options.roles}: LoRA changes linear layers, and one of these is none")
        self.dropout = nn.Dropout(options.dropout)
        self.down, self.up = Dense(inputs, dim, bias=False), Dense(dim, facts.width, bias=False)
        self.down.start("zero", 0.0, up=False)
        self.up.start("zero", 0.0, up=True)
        self.scaling = options.scaling

    @classmethod
    def takes(cls, role: str, options: Mapping[str, Any], site: str = "") -> bool:
        """The layers of these roles."""
        wanted = {
            name.rpartition(".")[2] for name in options.get("roles") or () if name.rpartition(".")[0] in ("", site)
        }
        return role in wanted or bool(FUSED.get(role, set()) & wanted)

    def change_of(self, module: nn.Module) -> Mapping[str, Tensor] | None:
        """The product of the two projections; GPT-2's layers have their weights the other way round."""
        change = self.scaling * self.up.weight @ self.down.weight  # (outputs, inputs)
        return {"weight": change if isinstance(module, nn.Linear) else change.T}

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """What to add to the layer's output, from its input (B, L, inputs): (B, L, width)."""
        inputs = self.dropout(states.to(self.down.weight.dtype))
        found: Tensor = (self.up(self.down(inputs)) * self.scaling).to(states.dtype)
        return found

    @staticmethod
    def count(inputs: int, outputs: int, dim: int) -> int:
        """Number of parameters at a layer."""
        return dim * (inputs + outputs)
