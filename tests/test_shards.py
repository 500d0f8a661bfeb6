"""Training on token shards: what is damaged is named, bits are those of the text, and nothing is loaded whole."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import BPE, SETTINGS, load, make, texts_of, write_lines

from armm.backbones import Transformer
from armm.datasets import ListOfItems, Source, Splits, TokenShards
from armm.datasets.store import Store
from armm.errors import InputError
from armm.modalities import Label, Text
from armm.model import AutoregressiveModel
from armm.sequence import Segment
from armm.training import DataModule
from armm.training.order import Slots


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shards")
    return make(BPE, write_lines(place / "texts"), place / "set")


# ------------------------------------------------------------ damaged, or another's


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    out = make(BPE, write_lines(tmp_path / "texts"), tmp_path / "set")
    path = out / "000001-000.bin"
    content = path.read_bytes()
    path.write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])
    splits = load(out)
    with pytest.raises(InputError, match=r"000001-000\.bin is damaged.*run the same armm prepare again"):
        [splits.train.item(i, 0) for i in range(len(splits.train))]
    path.write_bytes(content[:-2])
    with pytest.raises(InputError, match=rf"000001-000\.bin is damaged.*{len(content) - 2} bytes of {len(content)}"):
        load(out)
    path.write_bytes(content)
    table = (out / "000000-000.idx").read_bytes()
    (out / "000000-000.idx").write_bytes(table[:-8] + b"\0" * 8)
    with pytest.raises(InputError, match=r"000000-000\.idx is damaged"):
        load(out).train.sizes(0)


def test_an_unfinished_or_foreign_folder_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no index\.json.*armm prepare"):
        load(tmp_path)
    for content, words in (("{}", "no index of token shards"), ("no JSON", "no index of token shards")):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(InputError, match=words):
            load(tmp_path)
    index = json.loads((prepared / "index.json").read_bytes())
    (tmp_path / "index.json").write_text(json.dumps({**index, "version": 99}))
    with pytest.raises(InputError, match=r"version 99.*update"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"--data\.path FOLDER or --data\.source\.url"):
        TokenShards().load({"text": BPE}, None, "fail")


@pytest.mark.parametrize(
    "modality, words",
    [
        (Text(kind="bytes"), "has 300 symbols.*kind: bpe, vocab_size: 300"),
        (Text(kind="chars"), "not a chars tokenizer.*kind: bpe"),
        (Text(kind="bpe", vocab_size=260).fit(["the cat sat on the mat"] * 9), "another tokenizer than the model has"),
        (Label(), r"made for Text; the model has text \(Label\)"),
    ],
)
def test_a_model_that_the_set_was_not_made_for_is_refused(modality: Any, words: str, prepared: Path) -> None:
    with pytest.raises(InputError, match=words):
        load(prepared, modality)


# ------------------------------------------------------------ training


class Same(Source):
    """The items of a token set as raw text in memory."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits

    def load(self, modalities: Any, path: Any, on_error: Any) -> Splits:
        fitted = self.splits.fitted["text"]
        assert isinstance(fitted, Text)
        parts = (self.splits.train, self.splits.val, self.splits.test)
        train, val, test = (ListOfItems([{"text": text} for text in texts_of(items, fitted)]) for items in parts)
        return Splits(train, val, test)


def attached(source: Source, path: Path | None, text: Text = BPE, **options: Any) -> DataModule:
    data = DataModule(source, None if path is None else str(path), **{"batch_size": 4, "crop": 8, **options})
    modalities = data.fit_modalities({"text": text})
    data.attach(AutoregressiveModel(modalities, Transformer(width=8, n_layers=1, n_heads=1), ["text"], 64).grammar)
    return data


def rows(loader: Any) -> list[tuple[Any, Any]]:
    return [(batch.segments["text"].symbols.tolist(), counts) for batch, counts in loader]


@pytest.mark.parametrize("options", [{}, {"unit_symbols": 3, "ended": True}], ids=["stream", "ended"])
def test_shards_are_scored_like_the_texts_they_are_made_of(options: dict[str, Any], prepared: Path) -> None:
    """The same windows, the same bytes to a token: bits per byte are those of the text."""
    splits, text = load(prepared), replace(BPE, **options)
    fitted = load(prepared, text).fitted["text"]
    assert isinstance(fitted, Text)
    shards, texts = attached(TokenShards(), prepared, text), attached(Same(splits), None, fitted)
    assert rows(shards.val_dataloader()) == rows(texts.val_dataloader())
    assert rows(shards.test_dataloader()) == rows(texts.test_dataloader())
    n_bytes = sum(len(text.encode()) for text in texts_of(splits.test, fitted))
    assert sum(counts["text"][0] for _, counts in shards.test_dataloader()) == n_bytes > 0
    some, same = attached(TokenShards(), prepared, text, n_val=3), attached(Same(splits), None, fitted, n_val=3)
    assert rows(some.val_dataloader()) == rows(same.val_dataloader())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_reads_crops_of_every_document(num_workers: int, prepared: Path) -> None:
    """Long documents as many times as crops cover them, any number of workers, and nothing is kept in memory."""
    data = attached(TokenShards(), prepared, num_workers=num_workers)
    loader = data.train_dataloader()
    order: Any = loader.batch_sampler
    n_pieces, n_crops = len(data.train), len(order.slots)
    symbols = sum(segment.length for i in range(n_pieces) for segment in data.train.document(i, 0))
    assert n_crops > n_pieces and abs(n_crops - symbols / 8) < 0.15 * n_crops
    found = [batch.segments["text"].symbols for batch, _ in loader]
    assert {symbols.shape[1] for symbols in found} >= {8} and len(found) == n_crops // 4
    assert all(
        np.array_equal(a, b) for a, b in zip(found, (b.segments["text"].symbols for b, _ in loader), strict=True)
    )
    assert data.train._kept is None
    again = pickle.loads(pickle.dumps(data.train.items))  # as worker processes that are spawned get it
    assert again.item(3, 0)["text"].flat().tolist() == data.train.items.item(3, 0)["text"].flat().tolist()


