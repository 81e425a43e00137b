"""A controller that picks the adapter of a sample, by what the frozen backbone says of it.

Three kinds, by `adapter.router`:

- `prototype`: the source whose training samples have the nearest mean, as Snell et al., "Prototypical Networks for Few-shot
  Learning" (NeurIPS 2017, arXiv:1703.05175), tell classes; here each feature is divided by its spread within the sources. Nothing
  is trained but these means. LoraRetriever (Zhao et al., Findings of ACL 2024, arXiv:2402.09997) finds adapters by such means;
- `linear`: a linear layer with a softmax over the sources, the gate of Shazeer et al., "Outrageously Large Neural Networks: The
  Sparsely-Gated Mixture-of-Experts Layer" (ICLR 2017, arXiv:1701.06538, section 2.1), whose weights of the best k these are, too.
  Deviations: no noise and no loss that balances, as it learns from labels, and one choice for a sample, not one for each token;
- `mlp`: a hidden layer before it.

Probabilities are calibrated by one temperature on samples that were held out (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017, arXiv:1706.04599, section 4.2). A sample abstains, which leaves it to the frozen model, where it lies further
from all sources' means than all but a share of the held-out samples: the distance-based score of Lee et al., "A Simple Unified
Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks" (NeurIPS 2018, arXiv:1807.03888), with a diagonal
covariance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

KINDS = ("prototype", "linear", "mlp")
LITTLE = 1e-4  # the least spread of a feature that counts
FAR = 10.0  # spreads from the mean beyond which a feature says no more
RATE, DECAY, BATCH = 1e-2, 1e-3, 256  # of the optimiser that trains a linear layer or a small network
TEMPERATURES = torch.logspace(-2, 3, 101)


@dataclass(frozen=True)
class RouterOptions:
    """Options of a controller, the keys of `conf/adapter/router.yaml`.

    Attributes:
        router: one of `KINDS`.
        dim: units of the hidden layer of `mlp`.
        k: sources that a sample has at most: their outputs are weighted by their probabilities at each site.
        samples: training samples of each source that it learns from, a seeded draw.
        held_out: share of these that calibrate it, and are not learned from.
        abstain: share of the held-out samples that may be left to the frozen model; 0: it never abstains.
        epochs: passes over the samples, of `linear` and `mlp`.
        reads: `prefix` (the states before the first adapted point of all sources), `tower` (those behind the whole frozen tower),
            or `auto`: the first, where there are any.
        requests: by task that is asked nothing, what a user may say to get it.
    """

    router: str = "linear"
    dim: int = 64
    k: int = 1
    samples: int = 1000
    held_out: float = 0.2
    abstain: float = 0.0
    epochs: int = 40
    reads: str = "auto"
    requests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What a controller says of samples.

    Attributes:
        weights: (B, S) of each source, zero but for the k that are chosen, and of these adding up to 1.
        best: (B,) the likeliest source.
        abstains: (B,) whether the frozen model is to answer.
    """

    weights: Tensor
    best: Tensor
    abstains: Tensor


