"""Quantised matrices: how far from the float ones, the same in every layout and row count, and whole models of them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_modalities import Clip, Letters
from torch import Tensor, nn

import armm.kernels
from armm import quantization
from armm.backbones import NoBackbone, Transformer
from armm.batching import collate
from armm.embedders import TokenEmbedder
from armm.errors import InputError
from armm.heads import Categorical, CategoricalHead
from armm.kernels import DIGITS, FLOAT, INT4, INT8, ZERO_DIGIT, Kernel, Weights, dequantise, kernels, to_int4, to_int8
from armm.model import AutoregressiveModel
from armm.quantization import HalfLinear, PackedLinear, describe, quantise
from armm.testing.models import tiny_model

KERNELS = {"digits": DIGITS, "int8": INT8, "int4": INT4}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Each kernel in its turn, as the first one to be tried."""
    if request.param == "digits" and not torch.cpu._is_vnni_supported():
        pytest.skip("this processor has no products of bytes")
    own = KERNELS[request.param]
    monkeypatch.setattr(quantization, "kernels", lambda weights, device: (own, FLOAT))
    return own


@pytest.fixture
def weights(kernel: Kernel) -> Weights:
    return "int4" if kernel is INT4 else "int8"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stands_for(layer: PackedLinear) -> Tensor:
    """(N, K) the numbers of a packed matrix, padding cut off."""
    codes = layer.state_dict()["codes"]
    return dequantise(codes, layer.scales)[: layer.out_features, : layer.in_features]


def assert_product(got: Tensor, x: Tensor, weight: Tensor, tolerance: float = 1e-5) -> None:
    """`x` holds bfloat16 numbers, so all that may differ is the rounding of the result, and the order of sums."""
    wanted, magnitude = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    assert ((got - wanted).abs() <= 2**-8 * wanted.abs() + tolerance * magnitude).all()


# ------------------------------------------------------------------ the numbers


def test_int8_is_wrong_by_half_a_step_at_most() -> None:
    """Of every row's own step: a scale for the whole matrix would drown the small rows."""
    weight = normal(64, 48) * torch.logspace(-6, 3, 64)[:, None]
    weight[7] = 0
    codes, scales = to_int8(weight)
    assert ((dequantise(codes, scales) - weight).abs() <= scales.float()[:, None] * 0.5001).all()
    steps = scales.float() * 127 / weight.abs().amax(1)
    assert (steps[weight.any(1)] - 1).abs().max() < 2**-8, "the range is used to its end"


@pytest.mark.parametrize("group", [32, 64])
def test_int4_is_wrong_by_half_a_step_inside_its_range(group: int) -> None:
    """And beyond its 15 steps lie few weights only, all of them near."""
    weight = normal(48, 256) + normal(48, 1, seed=1)
    codes, scales = to_int4(weight, group)
    scale, offset = (t.float().T.repeat_interleave(group, dim=1) for t in scales.unbind(-1))
    position = (weight - offset) / scale
    inside = (position >= -8) & (position <= 7)
    wrong = (dequantise(codes, scales) - weight).abs() / scale
    assert wrong[inside].max() <= 0.5001
    assert wrong.max() < 2 and inside.float().mean() > 0.9


