"""Images that come as arrays: scikit-learn's digits, MNIST and its like, CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np

from armm.datasets.download import downloading, is_free
from armm.datasets.files import existing, reader
from armm.datasets.folder import own_data
from armm.datasets.idx import find_idx, read_idx
from armm.datasets.source import Item, Items, OnError, Source, Splits, generator
from armm.errors import InputError
from armm.modalities.image import Image
from armm.modality import Modality

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DIGITS_LEVELS = 17
DIGITS_TRAIN, DIGITS_VAL = 1350, 150
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"


@dataclass(frozen=True, eq=False)
class ArrayItems(Items):
    """Images and their classes.

    Attributes:
        name: the image modality's.
        images: (N, H, W) or (N, H, W, 3) uint8, already quantised.
        labels: (N,) integers.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int, draw: int) -> Item:
        return {self.name: self.images[index], "label": int(self.labels[index])}


@dataclass(frozen=True, eq=False)
class ShiftedItems(Items):
    """Images moved by some pixels at every draw, up and down, left and right; what comes in is 0.

    Attributes:
        items: the images. shift: at most so many pixels.
    """

    items: ArrayItems
    shift: int

    varies = True

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int, draw: int) -> Item:
        item, name = self.items.item(index, draw), self.items.name
        return {**item, name: moved(item[name], self.shift, generator(index, draw))}


def moved(image: np.ndarray, most: int, rng: Random) -> np.ndarray:
    """(H, W) or (H, W, C) an image moved by at most so many pixels up or down, left or right; what comes in is 0."""
    down, right = rng.randrange(2 * most + 1), rng.randrange(2 * most + 1)
    height, width = image.shape[:2]
    padded = np.zeros((height + 2 * most, width + 2 * most, *image.shape[2:]), dtype=image.dtype)  # faster than np.pad
    padded[most : most + height, most : most + width] = image
    return padded[down : down + height, right : right + width]


@dataclass(frozen=True, eq=False)
class BinarisedItems(Items):
    """Grey images whose pixels are 1 with the probability of their grey, anew at every draw.

    "Dynamic binarisation", the usual form of binary MNIST for likelihoods (Burda et al., arXiv:1509.00519, 4.1).

    Attributes:
        name: the image modality's.
        greys: (N, H, W) uint8, 255 is certainly 1.
        labels: (N,) integers.
        split: keeps the noise of the splits apart.
    """

    name: str
    greys: np.ndarray
    labels: np.ndarray
    split: int

    varies = True

    def __len__(self) -> int:
        return len(self.greys)

    def item(self, index: int, draw: int) -> Item:
        grey = self.greys[index]
        rng = np.random.default_rng((self.split, index, draw & 0xFFFFFFFF))  # a seed has no sign
        noise = rng.integers(0, 255, grey.size, dtype=np.uint8)  # twice as fast as with a shape
        image = noise.reshape(grey.shape) < grey
        return {self.name: image.view(np.uint8), "label": int(self.labels[index])}


@dataclass(frozen=True)
class Digits(Source):
    """Built in: the 1,797 handwritten digits of scikit-learn, 8×8 pixels of 17 levels, with their classes.

    They are put in the order of `numpy.random.default_rng(0).permutation(1797)`: the first 1,350 are to train on, the
    next 150 for validation and the last 297 for the test. With a path: your own data.

    Args:
        shift: training images are moved by at most so many pixels, anew at every visit.
    """

    shift: int = 0

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is not None:
            return own_data("", modalities, path, on_error)
        name, image = _image(modalities, "the digits", (8, 8), channels=1)
        if image.levels != DIGITS_LEVELS:
            raise InputError(f"{name}.levels is {image.levels}, the digits have {DIGITS_LEVELS}; set it to that")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(f"the digits come with scikit-learn ({error}); pip install armm[datasets]") from error
        pixels, classes = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(pixels))
        images, labels = np.asarray(pixels, dtype=np.uint8).reshape(-1, 8, 8)[order], np.asarray(classes)[order]
        cuts = [DIGITS_TRAIN, DIGITS_TRAIN + DIGITS_VAL]
        parts = zip(np.split(images, cuts), np.split(labels, cuts), strict=True)
        train, val, test = (ArrayItems(name, *part) for part in parts)
        if not 0 <= self.shift < min(image.size or (1, 1)):
            raise InputError(f"data.source.shift is {self.shift}; expected 0 or more, and fewer than the image has")
        return Splits(ShiftedItems(train, self.shift) if self.shift else train, val, test)


