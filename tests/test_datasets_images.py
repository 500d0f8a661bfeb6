"""Images that come as arrays: digits, idx files, CIFAR-10; nothing is downloaded here."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from armm.datasets import Digits, Items, Mnist, TorchvisionImages, marginal_bits
from armm.datasets.idx import read_idx
from armm.datasets.images import BinarisedItems
from armm.errors import InputError
from armm.modalities import Audio, Image, Label

GREYS = {"image": Image(size=(4, 3))}
BINARY = {"image": Image(size=(4, 3), levels=2)}


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, n_train: int = 30, n_test: int = 8, ending: str = ".gz", size: tuple[int, int] = (4, 3)):
    """A data set like MNIST; image i has the label i % 10 and the grey i in its first pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", n_train), ("t10k", n_test)):
        images = rng.integers(0, 256, (n, *size), dtype=np.uint8)
        images[:, 0, 0] = np.arange(n)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            (folder / f"{split}-{kind}-ubyte{ending}").write_bytes(gzip.compress(content) if ending else content)


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def stack(split) -> np.ndarray:
    return np.stack([split.item(i, 0)["image"] for i in range(len(split))])


# ------------------------------------------------------------------------ idx


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_reads_what_was_written(tmp_path, zipped):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = idx_bytes(array)
    (tmp_path / "a").write_bytes(gzip.compress(content) if zipped else content)
    np.testing.assert_array_equal(read_idx(tmp_path / "a", 3), array)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