class Controller(nn.Module):
    """Features (B, width) of samples -> logits (B, S) of the sources.

    Parameters: none of `prototype`; `width * S + S` of `linear`; `width * dim + dim + dim * S + S` of `mlp`. The features' means
    and spreads, the sources' prototypes, temperature and threshold are buffers.

    Args:
        width: number of features.
        sources: number of sources S.
        kind: one of `KINDS`.
        dim: units of the hidden layer of `mlp`.
    """

    mean: Tensor
    spread: Tensor
    prototypes: Tensor
    temperature: Tensor
    threshold: Tensor

    def __init__(self, width: int, sources: int, kind: str = "linear", dim: int = 64) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"router={kind}: must be one of {', '.join(KINDS)}")
        self.kind, self.sources = kind, sources
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("prototypes", torch.zeros(sources, width))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("threshold", torch.full((), torch.inf))
        self.layers = nn.Sequential()
        if kind == "mlp":
            self.layers.extend([nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, sources)])
        elif kind == "linear":
            self.layers.append(nn.Linear(width, sources))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, S), calibrated, of features (B, width)."""
        return self._logits(self._standard(features)) / self.temperature

    def distances(self, features: Tensor) -> Tensor:
        """Mean squared distance (B,) of features (B, width) from the nearest prototype, a feature."""
        return self._squares(self._standard(features)).amin(dim=1) / features.shape[1]

    def choose(self, features: Tensor, k: int = 1, possible: Tensor | None = None) -> Choice:
        """The k likeliest sources of each of the samples with such features (B, width), and whether it abstains.

        Args:
            features: (B, width).
            k: the most sources.
            possible: (B, S) whether a source can be asked about a sample, at least one; None: all can.
        """
        logits = self(features)
        if possible is not None:
            logits = logits.masked_fill(~possible, -torch.inf)
        shares = logits.softmax(dim=1)  # (B, S)
        top = shares.topk(min(k, self.sources), dim=1)
        weights = torch.zeros_like(shares).scatter(1, top.indices, top.values)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return Choice(weights, top.indices[:, 0], self.distances(features) > self.threshold)

    def _standard(self, features: Tensor) -> Tensor:
        return ((features.to(self.mean) - self.mean) / self.spread).clamp(-FAR, FAR)

    def _squares(self, standard: Tensor) -> Tensor:
        """Squared distances (B, S) of standardised features (B, width) from the prototypes."""
        return torch.cdist(standard, self.prototypes).square()

    def _logits(self, standard: Tensor) -> Tensor:
        logits: Tensor = self.layers(standard) if len(self.layers) else -self._squares(standard) / 2
        return logits


def fit(features: Tensor, labels: Tensor, sources: int, options: RouterOptions, seed: int) -> Controller:
    """Train a controller; the same arguments give the same bits.

    Args:
        features: (N, width) of samples.
        labels: (N,) the number of each one's source.
        sources: number of sources S; of each there is a sample or more.
        options: the options.
        seed: of the draw of what is held out, of initial weights and order.

    Raises:
        ValueError: an unknown kind.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = features.float()
        learned, held = held_out(labels, options.held_out)
        controller = Controller(features.shape[1], sources, options.router, options.dim)
        _describe(controller, features[learned], labels[learned])
        _train(controller, features[learned], labels[learned], options.epochs)
    with torch.no_grad():
        _calibrate(controller, features[held], labels[held], options.abstain)
    return controller.eval().requires_grad_(False)


def held_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The places of samples that are learned from, and of those that are held out: of each source's samples such a share, at least
    one, where it has two."""
    learned, held = [], []
    for source in labels.unique():
        places = (labels == source).nonzero()[:, 0]
        places = places[torch.randperm(len(places))]
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held.append(places[:count])
        learned.append(places[count:])
    return torch.cat(learned), torch.cat(held)


def _describe(controller: Controller, features: Tensor, labels: Tensor) -> None:
    """Take means and spreads of features (N, width), and the prototypes."""
    of = one_hot(labels, controller.sources).to(features)  # (N, S)
    means = of.T @ features / of.sum(dim=0)[:, None]  # (S, width)
    controller.mean.copy_(features.mean(dim=0))
    controller.spread.copy_((features - means[labels]).square().mean(dim=0).sqrt())
    # what is the same in all samples of a source, but not in all sources (whether there is a question), is measured by all
    alike = controller.spread < LITTLE
    overall = features.std(dim=0, correction=0)
    controller.spread[alike] = overall[alike].clamp(min=LITTLE)
    controller.prototypes.copy_(controller._standard(means))


def _train(controller: Controller, features: Tensor, labels: Tensor, epochs: int) -> None:
    if not len(controller.layers):
        return
    standard = controller._standard(features)
    optimizer = torch.optim.AdamW(controller.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(epochs):
        for places in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(controller._logits(standard[places]), labels[places]).backward()
            optimizer.step()


def _calibrate(controller: Controller, features: Tensor, labels: Tensor, abstain: float) -> None:
    """Set temperature and threshold by samples that were not learned from."""
    logits = controller._logits(controller._standard(features))  # (N, S)
    losses = torch.stack([cross_entropy(logits / one, labels) for one in TEMPERATURES])
    controller.temperature.copy_(TEMPERATURES[losses.argmin()])
    if abstain:
        controller.threshold.copy_(controller.distances(features).quantile(1 - abstain))


def pooled(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean and standard deviation (B, 2 * width) of states (B, L, width) over those that count, (B, L) in the mask."""
    states = states.float()
    keep = states.new_ones(states.shape[:2]) if mask is None else mask.to(states)
    share = (keep / keep.sum(dim=1, keepdim=True).clamp(min=1))[..., None]  # (B, L, 1)
    mean = (states * share).sum(dim=1)
    spread = ((states - mean[:, None]).square() * share).sum(dim=1).sqrt()
    return torch.cat([mean, spread], dim=1)


def confusion(best: Sequence[int], labels: Sequence[int], sources: int) -> list[list[int]]:
    """By source of samples, how many were sent to each source: S rows of S."""
    found = [[0] * sources for _ in range(sources)]
    for chosen, label in zip(best, labels, strict=True):
        found[label][chosen] += 1
    return found
