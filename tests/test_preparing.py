"""Preparing token shards: each document once, resumed where it ended, and one line about what is wrong."""

from __future__ import annotations

import errno
import json
import multiprocessing
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shard_sets import BPE, SETTINGS, files_of, load, make, read_all, silent, texts_of, write_lines

from armm.datasets import Folder, jobs, preparing
from armm.datasets.jobs import Settings
from armm.datasets.preparing import prepare
from armm.datasets.raw_texts import find_sources
from armm.errors import InputError
from armm.modalities import Text


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


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_memory_does_not_grow_with_the_text(kind: Any, tmp_path: Path) -> None:
    """Six megabytes more of text, and what is held is a shard. There is more of the list of shards: 2 kB for each."""
    settings, peaks = replace(SETTINGS, shard_bytes=100_000), []
    line = json.dumps({"text": "the quick brown fox jumps over the lazy dog. " * 40}) + "\n"
    for n_shards in (4, 64):
        texts = tmp_path / f"{n_shards}.jsonl"
        texts.write_text(line * (n_shards * settings.shard_bytes // len(line)))
        tracemalloc.start()
        make(Text(kind=kind), texts, tmp_path / f"{n_shards}", settings)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * settings.shard_bytes, peaks


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


# ------------------------------------------------------------ resumed


def test_a_preparation_goes_on_where_it_was_ended(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before each of its files once: the set is that of a run without an end, to the byte."""
    wanted = files_of(prepared)
    texts, out = write_lines(tmp_path / "texts"), tmp_path / "set"
    write, n = jobs.write_aside, 0

    class Ended(Exception):
        pass

    def end(path: Path, parts: Any) -> None:
        nonlocal n
        if n == 0:
            raise Ended
        n -= 1
        write(path, parts)

    for module in (jobs, preparing):
        monkeypatch.setattr(module, "write_aside", end)
    for n_ended in range(60):  # noqa: B007 - asserted below
        n = 5
        try:
            make(BPE, texts, out)
            break
        except Ended:
            assert not (out / "index.json").exists()
    assert (out / "index.json").exists() and n_ended > 3
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


# ------------------------------------------------------------ bad texts


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
        with pytest.raises(InputError, match=r"a\.txt.*not UTF-8 text.*--on-error skip"):
            make(replace(BPE, kind=kind), tmp_path / "a.txt", tmp_path / kind)
        assert not (tmp_path / kind).exists(), "the mended text may go there"
    modality = Text(kind="bytes")
    splits = load(make(modality, tmp_path / "a.txt", tmp_path / "bytes"), modality)
    assert any("\udcff" in text for text in texts_of(splits.train, modality) + texts_of(splits.val, modality))


@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_what_is_no_text_is_left_out_of_the_vocabulary_too(kind: Any, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"text number {i} of twelve\n" * 20, encoding="utf-8")
    (folder / "bad.txt").write_bytes(bytes(range(256)))
    said: list[str] = []
    settings = replace(SETTINGS, on_error="skip")
    index = prepare(replace(BPE, kind=kind), [folder], tmp_path / "set", settings, 1, said.append)
    assert sum(shard.documents for shard in index.shards) == 12
    left_out = [line for line in said if "left out" in line]
    assert left_out and all("bad.txt" in line for line in left_out)


def test_nothing_is_left_of_texts_that_are_not_right(tmp_path: Path) -> None:
    """So that the mended ones can go to the same place; what was there before stays."""
    modality = Text(kind="bytes")
    (tmp_path / "set").mkdir()
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"txt": "another"}\n', encoding="utf-8")
    for _ in range(2):
        with pytest.raises(InputError, match="text"):
            make(modality, tmp_path / "a.jsonl", tmp_path / "set")
        assert not any((tmp_path / "set").iterdir())
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="none fell to"):
        make(modality, tmp_path / "a.jsonl", tmp_path / "set")
    assert not any((tmp_path / "set").iterdir())
    make(modality, write_lines(tmp_path / "texts"), tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.json", b'{"format": "arm'),
        ("index.json", b"[]"),
        ("learned.json", b"{"),
        ("learned.json", b"[]"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_set_is_mended_by_the_same_command(name: str, content: bytes | None, tmp_path: Path) -> None:
    """As training says; the set comes out as it was, to the byte."""
    texts = write_lines(tmp_path / "texts")
    make(BPE, texts, tmp_path / "set")
    before = files_of(tmp_path / "set")
    path = next((tmp_path / "set").glob(name if name != "tokenizer.json" else "*token*.json"))
    path.unlink() if content is None else path.write_bytes(content)
    if "learned" not in name:
        with pytest.raises(InputError, match=r"same armm prepare again|cannot be read"):
            load(tmp_path / "set", BPE)
    make(BPE, texts, tmp_path / "set")
    assert files_of(tmp_path / "set") == before


@pytest.mark.parametrize(
    "change",
    [{"learned": []}, {"modality": {"x": 1}}, {"modality": "Text"}, {"shards": [{"name": "foo"}]}, {"dtype": "text"}],
    ids=str,
)
def test_an_index_that_says_something_else_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "texts")
    make(BPE, texts, tmp_path / "set")
    path = tmp_path / "set" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}), encoding="utf-8")
    with pytest.raises(InputError, match=r"index\.json is no index .*same armm prepare again"):
        load(tmp_path / "set", BPE)


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
    write = jobs.write_aside

    def full(path: Path, parts: Any) -> None:
        if path.name == "000002-000.bin":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, parts)

    monkeypatch.setattr(jobs, "write_aside", full)
    with pytest.raises(InputError, match=r"000002-000\.bin: No space left on device; .*run the same command again"):
        make(BPE, texts, out)
    assert (out / "000001-000.json").is_file() and not list(out.glob(".*"))
    monkeypatch.undo()
    assert len(load(make(BPE, texts, out)).train)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError("handle is closed"), "a worker process died"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "a worker process died"),
        (RuntimeError("cannot schedule new futures after shutdown"), "a worker process died"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "Resource temporarily unavailable; check"),
    ],
    ids=repr,
)
def test_a_worker_that_dies_while_it_is_told(
    failure: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's own pipes are closed then, which once was a mistake of the folder: "set: handle is closed"."""

    def submit(*job: Any) -> None:
        raise failure

    monkeypatch.setattr(preparing.ProcessPoolExecutor, "submit", submit)
    with pytest.raises(InputError, match=words):
        prepare(Text(kind="bytes"), [write_lines(tmp_path / "texts", 400)], tmp_path / "set", SETTINGS, 2, silent)


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