BAD = {
    "empty": (b"", "begins with nothing"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "89 50 4e 47"),
    "labels for images": (idx_bytes(np.arange(9, dtype=np.uint8)), "3 axes"),
    "of floats": (b"\0\0\x0d\x03" + GOOD[4:], "00 00 0d 03"),
    "half a header": (GOOD[:10], "header of 16"),
    "cut short": (GOOD[:-1], "2 × 3 × 4 values make 40"),
    "too long": (GOOD + b"x", "41 bytes"),
    "huge by its header": (GOOD[:4] + b"\xff" * 12, "16777215|4294967295"),
    "gzip cut short": (gzip.compress(GOOD)[:-6], "cut short or damaged"),
    "gzip header alone": (b"\x1f\x8b", "cut short or damaged"),
    "gzip with an error": (gzip.compress(GOOD)[:15] + b"\xff\xff" + gzip.compress(GOOD)[17:], "cut short or damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_idx_file_is_one_line_that_names_it(tmp_path, kind):
    content, reason = BAD[kind]
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        read_idx(path, 3)
    assert str(path) in message(error)


# ---------------------------------------------------------------------- MNIST


@pytest.mark.parametrize("place, ending", [("", ".gz"), ("", ""), ("MNIST/raw", "")])
def test_the_end_of_the_training_images_is_for_validation(tmp_path, place, ending):
    write_idx(tmp_path / place, ending=ending)
    splits = Mnist(val=5).load(GREYS, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [25, 5, 8]
    firsts = stack(splits.train)[:, 0, 0].tolist() + stack(splits.val)[:, 0, 0].tolist()
    assert firsts == list(range(30))
    item = splits.val.item(2, 0)
    assert item["label"] == 7 and item["image"].dtype == np.uint8 and item["image"].shape == (4, 3)


def test_files_with_a_dot_in_their_names_are_found(tmp_path):
    """Many copies are called train-images.idx3-ubyte."""
    write_idx(tmp_path, ending="")
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(Mnist(val=5).load(GREYS, tmp_path, "fail").train) == 25


def test_greys_are_quantised_to_the_models_levels(tmp_path):
    write_idx(tmp_path)
    image = Image(size=(4, 3), levels=16)
    all_greys = stack(Mnist(val=5).load(GREYS, tmp_path, "fail").train)
    levels = stack(Mnist(val=5).load({"image": image}, tmp_path, "fail").train)
    np.testing.assert_array_equal(levels, image.quantise(all_greys))
    assert levels.max() == 15


def test_dynamic_binarisation_follows_the_greys(tmp_path):
    """Black is never 1, white always, and grey as often as its share of 255."""
    write_idx(tmp_path)
    items = Mnist(binary="dynamic", val=5).load(BINARY, tmp_path, "fail").train
    assert isinstance(items, BinarisedItems)
    greys = items.greys.copy()
    greys[0, 1, :2] = 0, 255
    items = replace(items, greys=greys)
    draws = np.stack([items.item(0, draw)["image"] for draw in range(4000)])
    assert draws.dtype == np.uint8 and set(np.unique(draws)) == {0, 1}
    assert draws[:, 1, 0].max() == 0 and draws[:, 1, 1].min() == 1
    expected = greys[0] / 255
    error = np.abs(draws.mean(axis=0) - expected) / np.sqrt(np.maximum(expected * (1 - expected), 1e-9) / 4000)
    assert error.max() < 4


def test_a_binarised_item_depends_on_its_draw_and_place_alone(tmp_path):
    write_idx(tmp_path, size=(20, 20))
    splits = Mnist(binary="dynamic", val=5).load({"image": Image(size=(20, 20), levels=2)}, tmp_path, "fail")

    def draw(items: Items, index: int, number: int) -> np.ndarray:
        assert isinstance(items, BinarisedItems)
        return replace(items, greys=np.full((5, 20, 20), 128, np.uint8)).item(index, number)["image"]

    first = draw(splits.train, 3, 7)
    draw(splits.train, 1, 1)
    np.testing.assert_array_equal(first, draw(splits.train, 3, 7))
    # another draw, another image or another split is other noise: about half of 400 pixels agree
    others = [draw(splits.train, 3, 8), draw(splits.train, 4, 7), draw(splits.val, 3, 7), draw(splits.test, 3, 7)]
    assert all(120 < (first == other).sum() < 280 for other in others)
    assert draw(splits.val, 0, -1).shape == (20, 20)


def test_binarisation_needs_two_levels(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(InputError, match=r"image\.levels is 256; set it to 2"):
        Mnist(binary="dynamic", val=5).load(GREYS, tmp_path, "fail")


def test_a_model_for_other_images_is_told_which_key_to_change(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(InputError, match=r"image\.size is \[8, 8\].*4 × 3"):
        Mnist(val=5).load({"image": Image(size=(8, 8))}, tmp_path, "fail")
    with pytest.raises(InputError, match=r"image\.channels is 3"):
        Mnist(val=5).load({"image": Image(size=(4, 3), channels=3)}, tmp_path, "fail")
    with pytest.raises(InputError, match=r"reads \.png files; the model has: audio"):
        Mnist(val=5).load({"audio": Audio()}, tmp_path, "fail")
    with pytest.raises(InputError, match=r"data\.source\.val is 30"):
        Mnist(val=30).load(GREYS, tmp_path, "fail")


def test_a_missing_or_foreign_file_of_the_four_is_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte .* is missing"):
        Mnist(val=5).load(GREYS, tmp_path, "fail")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(9, dtype=np.uint8)))
    with pytest.raises(InputError, match="9 labels for 8 images"):
        Mnist(val=5).load(GREYS, tmp_path, "fail")


def test_without_a_path_it_says_where_to_put_the_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        Mnist().load(GREYS, None, "fail")
    assert str(tmp_path / "data/mnist") in message(error) and "train-images-idx3-ubyte.gz" in message(error)


@pytest.mark.parametrize("source", [Mnist(), Digits(), TorchvisionImages("CIFAR10"), TorchvisionImages("FashionMNIST")])
def test_a_folder_of_pictures_is_own_data_for_every_source(tmp_path, source):
    image = Image(size=(2, 2), levels=4)
    (tmp_path / "one").mkdir()
    for i in range(5):
        image.save(np.full((2, 2), i % 4, dtype=np.uint8), tmp_path / "one" / f"{i}.png")
    splits = source.load({"label": Label(), "image": image}, tmp_path, "fail")
    assert len(splits.train) == 3 and splits.train.item(0, 0)["label"] == "one"


def test_a_folder_with_neither_idx_files_nor_pictures_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"neither MNIST's idx files nor a file that ends in \.png"):
        Mnist().load(GREYS, tmp_path, "fail")


def test_mnist_itself(shared_data):
    splits = Mnist().load({"image": Image(size=(28, 28))}, shared_data / "mnist", "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [55_000, 5_000, 10_000]
    labels = [np.bincount(split.labels) for split in (splits.val, splits.test)]  # pyright: ignore[reportAttributeAccessIssue]
    assert labels[0].min() > 400 and labels[1].tolist()[:3] == [980, 1135, 1032]


# --------------------------------------------------------------------- digits


def test_digits_are_split_as_documented():
    """Pinned: the order is numpy's, and another would change every number that was ever reported."""
    splits = Digits().load({"image": Image(size=(8, 8), levels=17)}, None, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [1350, 150, 297]
    item = splits.test.item(0, 0)
    assert item["image"].dtype == np.uint8 and item["image"].shape == (8, 8) and isinstance(item["label"], int)
    images = [stack(split) for split in (splits.train, splits.val, splits.test)]
    assert max(part.max() for part in images) == 16
    digest = hashlib.sha256(b"".join(part.tobytes() for part in images)).hexdigest()
    assert digest[:16] == "41f1cde3d1230a38"
    # the reference that the results are set against is 2.419, counted on training and validation images
    bits = marginal_bits(np.concatenate(images[:2]), images[2], 17)
    assert bits == pytest.approx(2.4208, abs=1e-4)


def test_digits_need_17_levels():
    with pytest.raises(InputError, match=r"image\.levels is 256, the digits have 17"):
        Digits().load({"image": Image(size=(8, 8))}, None, "fail")


# ---------------------------------------------------------------- torchvision


NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once, and nothing leaves the machine


@pytest.fixture
def cifar_files(monkeypatch):
    """Write CIFAR-10 as torchvision keeps it, but of 6,000 random images, and have torchvision accept it."""
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)

    def write(folder: Path) -> tuple[np.ndarray, np.ndarray]:
        batches = folder / "cifar-10-batches-py"
        batches.mkdir(parents=True)
        md5s, images = {}, []
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        for name in names:
            data = rng.integers(0, 256, (1200, 3072), dtype=np.uint8)
            images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            content = pickle.dumps({"data": data, "labels": [i % 10 for i in range(1200)]})
            (batches / name).write_bytes(content)
            md5s[name] = hashlib.md5(content).hexdigest()
        meta = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
        (batches / "batches.meta").write_bytes(meta)
        monkeypatch.setattr(CIFAR10, "train_list", [[name, md5s[name]] for name in names[:5]])
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5s["test_batch"]]])
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
        return np.concatenate(images[:5]), images[5]

    monkeypatch.setattr(CIFAR10, "url", NOWHERE + CIFAR10.filename)
    return write


