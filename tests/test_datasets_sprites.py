"""Colour pictures: made ones, mirrored ones, and one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from armm.datasets import Sprites
from armm.datasets.codecs import codec_bits
from armm.datasets.sprites import FlippedItems
from armm.errors import InputError
from armm.modalities import Audio, Image, Label

IMAGE = {"image": Image(size=(32, 32), channels=3)}


def test_made_ones_are_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    splits = Sprites(made=30).load(IMAGE, None, "fail")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 3, 3)
    again = Sprites(made=30).load(IMAGE, None, "fail")
    for index in range(3):
        item, other = splits.test.item(index, 0), again.test.item(index, 5)
        assert np.array_equal(item["image"], other["image"]) and item["label"] == other["label"]
        assert item["image"].shape == (32, 32, 3) and item["image"].any() and not item["image"][0].any()
    assert not np.array_equal(splits.test.item(0, 0)["image"], splits.test.item(1, 0)["image"])


def test_training_pictures_are_mirrored_by_the_draw_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    splits = Sprites(made=30).load(IMAGE, None, "fail")
    plain = Sprites(made=30, flip=False).load(IMAGE, None, "fail").train.item(3, 0)["image"]
    seen = [splits.train.item(3, draw)["image"] for draw in range(20)]
    mirrored = [np.array_equal(image, plain[:, ::-1]) for image in seen]
    assert all(one or np.array_equal(image, plain) for one, image in zip(mirrored, seen, strict=True))
    assert 3 < sum(mirrored) < 17
    assert np.array_equal(seen[4], splits.train.item(3, 4)["image"])
    assert isinstance(splits.train, FlippedItems) and not isinstance(splits.val, FlippedItems)


def test_own_folder_has_labels_and_is_not_replaced(tmp_path: Path) -> None:
    image = Image(size=(32, 32), channels=3)
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(8):
            image.save(np.full((32, 32, 3), number, dtype=np.uint8), tmp_path / kind / f"{number}.png")
    splits = Sprites().load({**IMAGE, "label": Label()}, tmp_path, "fail")
    assert len(splits.train) + len(splits.val) + len(splits.test) == 16
    assert {splits.train.item(i, 0)["label"] for i in range(len(splits.train))} == {"a", "b"}


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="32x32 RGB"):
        Sprites().load({"image": Image(size=(16, 16), channels=3)}, None, "fail")
    with pytest.raises(InputError, match=r"made is 3"):
        Sprites(made=3).load(IMAGE, None, "fail")
    with pytest.raises(InputError, match=r"reads \.png files"):
        Sprites().load({"audio": Audio()}, None, "fail")


def test_codecs_take_the_bits_of_their_files() -> None:
    """One colour takes next to nothing, noise takes more than 8 bits, and a palette helps where there are few."""
    rng = np.random.default_rng(0)
    flat = codec_bits([np.full((32, 32, 3), 7, dtype=np.uint8)])
    noise = codec_bits([rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)])
    few = codec_bits(
        [np.array([[9, 80, 200], [30, 250, 3], [77, 7, 150]])[rng.integers(0, 3, (32, 32))].astype(np.uint8)]
    )
    assert set(flat) == {"png", "png_palette", "webp"}
    assert all(bits < 0.3 for bits in flat.values()) and all(8 <= bits < 9 for bits in noise.values())
    assert few["png_palette"] < few["png"]
    with pytest.raises(InputError, match="no pictures"):
        codec_bits([])
