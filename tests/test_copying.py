"""Copies of neighbours: told the right ones, by the definition of the mixture, in both views."""

from __future__ import annotations

import pytest
import torch
from test_heads import WIDTH, inputs, unit
from tiny_modalities import hash_parameters

from armm.errors import InputError
from armm.heads import CausalConv, Copying, GatedPixelCNN
from armm.heads.copying import CopyingDistribution
from armm.heads.row_stack import RowStackHead

V = 4


def head_of(channels: int = 1) -> RowStackHead:
    config = GatedPixelCNN(channels=4, n_layers=1, first=3, distribution=Copying(rows=2, columns=2))
    head = config.build(WIDTH, unit(5, channels, block=(1, 5), whole_rows=True))
    assert isinstance(head, RowStackHead)
    hash_parameters(head)
    return head.eval()


@pytest.mark.parametrize("channels", [1, 3])
def test_neighbours_are_the_pixels_around(channels: int) -> None:
    """By the definition, pixel by pixel; V where the image has ended, and what is not coded yet is never told."""
    head = head_of(channels)
    context, symbols = inputs(head.unit, 4)
    told = head.parallel(context, symbols)[0, ..., head.read.out_features :].long()
    told = told.unflatten(-1, (len(head.neighbours), channels))
    image = symbols[0].view(4, 5, channels)
    for y in range(4):
        for x in range(5):
            for j, (up, left) in enumerate(head.neighbours):
                inside = y - up >= 0 and 0 <= x - left < 5
                expected = image[y - up, x - left] if inside else torch.full((channels,), V)
                assert torch.equal(told[y, x, j], expected), (y, x, up, left)
                assert up > 0 or left > 0, "not known yet"


def distribution(channels: int) -> CopyingDistribution:
    built = Copying(rows=1, columns=1).build(3, V, channels)
    assert isinstance(built, CopyingDistribution)
    hash_parameters(built, scale=2.0)
    return built


def test_mixture_is_what_it_says() -> None:
    """p(pixel) = w_0 softmax(pixel) + the weights of the neighbours that are that pixel, over what is there."""
    own = distribution(2)
    features = torch.tensor([0.3, -1.0, 0.7])
    told = torch.tensor([[1, 2], [1, 2], [V, V], [3, 0]])  # one is outside the image
    assert len(own.neighbours) == len(told)
    weights = own.weights(features)
    weights[3] = float("-inf")
    weights = weights.softmax(0)
    total = torch.zeros(())
    for r in range(V):
        for g in range(V):
            pixel = torch.tensor([r, g])
            softmax = own.softmax.log_prob(features[None], pixel[None]).sum().exp()
            expected = weights[0] * softmax + sum(weights[1 + j] for j in range(4) if torch.equal(told[j], pixel))
            found = own.log_prob(torch.cat([features, told.flatten().float()])[None], pixel[None]).sum().exp()
            torch.testing.assert_close(found, expected)
            total = total + found
    torch.testing.assert_close(total, torch.tensor(1.0))


def test_logits_are_the_log_prob_of_every_level() -> None:
    torch.manual_seed(0)
    own = distribution(3)
    told = torch.where(torch.rand(6, 4, 1) < 0.3, V, torch.randint(0, V, (6, 4, 3)))  # some are outside the image
    features = torch.cat([torch.randn(6, 3), told.flatten(1).float()], dim=1)
    pixels = torch.randint(0, V, (6, 3))
    nats = own.log_prob(features, pixels)
    for c in range(3):
        logits = own.logits(features, pixels[:, :c])
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(6))
        torch.testing.assert_close(logits.gather(-1, pixels[:, c : c + 1])[:, 0], nats[:, c])


def test_gradients_are_finite_where_nothing_can_be_copied() -> None:
    torch.manual_seed(0)
    own = distribution(1)
    features = torch.cat([torch.randn(2, 3), torch.full((2, 4), float(V))], dim=1)
    own.log_prob(features, torch.tensor([[0], [3]])).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in own.parameters())


def test_a_head_that_does_not_tell_neighbours_refuses() -> None:
    with pytest.raises(InputError, match="does not tell Copying about neighbours"):
        CausalConv(distribution=Copying()).build(WIDTH, unit(5, block=(1, 5), whole_rows=True))