def test_a_large_set_needs_no_memory_of_its_size(prepared: Path, tmp_path: Path) -> None:
    """A set of 30 million documents, by an index that names the same shards again and again."""
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = json.loads((prepared / "index.json").read_bytes())
    index["shards"] = index["shards"] * 400
    (tmp_path / "index.json").write_text(json.dumps(index))
    items = load(tmp_path).train
    assert len(items) > 10_000 and isinstance(items.item(len(items) - 1, 0)["text"], Segment)
    slots = Slots(items.blocks(), lambda b: (np.ones(items.blocks()[b], int), items.sizes(b)), ragged=True)  # type: ignore[return-value]
    assert len(slots) == len(items) and len(slots._tables) == 0
    assert len(items.files._tables) <= 32  # type: ignore[attr-defined]


def test_a_set_enlarged_by_links_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `benchmarks/large_text.py` measures is trained on as one that was prepared whole."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    benchmark = importlib.import_module("large_text")
    benchmark.write_texts(tmp_path / "texts", 200_000)
    small = make(BPE, tmp_path / "texts", tmp_path / "small", replace(SETTINGS, shard_bytes=20_000))
    benchmark.enlarge(small, 3, tmp_path / "large")
    once, thrice = load(small).train, load(tmp_path / "large").train
    assert len(thrice) == 3 * len(once)
    last = [items.item(len(items) - 1, 0)["text"].flat().tolist() for items in (once, thrice)]
    assert last[0] == last[1]
    assert all(time > 0 for time in benchmark.batch_times(tmp_path / "large", 3, BPE.vocab_size))
    seconds, gigabytes = benchmark.measured(["list"])
    assert seconds > 0 and 0.01 < gigabytes < 10
    with pytest.raises(RuntimeError, match="exit code 2"):
        benchmark.measured(["lisp"])


# ------------------------------------------------------------ object storage


@pytest.fixture
def bucket(prepared: Path) -> Iterator[str]:
    """The set in fsspec's storage in memory, which is reached like any object storage."""
    from fsspec.implementations.memory import MemoryFileSystem

    storage = MemoryFileSystem()
    for path in prepared.iterdir():
        storage.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    yield "memory://bucket/set"
    storage.rm("/bucket", recursive=True)


def test_a_set_in_object_storage_is_the_set(bucket: str, prepared: Path, tmp_path: Path) -> None:
    """With a cache too small for it, which stays as small as it should be."""
    sizes = [path.stat().st_size for path in prepared.iterdir() if path.suffix in (".bin", ".idx")]
    largest = max(sizes)
    assert sum(sizes) > 4 * largest
    source = TokenShards(url=bucket, cache=str(tmp_path / "cache"), cache_gb=2 * largest / 2**30)
    remote, local = source.load({"text": BPE}, None, "fail"), load(prepared)
    fitted = local.fitted["text"]
    assert isinstance(fitted, Text)
    for mine, theirs in ((remote.train, local.train), (remote.val, local.val)):
        assert texts_of(mine, fitted) == texts_of(theirs, fitted)
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in cached) <= 2 * largest


def test_a_damaged_file_in_the_cache_is_fetched_again(bucket: str, prepared: Path, tmp_path: Path) -> None:
    source = TokenShards(url=bucket, cache=str(tmp_path / "cache"))
    items = source.load({"text": BPE}, None, "fail").train
    wanted = [items.item(i, 0)["text"].flat().tolist() for i in range(len(items))]
    for path in (tmp_path / "cache").rglob("*.bin"):
        path.write_bytes(b"?" * (path.stat().st_size // 2))
    assert [items.item(i, 0)["text"].flat().tolist() for i in range(len(items))] == wanted
    assert not list((tmp_path / "cache").rglob(".*"))


def test_storage_that_cannot_be_reached_is_one_line(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"memory://bucket/none/index\.json: cannot be fetched .*check the address"):
        TokenShards(url="memory://bucket/none", cache=str(tmp_path)).load({"text": BPE}, None, "fail")
    with pytest.raises(InputError, match="nosuch"):
        Store("nosuch://bucket/set", tmp_path).fresh("index.json")
