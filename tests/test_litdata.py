"""Shards of litdata: any item in any order, and nothing pickled."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from armm.backbones import Transformer
from armm.datasets import LitData
from armm.datasets.litdata import LitItems
from armm.errors import InputError
from armm.modalities import Image, Label, Text
from armm.model import AutoregressiveModel
from armm.training import DataModule


def write_litdata(folder: Path, formats: list[str]) -> None:
    folder.mkdir()
    chunks = [{"chunk_bytes": 8, "chunk_size": 2, "dim": None, "filename": "chunk-0-0.bin"}]
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": {"data_format": formats}}))


def test_pickled_shards_are_refused(tmp_path: Path) -> None:
    """To read them is to run what their author wrote."""
    write_litdata(tmp_path / "set", ["bytes", "pickle"])
    with pytest.raises(InputError, match=r"index\.json: some of it is pickled"):
        LitData(str(tmp_path / "set"), str(tmp_path / "set")).load({"label": Label()}, None, "fail")


def test_without_litdata_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_litdata(tmp_path / "set", ["bytes"])
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(InputError, match=r"pip install armm\[storage\]"):
        LitData(str(tmp_path / "set"), str(tmp_path / "set")).load({"label": Label()}, None, "fail")


def lit_item(number: int) -> dict[str, Any]:
    """A picture as an array, a class by name, and a text as the bytes of a file."""
    picture = np.full((2, 2), number % 4, dtype=np.uint8)
    return {"picture": picture, "label": "even" if number % 2 == 0 else "odd", "text": f"number {number}".encode()}


def test_no_item_is_read_for_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a set in object storage would be, before the first step."""
    write_litdata(tmp_path / "set", ["bytes"])
    monkeypatch.setitem(sys.modules, "litdata", ModuleType("litdata"))
    read: list[int] = []

    def entries(self: LitItems, index: int) -> dict[str, Any]:
        read.append(index)
        return {"text": "some text, " * (5 + index)}

    monkeypatch.setattr(LitItems, "_entries", entries)
    index = json.loads((tmp_path / "set" / "index.json").read_bytes())
    (tmp_path / "set" / "index.json").write_text(json.dumps({**index, "chunks": index["chunks"] * 500}))
    data = DataModule(LitData(str(tmp_path / "set"), str(tmp_path / "set")), batch_size=4, crop=8)
    modalities = data.fit_modalities({"text": Text(kind="bytes")})
    data.attach(AutoregressiveModel(modalities, Transformer(width=8, n_layers=1, n_heads=1), ["text"], 64).grammar)
    loader = data.train_dataloader()
    assert len(loader) == 250 and len(read) <= 3  # the first of each split
    assert next(iter(loader))[0].n_rows == 4


@pytest.mark.filterwarnings("ignore")
def test_shards_of_litdata_are_read_item_by_item(tmp_path: Path) -> None:
    """Pictures, classes and texts; the classes are learned; any item, in any order, by any number of workers."""
    litdata = pytest.importorskip("litdata")
    place = str(tmp_path / "set")
    litdata.optimize(lit_item, inputs=list(range(40)), output_dir=place, chunk_size=8, num_workers=1)
    modalities = {"label": Label(), "text": Text(kind="bytes", ended=True), "image": Image(size=(2, 2), levels=4)}
    source = LitData(place, place, fields={"image": "picture"})
    splits = source.load(modalities, None, "fail")
    assert len(splits.train) == 40 and sum(splits.train.blocks()) == 40 and len(splits.train.blocks()) == 5
    fitted = splits.fitted
    for i in (33, 0, 17):
        item = splits.train.item(i, 0)
        assert fitted["text"].decode(item["text"]) == f"number {i}" and item["image"].flat().tolist() == [i % 4] * 4
        assert fitted["label"].decode(item["label"]) == ("even" if i % 2 == 0 else "odd")
    found = []
    for num_workers in (0, 2):
        data = DataModule(source, batch_size=4, crop=8, num_workers=num_workers)
        grammar_of = AutoregressiveModel(
            data.fit_modalities(modalities), Transformer(width=8, n_layers=1, n_heads=1), ["label", "text", "image"]
        )
        data.attach(grammar_of.grammar)
        found.append([batch.segments["image"].symbols.tolist() for batch, _ in data.train_dataloader()])
    assert found[0] == found[1] and len(found[0]) == 10
    with pytest.raises(InputError, match="item 0: has no 'picture2', it has "):
        replace(source, fields={"image": "picture2"}).load(modalities, None, "fail").train.item(0, 0)