CIFAR = {"image": Image(size=(32, 32), channels=3)}


def test_cifar_that_is_there_is_read_without_a_download(tmp_path, cifar_files):
    train, test = cifar_files(tmp_path)
    splits = TorchvisionImages("CIFAR10").load(CIFAR, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [1000, 5000, 1200]
    np.testing.assert_array_equal(splits.train.item(999, 0)["image"], train[999])
    np.testing.assert_array_equal(splits.val.item(0, 0)["image"], train[1000])
    np.testing.assert_array_equal(splits.test.item(7, 0)["image"], test[7])
    assert splits.test.item(7, 0)["label"] == 7


def test_a_changed_cifar_batch_is_not_unpickled(tmp_path, cifar_files):
    """A pickle runs code: torchvision's check of its sum must come first."""
    cifar_files(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(b"cbuiltins\nexec\n(S'raise SystemExit(3)'\ntR.")
    with pytest.raises(InputError, match="download failed"):
        TorchvisionImages("CIFAR10").load(CIFAR, tmp_path, "fail")
    assert batch.exists()


@pytest.mark.parametrize("name, wanted", [("CIFAR10", "cifar-10-python.tar.gz"), ("FashionMNIST", "t10k-labels-idx1")])
def test_an_impossible_download_says_which_files_to_put_where(tmp_path, monkeypatch, name, wanted):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", NOWHERE + "cifar-10-python.tar.gz")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [NOWHERE])
    monkeypatch.chdir(tmp_path)
    modalities = CIFAR if name == "CIFAR10" else {"image": Image(size=(28, 28))}
    with pytest.raises(InputError, match="download failed") as error:
        TorchvisionImages(name).load(modalities, None, "fail")
    assert wanted in message(error) and str(tmp_path / "data" / name.lower()) in message(error)
    assert not any(tmp_path.iterdir()), "nothing half-written is left"


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
def test_fashion_mnist_that_is_there_is_read_without_a_download(tmp_path, monkeypatch, place):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [NOWHERE])
    write_idx(tmp_path / place, n_train=5010, size=(28, 28), ending=".gz" if not place else "")
    splits = TorchvisionImages("FashionMNIST").load({"image": Image(size=(28, 28))}, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [10, 5000, 8]
