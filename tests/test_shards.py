"""Token shards: what is prepared is the text, what is damaged is named, and nothing is loaded whole."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armm.backbones import Transformer
from armm.datasets import Folder, Items, LitData, Source, Splits, TokenShards
from armm.datasets import preparing as preparing_module
from armm.datasets import raw_texts as raw_texts_module
from armm.datasets.encoding import encoder, is_plain
from armm.datasets.preparing import Settings, prepare
from armm.datasets.raw_texts import Dealing, find_sources, pieces, plan
from armm.datasets.store import Store
from armm.errors import InputError
from armm.modalities import Image, Label, Text
from armm.model import AutoregressiveModel
from armm.sequence import Segment
from armm.training import DataModule
from armm.training.order import Slots

POEM = "The café's owner said: “It isn't 12:30 yet!”\n\n    if x_1 == 'don''t':\n\treturn a+b*3.14  # ok\r\n" * 3
BPE = Text(kind="bpe", vocab_size=300)


# ------------------------------------------------------------------- encoding

FITTED = Text(kind="bpe", vocab_size=420).fit([POEM * 20, "one two  three\n\n\nfour's 55x " * 30])


def encoded(text: str) -> list[int]:
    return encoder(FITTED)(text.encode()).tolist()


@given(st.text(st.sampled_from(" \n\t\rabé's.1_“\x85\xa0\u180e\u2028\u3000\x1c\x0b²\u0301")))
def test_words_looked_up_are_the_tokens_of_encode(text: str) -> None:
    """White space of every kind, signs, digits, apostrophes, other scripts: where the pattern cuts, and where not."""
    assert encoded(text) == FITTED.encode(text).flat().tolist()


@pytest.mark.parametrize(
    "text", ["", " ", POEM, "x" * 3000, "it's'll 've", " 'tis", "a\u00a0 b", "\n \n x", "  ", "a' b'c"]
)
def test_words_looked_up_are_the_tokens_of_encode_examples(text: str) -> None:
    assert encoded(text) == encoded(text) == FITTED.encode(text).flat().tolist()


def test_words_may_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armm.datasets.encoding.N_WORDS", 5)
    for _ in range(3):
        assert encoded(POEM) == FITTED.encode(POEM).flat().tolist()


def test_a_tokenizer_of_another_kind_is_not_cut_into_words() -> None:
    assert FITTED.tokenizer and is_plain(FITTED.tokenizer)
    content = json.loads(FITTED.tokenizer)
    for other in (
        {**content, "normalizer": {"type": "NFC"}},
        {**content, "pre_tokenizer": {"type": "Whitespace"}},
        {**content, "pre_tokenizer": {**content["pre_tokenizer"], "add_prefix_space": True}},
        {**content, "added_tokens": [{"id": 0, "content": "<s>"}]},
    ):
        assert not is_plain(json.dumps(other))


# ------------------------------------------------------------------ raw texts

DEALING = Dealing(val=0.2, test=0.2, seed=0)


def read_all(files: list[Path], job_bytes: int) -> list[Any]:
    sources = find_sources(files, (".txt", ".jsonl"))
    jobs = plan(sources, job_bytes, DEALING)
    return [piece for job in jobs for wanted in job for piece in pieces(wanted, "text", DEALING)]


@pytest.mark.parametrize("content", ["ab\ncdé\n\n“x” y z\nlast", "é" * 40, "\n" * 9, "x\r\n" * 7, "one line only"])
@pytest.mark.parametrize("piece", [5, 16])
def test_jobs_and_pieces_of_a_text_are_the_text(
    content: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is cut: every byte once, in order, and no character in two."""
    monkeypatch.setattr(raw_texts_module, "PIECE_BYTES", piece)
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    for job_bytes in (1, 2, 3, 7, 1000):
        found = read_all([path], job_bytes)
        assert b"".join(part.content for part in found).decode() == content
        assert all(part.content.decode() and len(part.content) <= piece for part in found)
        assert [part.begins for part in found] == [True] + [False] * (len(found) - 1)
        assert [part.split for part in found] == sorted(part.split for part in found)