def test_int4_fits_its_scales() -> None:
    """The least-squares fit takes an eighth off the squared error of plain rounding between least and largest."""
    weight = normal(256, 256)
    groups = weight.unflatten(1, (-1, 32))
    low, step = groups.amin(-1, keepdim=True), (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    plain = ((groups - low) / step).round() * step + low
    fitted = dequantise(*to_int4(weight, 32))
    assert (fitted - weight).square().mean() < 0.88 * (plain - groups).square().mean()


def test_int4_of_constant_groups() -> None:
    """A group without a range divides by nothing."""
    weight = torch.zeros(3, 64)
    weight[1], weight[2, :32] = 0.75, -3.0
    assert torch.equal(dequantise(*to_int4(weight, 32)), weight)


def test_numbers_that_codes_can_hold_stay_as_they_are() -> None:
    """No bias of half a step, no asymmetry between least and largest."""
    whole = (torch.arange(16 * 64) * 7 % 255 - 127).view(16, 64)
    whole[:, 0] = 127  # each row reaches its largest code
    weight = whole * torch.tensor([2.0**-k for k in range(16)])[:, None]
    codes, scales = to_int8(weight)
    assert torch.equal(dequantise(codes, scales), weight)
    digits = (torch.arange(16 * 64) * 5 % 16).view(16, 64)  # each group has all codes
    weight = (digits - 8) * 0.25 + torch.arange(16)[:, None]
    codes, scales = to_int4(weight, 32)
    assert torch.equal(dequantise(codes, scales), weight)
    assert torch.equal(codes, (digits[:, ::2] * 16 + digits[:, 1::2]).to(torch.uint8)), (
        "the even input is in the high half"
    )


def test_codes_do_not_depend_on_the_other_outputs() -> None:
    """Large matrices are fitted block by block."""
    weight = normal(3000, 128)
    codes, scales = to_int4(weight, 32)
    alone, own = to_int4(weight[2500:2510], 32)
    assert torch.equal(codes[2500:2510], alone) and torch.equal(scales[:, 2500:2510], own)


# ----------------------------------------------------------------- the products


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 7), (16, 32), (33, 17), (64, 16), (80, 344), (257, 24), (130, 96)])
def test_product_of_any_shape(kernel: Kernel, weights: Weights, n: int, k: int) -> None:
    """Shapes that are no multiple of what a kernel takes at a time: torch's int8 reads past their end."""
    bias = normal(n, seed=2).bfloat16().float()
    layer = PackedLinear(normal(n, k), bias, weights)
    assert layer.kernel == kernel.name
    weight = stands_for(layer)
    assert (weight - normal(n, k)).square().mean() < (1e-4 if weights == "int8" else 1e-2)
    for m in (0, 1, 3, 4, 5, 9):
        x = normal(m, k, seed=m).bfloat16().float()
        assert_product(layer(x) - bias, x, weight, kernel.tolerance)


@pytest.mark.parametrize("k", [40, 64])
def test_shape_and_dtype_of_activations_stay(weights: Weights, k: int) -> None:
    layer = PackedLinear(normal(24, k), normal(24, seed=1), weights)
    x = normal(2, 3, k).bfloat16()
    rows = layer(x.float().flatten(0, 1))
    assert torch.equal(layer(x.float()), rows.view(2, 3, 24))
    assert torch.equal(layer(x.float()[0, 0]), rows[0])
    for dtype in (torch.bfloat16, torch.float64, torch.float16):
        assert layer(x.to(dtype)).dtype == dtype
    assert torch.allclose(layer(x).float(), rows.view(2, 3, 24), rtol=2**-7)
    across = x.float().transpose(1, 2).contiguous().transpose(1, 2)  # the same numbers, not in one piece
    assert torch.equal(layer(across), layer(x.float()))


