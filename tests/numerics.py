"""How far apart two ways of computing one thing may come out, on any processor.

Another processor, another number of threads, or another shape of the batch changes the order in which sums are taken, and nothing
else. Each rounding errs by at most half a unit in the last place, eps / 2 of what is rounded, up or down as good as at random; so
n of them one after the other add up to sqrt(n) times that, as the steps of a random walk do. n is the number of terms of all sums
that a value goes through: for a model, the inputs of its linear layers, all of them in turn.

What is rounded are the terms, not what is left of them where they cancel: an error is measured by the largest value of its tensor
and not by its own element, which may be next to nothing. `MARGIN` is for what this leaves out: the largest of thousands of errors
is some four times the usual one, two ways of computing have an error each, and softmax and norms pass errors on enlarged.

For fp32 and a small model of some 2,000 terms this is 4e-5. What a test is to find is far larger: a token that should be masked, a
term left out, a wrong scale, but also arithmetic in a shorter type, of which TF32 rounds at 2^-11 = 5e-4; more than half of that is
refused here (`TEETH`). See test_numerics.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

MARGIN = 16
TEETH = 2**-12
CANCELS = 100  # how much smaller than the largest a gradient may be by cancellation: the errors of what cancels are still there


def terms_of(model: nn.Module) -> int:
    """Terms of the sums that a value goes through in a model, if it goes through one layer after the other."""
    inputs = [m.weight.shape[0] if isinstance(m, Conv1D) else m.weight[0].numel() for m in model.modules() if _sums(m)]
    return sum(inputs)


def _sums(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d, Conv1D))


def tolerance(through: nn.Module | int, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that rounding explains, as a share of the largest value.

    Args:
        through: the model that the values have gone through, or the number of terms in their sums.
        dtype: the type that was computed in.
    """
    terms = through if isinstance(through, int) else terms_of(through)
    found = MARGIN * torch.finfo(dtype).eps / 2 * max(terms, 1) ** 0.5
    assert found < TEETH or dtype != torch.float32, (
        f"{terms} terms: a tolerance of {found:.1e} tells no error from rounding"
    )
    return found


def assert_close(
    found: Any, expected: Any, through: nn.Module | int = 256, *, scale: float = 0.0, msg: str | None = None
) -> None:
    """Make sure that two tensors, or two sequences or mappings of them (gradients, None among them), differ by rounding only.

    Args:
        found: what was computed.
        expected: the same, computed in another way.
        through: see `tolerance`; the default is for a single small module.
        scale: size of what was summed, where that is larger than any value: of the logits, for a loss.
        msg: what to say besides.
    """
    if isinstance(found, Mapping):
        assert found.keys() == expected.keys()
        largest = max((_largest(tensor) for tensor in expected.values() if tensor is not None), default=0.0)
        for key, tensor in found.items():
            assert_close(tensor, expected[key], through, scale=max(scale, largest / CANCELS), msg=f"{key} {msg or ''}")
    elif isinstance(found, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, through, scale=scale, msg=msg)
    elif found is None or expected is None:
        assert found is expected, msg
    else:
        allowed = tolerance(through, found.dtype) * max(scale, _largest(expected))
        torch.testing.assert_close(found, expected, rtol=0, atol=allowed, msg=msg and (lambda text: f"{msg}: {text}"))


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def near(expected: float | Sequence[float], through: nn.Module | int = 256, *, scale: float = 0.0) -> Any:
    """What differs from a number, or from each of several, by rounding only: `assert found == near(expected, model)`."""
    largest = max(map(abs, [expected] if isinstance(expected, (int, float)) else expected), default=0.0)
    return pytest.approx(expected, rel=0, abs=tolerance(through) * max(scale, largest))
