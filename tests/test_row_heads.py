"""PixelCNN, Gated PixelCNN and the PixelRNNs: exactly which pixels each can see, and what it costs to step."""

from __future__ import annotations

import pytest
import torch
from test_heads import WIDTH, inputs, unit
from tiny_modalities import hash_parameters
from torch import Tensor

from armm.errors import InputError
from armm.heads import DiagonalBiLSTM, GatedPixelCNN, HeadConfig, PixelCNN, RowLSTM
from armm.heads.pixel_rnn import skew, unskew
from armm.heads.row_stack import RowStackHead

ROWS, COLUMNS = 6, 7
Y, X = (torch.arange(ROWS * COLUMNS) // COLUMNS), (torch.arange(ROWS * COLUMNS) % COLUMNS)
DY, DX = Y[:, None] - Y, X[:, None] - X  # of the one that sees from the one that is seen
EARLIER = (DY > 0) | (DY == 0) & (DX > 0)


def build(config: HeadConfig) -> RowStackHead:
    head = config.build(WIDTH, unit(COLUMNS, block=(1, COLUMNS), whole_rows=True))
    assert isinstance(head, RowStackHead)
    hash_parameters(head, scale=1.5)
    return head.double().eval()


def influences(config: HeadConfig) -> Tensor:
    """(n, n) bool: [i, j] where pixel j reaches the features of pixel i, by their gradients."""
    head = build(config)
    context, symbols = inputs(head.unit, ROWS)
    columns = []
    pixels = head.pixels(symbols).detach().requires_grad_()
    head.pixels = lambda symbols: pixels  # type: ignore[method-assign]
    head.features = lambda x, *_: x  # type: ignore[method-assign]  # rectifiers would hide some
    features = head.parallel(context.double(), symbols).flatten(0, 2).sum(-1)
    for feature in features:
        (gradient,) = torch.autograd.grad(feature, pixels, retain_graph=True)
        columns.append((gradient != 0).any(-1).flatten())
    return torch.stack(columns)


def test_pixel_cnn_has_its_blind_spot() -> None:
    """3×3 kernels reach one column to the right for each row up; the pixels right of that are never seen."""
    seen = influences(PixelCNN(channels=16, n_layers=4, first=3))
    reachable = (DX >= -DY) & EARLIER & (DY <= 5)
    assert not seen[~reachable].any()
    assert seen[reachable & (DX.abs() <= 5)].all()
    blind = EARLIER & (DX < -DY)
    assert blind.any() and not seen[blind].any()


def test_gated_pixel_cnn_has_no_blind_spot() -> None:
    """Within its reach, every pixel above and all to the left."""
    seen = influences(GatedPixelCNN(channels=4, n_layers=5, first=5))
    assert not seen[~EARLIER].any()
    assert seen[EARLIER & (DY <= 7) & (DX.abs() <= 6)].all()


def test_row_lstm_sees_a_triangle() -> None:
    """One column more to either side for each row up, to the top of the image; layers add to it along the row."""
    seen = influences(RowLSTM(channels=4, n_layers=1, first=3))
    assert not seen[~EARLIER].any()
    assert seen[EARLIER & (DX.abs() <= DY)].all()
    assert not seen[(DY > 0) & (DX < -DY)].any()


def test_diagonal_lstm_sees_everything_before() -> None:
    """One layer is enough for all pixels above, right ones too, and all to the left.

    But for the last pixel of the row right above, which no place of that row knows: only the first convolution sees it.
    """
    not_yet = (DY == 1) & (X == COLUMNS - 1) & (X[:, None] < COLUMNS - 2)
    assert torch.equal(influences(DiagonalBiLSTM(channels=4, n_layers=1, first=3)), EARLIER & ~not_yet)


def test_a_first_layer_that_sees_its_own_pixel_would_be_caught() -> None:
    config = PixelCNN(channels=4, n_layers=1, first=3)
    head = build(config)
    head.enter.own.strictly = False  # type: ignore[union-attr]
    head.enter.own.conv = torch.nn.Conv2d(head.embed.width, 8, (1, 1), bias=False).double()  # type: ignore[union-attr]
    context, symbols = inputs(head.unit, 2)
    pixels = head.pixels(symbols).detach().requires_grad_()
    head.pixels = lambda symbols: pixels  # type: ignore[method-assign]
    (gradient,) = torch.autograd.grad(head.parallel(context.double(), symbols)[0, 0, 0].sum(), pixels)
    assert gradient[0, 0, 0].any()


def test_skewed_rows_come_back() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5) + 1
    skewed = skew(x)
    assert skewed.shape == (2, 3, 6, 5)
    for row in range(3):
        assert torch.equal(skewed[:, row, row : row + 4], x[:, row])
        assert not skewed[:, row, :row].any() and not skewed[:, row, row + 4 :].any()
    assert torch.equal(unskew(skewed), x)


@pytest.mark.parametrize(
    "config", [PixelCNN(), GatedPixelCNN(), RowLSTM(), DiagonalBiLSTM()], ids=lambda c: type(c).__name__
)
def test_row_heads_refuse_what_has_no_rows(config: HeadConfig) -> None:
    for of in (unit(4, continuous=True), unit(4, block=(2, 2)), unit(1)):
        with pytest.raises(InputError, match="codes whole rows of images"):
            config.build(WIDTH, of)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelCNN(first=4), "a kernel is 4"),
        (lambda: GatedPixelCNN(kernel=1), "a kernel is 1"),
        (lambda: RowLSTM(n_layers=0), "n_layers 0"),
        (lambda: DiagonalBiLSTM(dropout=1.0), "dropout is 1.0"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        make()
