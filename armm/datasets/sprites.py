"""Small colour pictures: game tiles in files, or creatures made by `data/sprites.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from armm.datasets.builtin import builtin_folder, load_script
from armm.datasets.files import reader
from armm.datasets.folder import own_data
from armm.datasets.source import Item, Items, ListOfItems, OnError, Source, Splits
from armm.errors import InputError
from armm.modalities.image import Image
from armm.modalities.latent import LatentImage
from armm.modality import Modality

FOLDER = Path("data/sprites")


@dataclass(frozen=True)
class Sprites(Source):
    """32×32 RGB pictures on black: PNG files in folders that are their labels, such as Dungeon Crawl's tiles (CC0).

    In the folder of the path, or `data/sprites` under the current folder; dealt out as any folder of yours is. Where
    that is not there, built in: creatures made by `data/sprites.py`, number i for the test where i ends in 9, for
    validation where it ends in 8.

    Args:
        flip: show the training pictures as they are or mirrored, by chance.
        made: how many are made where there are no files.
    """

    flip: bool = True
    made: int = 600

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        name, image = reader(modalities, ".png")
        image = image.pixels if isinstance(image, LatentImage) else image
        if not isinstance(image, Image):
            raise InputError(f"{name}: sprites need the image modality armm.Image, not {type(image).__name__}")
        if path is not None or FOLDER.is_dir():
            splits = own_data("sprites", modalities, FOLDER if path is None else path, on_error)
        else:
            splits = _made(name, image, self.made)
        train = FlippedItems(splits.train, name) if self.flip else splits.train
        return Splits(train, splits.val, splits.test, splits.skipped)


def _made(name: str, image: Image, n: int) -> Splits:
    if n < 10:
        raise InputError(f"data.source.made is {n}; at least 10 make one test and one validation picture")
    if image.channels != 3 or (image.size is not None and image.size != (32, 32)):
        raise InputError(
            f"{name}: the pictures that are made are 32x32 RGB; set size: [32, 32] and channels: 3, or name yours by "
            "--data.path"
        )
    make_sprite = load_script(builtin_folder("data") / "sprites.py").make_sprite
    parts: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
    for number in range(n):
        kind, pixels = make_sprite(number)
        parts[{9: 2, 8: 1}.get(number % 10, 0)].append({name: image.quantise(pixels), "label": kind})
    train, val, test = (ListOfItems(part) for part in parts)
    return Splits(train, val, test)


@dataclass(frozen=True, eq=False)
class FlippedItems(Items):
    """Pictures, mirrored at about every second draw.

    Attributes:
        items: as they are. name: the image modality's.
    """

    items: Items
    name: str

    varies: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int, draw: int) -> Item:
        item = self.items.item(index, draw)
        if np.random.default_rng((index, draw & 0xFFFFFFFF)).random() < 0.5:
            return item
        return {**item, self.name: np.ascontiguousarray(item[self.name][:, ::-1])}

    def values(self, name: str) -> Iterator[Any]:
        return self.items.values(name)
