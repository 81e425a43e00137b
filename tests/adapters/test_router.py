"""Controllers: what they learn, that they are deterministic, their temperature, and when they abstain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlatrain.adapters.router import Controller, RouterOptions, confusion, fit, held_out, pooled

WIDTH, SOURCES, EACH = 7, 3, 60


def blobs(seed: int = 0, apart: float = 3.0) -> tuple[Tensor, Tensor]:
    """Features of sources, each around a place of its own, and their labels."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randn(SOURCES, WIDTH, generator=torch.Generator().manual_seed(9)) * apart
    labels = torch.arange(SOURCES).repeat_interleave(EACH)
    return places[labels] + torch.randn(len(labels), WIDTH, generator=draw), labels


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("prototype", 0), ("linear", WIDTH * SOURCES + SOURCES), ("mlp", WIDTH * 5 + 5 + 5 * SOURCES + SOURCES)],
)
def test_each_kind_learns_and_is_deterministic(kind: str, parameters: int) -> None:
    features, labels = blobs()
    unseen, wanted = blobs(seed=1)
    options = RouterOptions(router=kind, dim=5)
    first, second, other = (fit(features, labels, SOURCES, options, seed) for seed in (0, 0, 1))
    assert sum(own.numel() for own in first.parameters()) == parameters
    assert (first.choose(unseen).best == wanted).float().mean() > 0.95
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_training_leaves_the_global_stream_of_chance_alone() -> None:
    before = torch.random.get_rng_state()
    fit(*blobs(), SOURCES, RouterOptions(), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_prototypes_are_nearest_standardised_means() -> None:
    features, labels = blobs()
    options = RouterOptions(router="prototype")
    controller = fit(features, labels, SOURCES, options, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learned, _ = held_out(labels, options.held_out)
    own, of = features[learned], labels[learned]
    means = torch.stack([own[of == source].mean(dim=0) for source in range(SOURCES)])
    spread = torch.stack([(own[of == source] - means[source]).square().sum(dim=0) for source in range(SOURCES)]).sum(0)
    scaled = (spread / len(own)).sqrt()
    by_hand = ((features[:, None] - means) / scaled).square().sum(dim=-1).argmin(dim=1)
    assert torch.equal(controller.choose(features).best, by_hand)


def test_held_out_samples_are_of_each_source_and_not_learned() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 2 + [3])
    learned, held = held_out(labels, 0.2)
    assert sorted([*learned.tolist(), *held.tolist()]) == [*range(len(labels))]
    assert [int((labels[held] == source).sum()) for source in range(4)] == [2, 1, 1, 0]


def test_the_temperature_is_that_of_the_least_loss_on_held_out_samples() -> None:
    features, labels = blobs(apart=0.8)  # which overlap: probabilities must be humble
    controller = fit(features, labels, SOURCES, RouterOptions(router="prototype"), seed=0)
    unseen, wanted = blobs(seed=1, apart=0.8)
    with torch.no_grad():
        logits = controller(unseen)
        losses = [float(torch.nn.functional.cross_entropy(logits * factor, wanted)) for factor in (1.0, 4.0, 0.25)]
    assert losses[0] == min(losses)


def test_it_abstains_from_what_is_far_from_all_sources() -> None:
    features, labels = blobs()
    controller = fit(features, labels, SOURCES, RouterOptions(abstain=0.05), seed=0)
    unseen, _ = blobs(seed=1)
    assert controller.choose(unseen).abstains.float().mean() < 0.2
    assert controller.choose(unseen + 40).abstains.all()
    assert not fit(features, labels, SOURCES, RouterOptions(), seed=0).choose(unseen + 40).abstains.any()


def test_the_best_k_share_what_they_have_and_impossible_sources_get_nothing() -> None:
    features, labels = blobs(apart=0.5)
    controller = fit(features, labels, SOURCES, RouterOptions(), seed=0)
    shares = controller(features).softmax(dim=1)
    two = controller.choose(features, k=2)
    assert ((two.weights > 0).sum(dim=1) == 2).all()
    torch.testing.assert_close(two.weights.sum(dim=1), torch.ones(len(features)))
    top = shares.topk(2, dim=1)
    wanted = top.values / top.values.sum(dim=1, keepdim=True)
    torch.testing.assert_close(two.weights.gather(1, top.indices), wanted)
    possible = torch.tensor([True, False, True]).expand(len(features), SOURCES)
    assert not (controller.choose(features, possible=possible).best == 1).any()
    assert (controller.choose(features, k=9, possible=possible).weights[:, 1] == 0).all()


def test_a_feature_that_is_the_same_within_each_source_tells_them_apart() -> None:
    flag = torch.tensor([0.0, 1.0]).repeat_interleave(20)[:, None]
    features = torch.cat([flag, torch.randn(40, 3, generator=torch.Generator().manual_seed(0))], dim=1)
    controller = fit(features, flag[:, 0].long(), 2, RouterOptions(router="prototype"), seed=0)
    assert controller.spread.min() > 0.1
    assert torch.equal(controller.choose(features).best, flag[:, 0].long())


def test_pooling_passes_over_what_does_not_count() -> None:
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    changed = states.clone()
    changed[0, 3:] = 100.0
    torch.testing.assert_close(pooled(states, mask), pooled(changed, mask))
    wanted = torch.cat([states[0, :3].mean(dim=0), states[0, :3].std(dim=0, correction=0)])
    torch.testing.assert_close(pooled(states, mask)[0], wanted)


def test_choices_are_counted_by_source() -> None:
    assert confusion([0, 1, 1, 0], [0, 0, 1, 1], 2) == [[1, 1], [1, 1]]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="router=tree: must be one of prototype, linear, mlp"):
        Controller(4, 2, "tree")
