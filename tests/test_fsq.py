"""The learned image tokenizer: a grid that counts right, gradients through rounding, and a modality over its codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from armm import bundle
from armm.backbones import Transformer
from armm.cli import main
from armm.errors import InputError
from armm.fsq import CONFIG_FILE, FSQ, WEIGHTS_FILE, Quantiser, from_files, to_files
from armm.modalities import LatentImage
from armm.model import AutoregressiveModel
from armm.testing import check_causal, check_views_agree, random_document

SMALL = FSQ(levels=(3, 4), factor=2, channels=4)


def latent(size: tuple[int, int] = (8, 6), channels: int = 3) -> LatentImage:
    torch.manual_seed(0)
    files = to_files(SMALL.build(channels), size, 256)
    return LatentImage(trained=(files[CONFIG_FILE], files[WEIGHTS_FILE]))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 4), (7, 7, 2)])
def test_codes_are_the_points_of_the_grid(levels: tuple[int, ...]) -> None:
    """Every code is one point, every point one code, and quantising a point of the grid changes nothing."""
    quantiser, n = Quantiser(levels), FSQ(levels=levels).n_codes
    grid = quantiser.to_grid(torch.arange(n))
    assert torch.equal(quantiser.to_codes(grid), torch.arange(n))
    assert len({tuple(point) for point in grid.tolist()}) == n and grid.abs().max() <= 1
    for level, own in zip(levels, grid.T, strict=True):
        assert len(own.unique()) == level


def test_any_numbers_land_on_the_grid_and_all_of_it_is_reached() -> None:
    quantiser = Quantiser((8, 5))
    z = torch.randn(5000, 2) * 4
    codes = quantiser.to_codes(quantiser(z))
    assert torch.equal(quantiser.to_grid(codes), quantiser(z))
    assert len(codes.unique()) == 40


def test_gradients_pass_the_rounding() -> None:
    z = torch.zeros(3, 2, requires_grad=True)
    Quantiser((8, 5))(z).sum().backward()
    assert z.grad is not None and (z.grad > 0.1).all()


def test_tokenizer_comes_back_from_its_files() -> None:
    torch.manual_seed(0)
    net = SMALL.build(3).eval()
    again, size, levels = from_files(to_files(net, (8, 6), 256), "it")
    pixels = torch.rand(2, 3, 8, 6) * 2 - 1
    assert size == (8, 6) and levels == 256
    for own, other in zip(net(pixels), again(pixels), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_damaged_tokenizer_is_refused(file: str) -> None:
    files = to_files(SMALL.build(1), (8, 8), 256)
    with pytest.raises(InputError, match="damaged"):
        from_files({**files, file: files[file][:40]}, "it")


def test_latent_images_pass_the_laws_and_say_latent_bits() -> None:
    modality = latent()
    model = AutoregressiveModel({"image": modality}, Transformer(width=16, n_layers=1), ["image"]).eval()
    document = random_document(model.grammar, torch.Generator().manual_seed(0), 12)
    check_causal(model, document)
    check_views_agree(model, [document])
    assert modality.bits_per == "latent" and modality.vocab == 12 and modality.grid == (4, 3)


def test_what_comes_back_is_what_the_autoencoder_makes_of_it() -> None:
    """Lossy, and the same again from its own codes; the first rows of codes are enough for a picture."""
    modality = latent()
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    segment = modality.encode(image)
    assert segment.symbols.shape == (4, 3)
    assert modality.decode(segment).shape == (8, 6, 3)
    assert modality.decode(segment.window(0, 2)).shape == (8, 6, 3)
    with pytest.raises(InputError, match="8x6"):
        modality.encode(image[:4])


def test_bundle_keeps_the_tokenizer(tmp_path: Path) -> None:
    model = AutoregressiveModel({"image": latent()}, Transformer(width=16, n_layers=1), ["image"])
    bundle.save(model, tmp_path / "model")
    again = bundle.load(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    own, other = model.modalities["image"].encode(image), again.modalities["image"].encode(image)
    assert torch.equal(own.symbols, other.symbols)


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_is_trained_and_then_a_model_over_its_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "image/latents", "--debug"]) == 2
    assert "armm train image/fsq" in capsys.readouterr().err
    small = ["--model.tokenizer.channels=8", "--data.source.init_args.made=30"]
    assert main(["train", "image/fsq", "--debug", *small]) == 0
    metrics = json.loads(Path("runs/fsq/0/metrics.json").read_text(encoding="utf-8"))
    for split in ("val", "test"):
        assert metrics[split]["rmse_levels"] > 0 and 0 < metrics[split]["codes_used"] <= 1
        assert 1 <= metrics[split]["code_perplexity"] <= 1000
    assert main(["train", "image/fsq", "--debug", "--run_dir=runs/fsq/0"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["train", "image/latents", "--debug", "--data.source.init_args.made=30", "--n_samples=1"]) == 0
    metrics = json.loads(Path("runs/latents/0/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["test"]["image"]) == {"bits_per_latent", "nats_per_latent_image"}
    assert main(["generate", "runs/latents/0", "--n", "1", "--out", "samples"]) == 0
    assert list(Path("samples").glob("*.png"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FSQ(levels=(1, 5)), "levels"),
        (lambda: FSQ(levels=(300, 300)), "levels"),
        (lambda: FSQ(factor=3), "factor is 3"),
        (lambda: FSQ(channels=0), "channels"),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        make()