@dataclass(frozen=True)
class Mnist(Source):
    """MNIST, or any data in its four idx files, gzipped or not: 28×28 grey images with their classes.

    In the folder of the path, or `data/mnist` under the current folder. The end of the training images is for
    validation; the test images are the test. If the path has no idx files: your own data.

    Args:
        binary: `dynamic`: pixels are 0 or 1, drawn by their grey at every visit; needs 2 levels. `none`: greys.
        val: how many of the training images are for validation.
    """

    binary: Literal["dynamic", "none"] = "none"
    val: int = 5000

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        folder = Path("data/mnist") if path is None else existing(path)
        if not _has_idx(folder):
            if path is not None:
                return own_data("MNIST's idx files", modalities, path, on_error)
            raise InputError(
                f"{folder.resolve()}: has no MNIST; put {', '.join(f'{name}.gz' for name in IDX_FILES)} there, "
                "or name their folder by --data.path"
            )
        return self.read(modalities, folder)

    def read(self, modalities: Mapping[str, Modality], folder: Path) -> Splits:
        """The splits of idx files that are there.

        Raises InputError: one is missing or damaged, or they do not fit together or the model.
        """
        images, labels = _read_pair(folder, "train")
        test_images, test_labels = _read_pair(folder, "t10k")
        if images.shape[1:] != test_images.shape[1:]:
            raise InputError(
                f"{folder}: training images are {images.shape[1:]} pixels, test images {test_images.shape[1:]}"
            )
        if not 0 < self.val < len(images):
            raise InputError(f"data.source.val is {self.val}; expected 1 to {len(images) - 1} of the training images")
        name, image = _image(modalities, f"{folder}", images.shape[1:], channels=1)
        cut = len(images) - self.val
        splits = (
            (images[:cut], labels[:cut]),
            (images[cut:], labels[cut:]),
            (test_images, test_labels),
        )
        if self.binary == "none":
            train, val, test = (ArrayItems(name, image.quantise(part), classes) for part, classes in splits)
            return Splits(train, val, test)
        if image.levels != 2:
            raise InputError(
                f"data.source.binary: dynamic makes 2 levels, {name}.levels is {image.levels}; set it to 2"
            )
        train, val, test = (BinarisedItems(name, *split, number) for number, split in enumerate(splits))
        return Splits(train, val, test)


@dataclass(frozen=True)
class TorchvisionImages(Source):
    """A set that torchvision downloads, into the path or `data/cifar10`, `data/fashionmnist` under the current folder.

    The last 5,000 training images are for validation; the 10,000 test images are the test. Nothing is downloaded if it
    is there already. If the path has other files: your own data.

    Args:
        dataset: `CIFAR10`: 60,000 photographs, 32×32 RGB. `FashionMNIST`: 70,000 clothes, 28×28 grey.
    """

    dataset: Literal["CIFAR10", "FashionMNIST"]

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        folder = Path("data") / self.dataset.lower() if path is None else existing(path)
        is_cifar = self.dataset == "CIFAR10"
        is_there = (folder / "cifar-10-batches-py").is_dir() if is_cifar else _has_idx(folder)
        if path is not None and not is_there and not is_free(path, CIFAR10_ARCHIVE):
            return own_data(f"{self.dataset} as torchvision keeps it", modalities, path, on_error)
        return _cifar10(modalities, folder) if is_cifar else _fashion_mnist(modalities, folder)


def _cifar10(modalities: Mapping[str, Modality], folder: Path) -> Splits:
    name, image = _image(modalities, "CIFAR-10", (32, 32), channels=3)
    datasets = _torchvision_datasets()
    mend = f"put {CIFAR10_ARCHIVE} from https://www.cs.toronto.edu/~kriz/cifar.html into {folder.resolve()}"
    with downloading(folder, mend):
        train, test = (datasets.CIFAR10(str(folder), train=train, download=True) for train in (True, False))
    images, labels = image.quantise(train.data), np.array(train.targets)
    return Splits(
        ArrayItems(name, images[:-5000], labels[:-5000]),
        ArrayItems(name, images[-5000:], labels[-5000:]),
        ArrayItems(name, image.quantise(test.data), np.array(test.targets)),
    )


def _fashion_mnist(modalities: Mapping[str, Modality], folder: Path) -> Splits:
    _image(modalities, "Fashion-MNIST", (28, 28), channels=1)  # before the download
    if not _has_idx(folder):
        mend = (
            f"put {', '.join(f'{name}.gz' for name in IDX_FILES)} from "
            f"https://github.com/zalandoresearch/fashion-mnist into {folder.resolve()}"
        )
        with downloading(folder, mend):
            _torchvision_datasets().FashionMNIST(str(folder), download=True)
    return Mnist().read(modalities, folder)


def _torchvision_datasets() -> Any:
    try:
        from torchvision import datasets
    except (ImportError, OSError, RuntimeError) as error:  # the latter two: a build for another torch
        raise InputError(f"torchvision cannot be imported ({error}); pip install armm[datasets]") from error
    return datasets


def _image(modalities: Mapping[str, Modality], what: str, size: tuple[int, ...], channels: int) -> tuple[str, Image]:
    """The model's image modality, which takes images of this size and so many channels."""
    name, image = reader(modalities, ".png")
    if not isinstance(image, Image):
        raise InputError(f"{name}: {what} needs the image modality armm.Image, not {type(image).__name__}")
    if image.channels != channels:
        raise InputError(f"{name}.channels is {image.channels}, {what} has {channels}; set it to that")
    if image.size is not None and tuple(image.size) != tuple(size):
        wanted = " × ".join(map(str, size))
        raise InputError(
            f"{name}.size is {list(image.size)}, the images of {what} are {wanted}; set it to {list(size)}"
        )
    return name, image


def _idx_folders(folder: Path) -> list[Path]:
    """Where the idx files may lie: also as torchvision puts them."""
    return [folder, folder / "raw", folder / "MNIST/raw", folder / "FashionMNIST/raw"]


def _has_idx(folder: Path) -> bool:
    return any(find_idx(_idx_folders(folder), name) for name in IDX_FILES)


def _read_pair(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W) images and (N,) labels of `train` or `t10k`."""
    paths = []
    for name in IDX_FILES:
        if name.startswith(split):
            path = find_idx(_idx_folders(folder), name)
            if path is None:
                raise InputError(f"{folder}: {name} (or {name}.gz) is missing beside the other idx files; put it there")
            paths.append(path)
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise InputError(f"{paths[1]}: {len(labels)} labels for {len(images)} images; get both files again")
    if not len(images):
        raise InputError(f"{paths[0]}: has no images; get the file again")
    return images, labels