def test_lines_are_documents_however_they_are_cut(tmp_path: Path) -> None:
    """The same documents, and the same of them in each split, for every size of job, gzipped or not."""
    path = tmp_path / "a.jsonl"
    texts = [f"text {i} é\n" * (i % 4) for i in range(50)]
    path.write_text("\n\n".join(json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)))
    whole = read_all([path], 10**6)
    assert [piece.content.decode() for piece in whole] == [text for text in texts if text]
    assert {piece.split for piece in whole} == {0, 1, 2} and all(piece.begins for piece in whole)
    for job_bytes in (1, 10, 100):
        assert read_all([path], job_bytes) == whole
    (tmp_path / "zipped").mkdir()
    zipped = tmp_path / "zipped" / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert [piece.content for piece in read_all([zipped], 10)] == [piece.content for piece in whole]


def test_a_long_document_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_texts_module, "PIECE_BYTES", 40)
    path = tmp_path / "a.jsonl"
    text = "a line of some words\n" * 9
    path.write_text("\n".join(json.dumps({"text": text}) for _ in range(2)))
    found = read_all([path], 10**6)
    assert b"".join(piece.content for piece in found).decode() == text * 2
    assert [piece.begins for piece in found] == ([True] + [False] * 8) * 2
    assert all(len(piece.content) <= 40 for piece in found)


# ------------------------------------------------------------------- a set


def silent(line: str) -> None:
    """Reports nothing."""


def write_lines(folder: Path, n: int = 60) -> Path:
    """Documents of lines in two files, one of them gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text": f"document {i}: " + f"the {i % 7} cats sat on {i} mats. " * (1 + i % 5)}) for i in range(n)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines[: n // 2]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[n // 2 :]).encode(), mtime=0))
    return folder


SETTINGS = Settings(val=0.2, test=0.2, shard_bytes=1000)


def make(
    modality: Any, texts: Path, out: Path, settings: Settings = SETTINGS, report: Callable[[str], None] = silent
) -> Path:
    prepare(modality, [texts], out, settings, 1, report)
    return out


def load(path: Path, modality: Any = BPE) -> Splits:
    return TokenShards().load({"text": modality}, path, "fail")


def texts_of(items: Items, modality: Text) -> list[str]:
    return [modality.decode(items.item(i, 0)["text"]) for i in range(len(items))]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shards")
    return make(BPE, write_lines(place / "texts"), place / "set")


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe"])
def test_a_set_is_its_documents(kind: Any, tmp_path: Path) -> None:
    """Each once, in the split that its hash says, encoded by the set's own tokenizer."""
    texts = write_lines(tmp_path / "texts")
    modality = replace(BPE, kind=kind)
    splits = load(make(modality, texts, tmp_path / "set"), modality)
    fitted = splits.fitted["text"]
    assert isinstance(fitted, Text)
    found = [texts_of(items, fitted) for items in (splits.train, splits.val, splits.test)]
    wanted: list[list[str]] = [[], [], []]
    for source in find_sources([texts], (".jsonl",)):
        for piece in read_all([source.path], 10**6):
            wanted[piece.split].append(piece.content.decode())
    assert [sorted(part) for part in found] == [sorted(part) for part in wanted] and all(found)
    index = json.loads((tmp_path / "set" / "index.json").read_bytes())
    assert len(index["shards"]) > 4 and sum(shard["documents"] for shard in index["shards"]) == 60
    assert index["dtype"] == {"bytes": "uint8", "chars": "uint8", "bpe": "uint16"}[kind]