def test_int8_of_activations_at_an_odd_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's product reads bfloat16 with aligned loads, and where there is no such address the process ends."""
    monkeypatch.setattr(quantization, "kernels", lambda weights, device: (INT8,))
    layer = PackedLinear(normal(16, 64), None, "int8")
    store = normal(3 * 64 + 8).bfloat16()
    x = store[8:].view(3, 64)
    assert x.data_ptr() % 32
    assert torch.equal(layer(x), layer(x.clone()))


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_do_not_depend_on_each_other(weights: Weights, threads: int) -> None:
    """Bit for bit, whatever the number of rows: this is why exact generation needs no padding with packed matrices."""
    layers = [PackedLinear(normal(n, k), None, weights) for n, k in ((96, 512), (37, 72))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for layer in layers:
            x = normal(48, layer.in_features)
            alone = torch.cat([layer(row) for row in x.split(1)])
            for m in range(1, 49):
                assert torch.equal(layer(x[:m]), alone[:m]), f"{m} rows"
                assert torch.equal(layer(x[48 - m :]), alone[48 - m :]), f"the last {m} rows"
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------ substitutes


@pytest.fixture(params=["missing", "refuses", "wrong"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], None]:
    """Takes a kernel's operation away, or makes it fail, or forget the last input."""

    def spoil(kernel: Kernel) -> None:
        owner: Any = armm.kernels if kernel is DIGITS else torch
        name = "_of_digits" if kernel is DIGITS else kernel.name
        right = getattr(owner, name)

        def refuse(*arguments: object) -> Tensor:
            raise NotImplementedError("not for this processor")

        def forget(x: Tensor, *arguments: object) -> Tensor:
            x = x.clone()
            x[:, -1] = ZERO_DIGIT if kernel is DIGITS else 0
            return right(x, *arguments)

        if request.param == "missing" and kernel is DIGITS:
            monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
        elif request.param == "missing":
            monkeypatch.delattr(torch, name)
        else:
            monkeypatch.setattr(owner, name, refuse if request.param == "refuses" else forget)

    return spoil


def test_substitute_gives_the_same_numbers(kernel: Kernel, weights: Weights, broken: Callable[[Kernel], None]) -> None:
    """A kernel that is missing, or wrong in one input of 512, is found when a matrix is packed, not in the samples."""
    weight, bias, x = normal(70, 512), normal(70, seed=1), normal(6, 512, seed=2).bfloat16().float()
    right = PackedLinear(weight, bias, weights)
    wanted, state = right(x), right.state_dict()
    broken(kernel)
    layer = PackedLinear(weight, bias, weights)
    assert (right.kernel, layer.kernel) == (kernel.name, "float")
    assert torch.allclose(layer(x), wanted, rtol=2**-8, atol=2**-7)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert layer.bits >= 32


def test_devices_without_a_product() -> None:
    """int4 says so where nothing multiplies it; int8 always has a way."""
    assert kernels("int4", torch.device("mps")) == ()
    with pytest.raises(InputError, match="int4 does not work on device meta here; choose int8"):
        PackedLinear(torch.empty(16, 32, device="meta"), None, "int4")
    (on_the_fly,) = kernels("int8", torch.device("mps"))
    codes, scales = to_int8(normal(16, 32))
    assert on_the_fly.agrees(codes, on_the_fly.pack(codes, scales), scales, 32)
    assert not on_the_fly.agrees(codes, codes.roll(1, 0), scales, 32)


# --------------------------------------------------------------------- modules


def test_state_dict_is_for_any_machine(weights: Weights) -> None:
    """It holds plain codes, whatever layout the processor wants, and a layer that loads it is the one that saved it."""
    first, second = PackedLinear(normal(80, 96), None, weights), PackedLinear(normal(80, 96, seed=1), None, weights)
    codes, scales = to_int8(normal(80, 96)) if weights == "int8" else to_int4(normal(80, 96), 32)
    state = first.state_dict()
    assert set(state) == {"codes", "scales"}
    assert torch.equal(state["codes"], codes) and torch.equal(state["scales"], scales)
    x = normal(2, 96, seed=3)
    before = second(x)
    second.load_state_dict(state)
    assert torch.equal(second(x), first(x)) and not torch.equal(before, first(x))
    assert torch.equal(deepcopy(first)(x), first(x))


@pytest.mark.parametrize("substitute", [False, True])
def test_casting_a_model_leaves_codes_alone(
    weights: Weights, substitute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if substitute:
        monkeypatch.setattr(quantization, "kernels", lambda weights, device: (FLOAT,))
    layer, x = PackedLinear(normal(16, 64), normal(16, seed=1), weights), normal(2, 64, seed=2)
    wanted, state = layer(x), layer.state_dict()
    for move in (nn.Module.bfloat16, nn.Module.float, nn.Module.cpu):
        move(layer)
        assert torch.allclose(layer(x), wanted, rtol=2**-8, atol=2**-8)
        assert torch.equal(layer.scales, state["scales"]) and torch.equal(layer.state_dict()["codes"], state["codes"])


def test_memory_per_weight() -> None:
    weight = normal(256, 512)
    plain = PackedLinear(weight, None, "int8")
    assert plain.bits == 8 + 16 / 512 + (32 / 512 if plain.in_panels else 0)  # where sums begin
    assert PackedLinear(weight, None, "int4").bits == 4 + 32 / 32
    assert PackedLinear(weight, None, "int4", group=128).bits == 4 + 32 / 128


# ---------------------------------------------------------------------- models


BACKBONE = Transformer(width=32, n_layers=2, n_heads=2, mlp="swiglu", mlp_width=40, bias=True, value_embeddings=True)


def model_of(head: Categorical | None = None) -> AutoregressiveModel:
    return tiny_model({"letters": Letters(vocab=40, head=head)}, BACKBONE)


@torch.no_grad()
def payload(model: AutoregressiveModel) -> Tensor:
    """Nats of letters in four documents of a fixed kind."""
    letters = model.modalities["letters"]
    raws = [[(i * i + 3 * i * j + j) % 40 for i in range(12)] for j in range(4)]
    return model.log_prob(collate([[letters.encode(raw)] for raw in raws], model.grammar)).payload["letters"]


@pytest.mark.parametrize(
    "head", [Categorical(), Categorical(tied=True), Categorical(bias=False, softcap=10.0)], ids=str
)
@pytest.mark.parametrize(("weights", "allowed"), [("int8", 0.025), ("int4", 0.25)])
def test_probabilities_stay_close(weights: Weights, allowed: float, head: Categorical) -> None:
    """The whole model: a matrix left out, a lost bias or a transposed one would show in every symbol."""
    model = model_of(head)
    before = payload(model)
    shift = (payload(quantise(model, weights)) - before).std()
    assert 0 < shift < allowed * before.std()


def test_every_large_matrix_is_replaced_by_its_own() -> None:
    """With weights that int8 can hold, and without the rounding of activations, nothing changes at all."""
    model = model_of()
    head = model.heads["letters"]
    assert isinstance(head, CategoricalHead)
    matrices = [m.weight for m in model.backbone.modules() if isinstance(m, nn.Linear)] + [head.weight]
    assert len(matrices) == 2 * 4 + 1
    for matrix in matrices:
        matrix.data = dequantise(*to_int8(matrix.data))
    wanted = payload(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "kernels", lambda weights, device: (FLOAT,))
        quantise(model, "int8")
    assert sum(isinstance(m, PackedLinear) for m in model.modules()) == 9
    assert not any(isinstance(m, nn.Linear) for m in model.backbone.modules())
    assert torch.allclose(payload(model), wanted, atol=1e-5)


def test_stepping_agrees_with_scoring(weights: Weights) -> None:
    """The state of a quantised model asks nothing of matrices that are gone."""
    model = quantise(model_of(Categorical(bias=False)), weights)
    state, found = model.state(1), []
    document = [model.modalities["letters"].encode([3, 39, 0, 17, 5])]
    with torch.no_grad():
        for symbol in model.grammar.flatten(document):
            found.append(state.logits([0])[0].log_softmax(-1)[symbol])
            state.append([[symbol]])
        assert torch.allclose(torch.stack(found), model.stream_log_prob(document), atol=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_only_a_table_that_embeds_stays_float(tied: bool) -> None:
    """A tied embedding is looked up as before, an output matrix of its own is not kept beside its codes."""
    model = model_of(Categorical(tied=tied))
    head, embedder = model.heads["letters"], model.embedders["letters"]
    assert isinstance(head, CategoricalHead) and isinstance(embedder, TokenEmbedder)
    table = deepcopy(embedder.weight)
    quantise(model, "int4")
    assert torch.equal(embedder.weight, table)
    assert (head.weight is embedder.weight) == tied and head.weight.numel() == (table.numel() if tied else 0)
    assert isinstance(head.output, PackedLinear) and head.output.out_features == 40


def test_quantised_model_has_no_gradients_and_says_what_it_is(kernel: Kernel, weights: Weights) -> None:
    model = model_of()
    n_bytes = 4 * model.n_parameters
    assert quantise(model, weights) is model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    line = describe(model)
    assert line.startswith(f"{weights} by {kernel.name}: 9 matrices of 0.02 M weights at ")
    assert line.endswith(" MB in all") and float(line.split()[-4]) < n_bytes / 2e6
    assert "float: 0.0" in describe(model_of()) and "int" not in describe(model_of())


def test_user_mistakes() -> None:
    with pytest.raises(InputError, match="weights is 'int9', expected bf16, int8, int4; did you mean 'int8'"):
        quantise(model_of(), "int9")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="group is 48, it must be one of 32, 64, 128, 256"):
        quantise(model_of(), "int4", group=48)
    with pytest.raises(InputError, match="already"):
        quantise(quantise(model_of(), "int8"), "int4")
    with pytest.raises(InputError, match="no large matrices"):
        quantise(tiny_model({"clip": Clip()}, NoBackbone(), ["clip"]), "int8")


def test_bfloat16_is_the_matrix_rounded() -> None:
    """Nothing but the rounding of matrix, activations and result; the bias stays float32."""
    linear = nn.Linear(48, 20)
    layer = HalfLinear(linear.weight, linear.bias)
    x = normal(3, 5, 48)
    expected = x.bfloat16().double() @ linear.weight.bfloat16().double().T + linear.bias.double()
    assert layer(x).shape == (3, 5, 20) and layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x).double(), expected, rtol=2**-7, atol=2**-7)
    assert not torch.equal(layer(x), linear(x))


def test_a_model_in_bfloat16_is_close_and_half_the_size() -> None:
    model = tiny_model({"letters": Letters()}, Transformer(width=32, n_layers=1, n_heads=2), ["letters"])
    float_logits = model.state().extend([[0, 1, 0]])
    n_bytes = sum(p.nbytes for p in model.backbone.parameters())
    quantise(model, "bf16")
    torch.testing.assert_close(model.state().extend([[0, 1, 0]]), float_logits, rtol=0.05, atol=0.05)
    assert sum(b.nbytes for b in model.backbone.buffers()) == n_bytes / 2
    assert "bf16 by linear" in describe(model)