def test_few_texts_are_cut_like_those_of_a_folder(tmp_path: Path) -> None:
    """So that bits of both ways compare: first 80 % to train on, the last 10 % the test."""
    text = "".join(f"line number {i}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    modality = Text(kind="bytes")
    splits = load(make(modality, tmp_path / "a.txt", tmp_path / "set", Settings(val=0.1, test=0.1)), modality)
    folder = Folder().load({"text": modality}, tmp_path / "a.txt", "fail")
    for mine, theirs in zip(
        (splits.train, splits.val, splits.test), (folder.train, folder.val, folder.test), strict=True
    ):
        assert abs(len("".join(texts_of(mine, modality))) - len(theirs.item(0, 0)["text"])) < 20
    whole = "".join(t for items in (splits.train, splits.val, splits.test) for t in texts_of(items, modality))
    assert whole == text


def test_documents_may_be_joined(tmp_path: Path) -> None:
    """One after another with a separator: a stream, as GPT-2 was trained on."""
    modality = Text(kind="bytes")
    splits = load(
        make(modality, write_lines(tmp_path / "texts"), tmp_path / "set", replace(SETTINGS, join="\n--\n")), modality
    )
    found = texts_of(splits.train, modality)
    assert len(found) < 20 and all(part.startswith("document ") and not part.endswith("--\n") for part in found)
    assert sum(len(part.split("\n--\n")) for part in found) > 30


def test_without_a_test_it_is_the_validation_again(tmp_path: Path) -> None:
    settings = replace(SETTINGS, test=0.0)
    splits = load(
        make(Text(kind="bytes"), write_lines(tmp_path / "texts"), tmp_path / "set", settings), Text(kind="bytes")
    )
    assert splits.test is splits.val and len(splits.val)


# ---------------------------------------------------------- resumed, and damaged


def test_a_preparation_goes_on_where_it_was_ended(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before each of its files once: the set is that of a run without an end, to the byte."""
    wanted = files_of(prepared)
    texts, out = write_lines(tmp_path / "texts"), tmp_path / "set"
    write, n = preparing_module.write_aside, 0

    class Ended(Exception):
        pass

    def end(path: Path, parts: Any) -> None:
        nonlocal n
        if n == 0:
            raise Ended
        n -= 1
        write(path, parts)

    n_runs = 0
    monkeypatch.setattr(preparing_module, "write_aside", end)
    while True:
        n, n_runs = 5, n_runs + 1
        try:
            make(BPE, texts, out)
            break
        except Ended:
            assert not (out / "index.json").exists()
    assert n_runs > 3
    found = files_of(out)
    assert found.pop("made_from.json") and wanted.pop("made_from.json")  # the files' times
    assert found == wanted


def test_what_is_finished_is_kept_and_what_is_damaged_made_anew(tmp_path: Path) -> None:
    texts, out = write_lines(tmp_path / "texts"), tmp_path / "set"
    make(BPE, texts, out)
    before = files_of(out)
    (out / "000001-000.bin").write_bytes(b"no")
    (out / "000002-000.idx").unlink()
    untouched = (out / "000000-000.bin").stat().st_mtime_ns
    said: list[str] = []
    make(BPE, texts, out, report=said.append)
    assert files_of(out) == before and (out / "000000-000.bin").stat().st_mtime_ns == untouched
    assert "MB/s" in said[-1]
    make(BPE, texts, out, report=said.append)
    assert "all there already" in said[-1] and files_of(out) == before


def test_other_texts_or_settings_are_another_set(prepared: Path, tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "texts")
    out = make(BPE, texts, tmp_path / "set")
    for modality, settings, word in (
        (BPE, replace(SETTINGS, val=0.3), "settings"),
        (Text(kind="bytes"), SETTINGS, "modality"),
    ):
        with pytest.raises(InputError, match=f"made with other {word}; name another --out"):
            make(modality, texts, out, settings)
    (texts / "c.jsonl").write_text('{"text": "more"}')
    with pytest.raises(InputError, match="made with other texts"):
        make(BPE, texts, out)
    with pytest.raises(InputError, match="holds files that are no set"):
        make(BPE, texts, texts)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    out = make(BPE, write_lines(tmp_path / "texts"), tmp_path / "set")
    path = out / "000001-000.bin"
    content = path.read_bytes()
    path.write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])
    items = load(out).train
    with pytest.raises(InputError, match=r"000001-000\.bin is damaged.*run the same armm prepare again"):
        texts_of(items, FITTED)
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
        (FITTED, "another tokenizer than the model has"),
        (Label(), r"made for Text; the model has text \(Label\)"),
    ],
)
def test_a_model_that_the_set_was_not_made_for_is_refused(modality: Any, words: str, prepared: Path) -> None:
    with pytest.raises(InputError, match=words):
        load(prepared, modality)


# ------------------------------------------------------------------- bad texts


def test_bad_lines_are_named_or_left_out(tmp_path: Path) -> None:
    folder = write_lines(tmp_path / "texts")
    good = (folder / "a.jsonl").read_text()
    for bad in ("no JSON", '{"body": "x"}', '{"text": 3}', '"text"', '{"text": "\\ud800"}'):
        (folder / "a.jsonl").write_text(bad + "\n" + good)
        out = tmp_path / f"set {abs(hash(bad))}"
        with pytest.raises(InputError, match=r"a\.jsonl, the line at byte 0: "):
            make(BPE, folder, out)
        said: list[str] = []
        make(BPE, folder, out.with_name(f"{out.name} skip"), replace(SETTINGS, on_error="skip"), said.append)
        assert sum("left out" in line and "byte 0" in line for line in said) == 1


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good text\n" * 30 + b"\xff\xfe" + b"more text\n" * 30)
    for kind in ("bpe", "chars"):
        with pytest.raises(InputError, match=r"a\.txt.*|stray byte"):
            make(replace(BPE, kind=kind), tmp_path / "a.txt", tmp_path / kind)
    modality = Text(kind="bytes")
    splits = load(make(modality, tmp_path / "a.txt", tmp_path / "bytes"), modality)
    assert any("\udcff" in text for text in texts_of(splits.train, modality) + texts_of(splits.val, modality))


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    folder = write_lines(tmp_path / "texts")
    path = folder / "b.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"b\.jsonl\.gz: the gzip file is cut short or damaged"):
        make(BPE, folder, tmp_path / "set")


def test_no_text_at_all_is_refused(tmp_path: Path) -> None:
    for make_folder, words in (
        (lambda: None, "no file that ends in .txt"),
        (lambda: (tmp_path / "texts" / "a.txt").write_text(""), "only empty files"),
    ):
        (tmp_path / "texts").mkdir(exist_ok=True)
        make_folder()
        with pytest.raises(InputError, match=words):
            make(BPE, tmp_path / "texts", tmp_path / "set")
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "one document"}')
    with pytest.raises(InputError, match="none fell to"):
        make(Text(kind="bytes"), tmp_path / "texts", tmp_path / "set")
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        make(BPE, tmp_path / "nowhere", tmp_path / "set")


def test_a_full_disk_leaves_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, out = write_lines(tmp_path / "texts"), tmp_path / "set"
    write = preparing_module.write_aside

    def full(path: Path, parts: Any) -> None:
        if path.name == "000002-000.bin":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, parts)

    monkeypatch.setattr(preparing_module, "write_aside", full)
    with pytest.raises(InputError, match=r"000002-000\.bin: No space left on device; .*run the same command again"):
        make(BPE, texts, out)
    assert (out / "000001-000.json").is_file() and not list(out.glob(".*"))
    monkeypatch.undo()
    assert len(load(make(BPE, texts, out)).train)


def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    """Killed for its memory, say."""
    texts = write_lines(tmp_path / "texts", 400)
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(InputError, match=r"a worker process died.*--workers.*run the same command again"):
            prepare(Text(kind="bytes"), [texts], tmp_path / "set", SETTINGS, 2, silent)
    finally:
        over.set()
        killer.join()


# -------------------------------------------------------------------- training


class Same(Source):
    """The items of a token set as raw text in memory."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits

    def load(self, modalities: Any, path: Any, on_error: Any) -> Splits:
        from armm.datasets import ListOfItems

        fitted = self.splits.fitted["text"]
        assert isinstance(fitted, Text)
        parts = (self.splits.train, self.splits.val, self.splits.test)
        lists = [ListOfItems([{"text": text} for text in texts_of(items, fitted)]) for items in parts]
        return Splits(*lists)


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


# -------------------------------------------------------------- object storage


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
    largest = max(path.stat().st_size for path in prepared.iterdir())
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


# --------------------------------------------------------------------- litdata


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
    monkeypatch.setitem(__import__("sys").modules, "litdata", None)
    with pytest.raises(InputError, match=r"pip install armm\[storage\]"):
        LitData(str(tmp_path / "set"), str(tmp_path / "set")).load({"label": Label()}, None, "fail")


def lit_item(number: int) -> dict[str, Any]:
    """A picture as an array, a class by name, and a text as the bytes of a file."""
    picture = np.full((2, 2), number % 4, dtype=np.uint8)
    return {"picture": picture, "label": "even" if number % 2 == 0 else "odd", "text": f"number {number}".encode()}


@pytest.mark.filterwarnings("ignore")
def test_shards_of_litdata_are_read_item_by_item(tmp_path: Path) -> None:
    """Pictures, classes and texts; the classes are learned; any item, in any order, by any number of workers."""
    litdata = pytest.importorskip("litdata")
    for split, n in (("train", 40), ("val", 6)):
        numbers = list(range(n))
        litdata.optimize(lit_item, inputs=numbers, output_dir=str(tmp_path / split), chunk_size=8, num_workers=1)
    modalities = {"label": Label(), "text": Text(kind="bytes"), "image": Image(size=(2, 2), levels=4)}
    source = LitData(str(tmp_path / "train"), str(tmp_path / "val"), fields={"image": "picture"})
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
