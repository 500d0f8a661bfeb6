"""Manifests and tar shards: what a line means, what is refused and how, and that documents come in any order."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_files import digit, png_bytes, wav_bytes

from armm.backbones import Transformer
from armm.datasets import Manifest, manifest
from armm.datasets.documents import Documents
from armm.errors import InputError
from armm.grammar import Grammar
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.training import DataModule, GenerativeModule

MODALITIES: dict[str, Modality] = {
    "text": Text("bytes", ended=True),
    "image": Image(size=(8, 8), levels=17),
    "audio": Audio(frame=8),
    "label": Label(n_classes=10),
    "speaker": Label(names=("ann", "bob")),
}
GOOD = [{"text": "a cat", "loss": False}, {"image": "pictures/cat.png"}, {"audio": "a.wav"}, {"text": "cat a"}]


def write(folder: Path, lines: list[Any], name: str = "documents.jsonl") -> Path:
    """A manifest, with the files that its lines may name."""
    (folder / "pictures").mkdir(exist_ok=True, parents=True)
    (folder / "pictures" / "cat.png").write_bytes(png_bytes(digit(0)))
    (folder / "pictures" / "wide.png").write_bytes(png_bytes(digit(0, 8, 9)))
    (folder / "pictures" / "broken.png").write_bytes(png_bytes(digit(0))[:40])
    (folder / "a.wav").write_bytes(wav_bytes(300))
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def of_texts(n: int) -> list[Any]:
    return [[{"text": f"document {i}"}] for i in range(n)]


# ------------------------------------------------------------------------- what a line means


def test_a_line_is_a_document_in_the_order_that_it_is_written_in(tmp_path: Path) -> None:
    """Paths are relative to the manifest, one modality may come twice, and "loss": false makes a condition."""
    path = write(tmp_path, [GOOD, *of_texts(5)])
    items, skipped = manifest.read_volumes([path], MODALITIES, "fail")
    assert len(items) == 6 and skipped == ()
    grammar = Grammar(MODALITIES)
    document = Documents(items, grammar, ()).document(0, 0)
    grammar.check(document)
    assert [segment.modality for segment in document] == ["text", "image", "audio", "text"]
    assert [segment.n_given >= segment.n_units for segment in document] == [True, False, False, False]
    assert MODALITIES["text"].decode(document[3]) == "cat a" and document[2].length == 300
    assert np.array_equal(
        MODALITIES["image"].decode(document[1]), MODALITIES["image"].load(tmp_path / "pictures/cat.png")
    )


def test_a_name_says_which_modality_is_meant(tmp_path: Path) -> None:
    lines = [[{"label": "ann", "name": "speaker"}, {"label": 7}], *of_texts(2)]
    items, _ = manifest.read_volumes([write(tmp_path, lines)], MODALITIES, "fail")
    assert items.item(0, 0) == {"speaker": "ann", "label": 7}
    assert list(items.values("label")) == [7] and list(items.values("text")) == ["document 0", "document 1"]


def test_blank_lines_and_line_ends_of_any_kind_are_no_documents(tmp_path: Path) -> None:
    path = write(tmp_path, of_texts(3))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    items, _ = manifest.read_volumes([path], MODALITIES, "fail")
    assert [items.item(i, 0)["text"] for i in range(len(items))] == ["document 0", "document 1", "document 2"]
    assert items.where(1).endswith("documents.jsonl line 3")


BAD = {
    "not JSON": ('[{"text": "a"', ["is not JSON", "column"]),
    "no list": ({"text": "a"}, ["is an object", "expected a list"]),
    "empty": ([], ["empty document"]),
    "a text": (["a"], ["segment 1 is a text"]),
    "two in one": ([{"text": "a", "image": "pictures/cat.png"}], ["segment 1 has text, image"]),
    "none": ([{"loss": False}], ["segment 1 has no modality"]),
    "unknown": ([{"text": "a"}, {"imgae": "pictures/cat.png"}], ["segment 2", "'imgae'", "did you mean 'image'"]),
    "unknown name": ([{"label": "ann", "name": "speakr"}], ["'speakr'", "did you mean 'speaker'"]),
    "no file": ([{"image": "pictures/dog.png"}], ["pictures/dog.png", "no such file"]),
    "a folder": ([{"image": "pictures"}], ["pictures", "no such file"]),
    "a NUL": ([{"image": "a\0b.png"}], ["path"]),
    "a number for a path": ([{"image": 3}], ["is a number", "the path of a file"]),
    "a number for a text": ([{"text": 3}], ["is a number", "expected a text"]),
    "null": ([{"label": None}], ["is null"]),
    "loss": ([{"text": "a", "loss": "no"}], ['"loss" is', "true or false"]),
    "a damaged file": ([{"image": "pictures/broken.png"}], ["broken.png is damaged"]),
    "another size": ([{"image": "pictures/wide.png"}], ["8x9", "8x8"]),
    "no such class": ([{"label": 10}], ["no class 10"]),
    "a deep one": ("[" * 100_000, ["is not JSON"]),
}


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=list(BAD))
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: Any, words: list[str]) -> None:
    """File and line number, what was expected, and how to go on; with `skip` it is left out and counted."""
    path = write(tmp_path, [*of_texts(4), line, *of_texts(3)])
    with pytest.raises(InputError) as error:
        Manifest().load(MODALITIES, path, "fail")
    said = str(error.value)
    assert said.startswith(f"{path} line 5: ") and "\n" not in said and "--data.on_error skip" in said
    for word in words:
        assert word in said
    splits = Manifest().load(MODALITIES, path, "skip")
    assert splits.skipped == (f"{path} line 5",)
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 7


def test_not_one_good_line_is_an_error_whatever_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no document can be used; the first left out is .* line 1"):
        Manifest().load(MODALITIES, write(tmp_path, [[], []]), "skip")
    with pytest.raises(InputError, match="at least 3"):
        Manifest().load(MODALITIES, write(tmp_path, of_texts(2)), "fail")
    with pytest.raises(InputError, match=r"holds no \.jsonl and no \.tar"):
        Manifest().load(MODALITIES, tmp_path / "pictures", "fail")
    with pytest.raises(InputError, match="name a manifest"):
        Manifest().load(MODALITIES, None, "fail")


def test_of_many_documents_files_are_read_when_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file but a sample is opened for the index; a damaged one ends the run then, or the next takes its place."""
    monkeypatch.setattr(manifest, "READ_FIRST", 10)
    monkeypatch.setattr(manifest, "SAMPLE", 2)
    lines = [*of_texts(20), [{"image": "pictures/broken.png"}], *of_texts(20)]
    path = write(tmp_path, lines)
    loaded: list[Path] = []
    real = Image.load
    monkeypatch.setattr(Image, "load", lambda self, path: loaded.append(path) or real(self, path))
    items, skipped = manifest.read_volumes([path], MODALITIES, "fail")
    assert (len(items), skipped, loaded) == (41, (), [])
    sizes = items.sizes(0)
    assert sizes is not None and sizes[20] == len(json.dumps(lines[20])) + 1 + 40
    with pytest.raises(InputError, match=r"line 21: .*broken.png"):
        Documents(items, Grammar(MODALITIES), ()).document(20, 0)
    items, _ = manifest.read_volumes([path], MODALITIES, "skip")
    document = Documents(items, Grammar(MODALITIES), ()).document(20, 0)
    assert MODALITIES["text"].decode(document[0]) == "document 0"
    assert "left out" in capsys.readouterr().err


def test_splits_are_those_of_the_names_or_dealt_out_by_content(tmp_path: Path) -> None:
    for name, n in (("train.jsonl", 4), ("val.jsonl", 2), ("test.jsonl", 3)):
        write(tmp_path / "named", of_texts(n), name)
    splits = Manifest().load(MODALITIES, tmp_path / "named", "fail")
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [4, 2, 3]

    def held_out(lines: list[Any]) -> set[str]:
        splits = Manifest(val=0.2, test=0.2).load(MODALITIES, write(tmp_path / "one", lines), "fail")
        return {splits.test.item(i, 0)["text"] for i in range(len(splits.test))}

    first = held_out(of_texts(50))
    assert len(first) == 10 and held_out(of_texts(50)[::-1]) == first  # whatever order they stand in
    assert len(held_out([[{"text": "one more"}], *of_texts(50)]) & first) >= 8


def test_one_of_each_label_is_in_training(tmp_path: Path) -> None:
    lines = [[{"label": i % 10}, {"text": str(i)}] for i in range(24)]
    splits = Manifest(val=0.2, test=0.2).load(MODALITIES, write(tmp_path, lines), "fail")
    assert set(splits.train.values("label")) == set(range(10))


# --------------------------------------------------------------------------------- tar shards


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample(number: int) -> list[tuple[str, bytes]]:
    key = f"data/{number:04d}"
    return [
        (f"{key}.txt", f"picture {number}".encode()),
        (f"{key}.png", png_bytes(digit(number))),
        (f"{key}.cls", str(number % 10).encode()),
    ]


def test_a_sample_of_a_shard_is_a_document(tmp_path: Path) -> None:
    """Its files in their order, by their endings; or what its JSON says, if that is a document."""
    written = json.dumps([{"image": "b.right.png", "loss": False}, {"text": "told"}]).encode()
    files = [*sample(3), ("b.json", written), ("b.left.png", png_bytes(digit(5))), ("b.right.png", png_bytes(digit(6)))]
    files += [("c.json", b'{"source": "somewhere"}'), ("c.txt", b"alone"), ("c.xyz", b"?")]
    items, _ = manifest.read_volumes([write_tar(tmp_path / "a.tar", files)], MODALITIES, "fail")
    parts = [items.parts(i, 0, None) for i in range(3)]
    assert [[part.name for part in own] for own in parts] == [["text", "image", "label"], ["image", "text"], ["text"]]
    assert (parts[0][0].raw, parts[0][2].raw, parts[1][1].raw, parts[2][0].raw) == ("picture 3", 3, "told", "alone")
    assert [part.given for part in parts[1]] == [True, False]
    image = MODALITIES["image"]
    assert isinstance(image, Image) and np.array_equal(parts[1][0].raw, image.quantise(digit(6)))


def test_shards_are_read_by_position_in_any_order(tmp_path: Path) -> None:
    """In another process too; every shard is a block of the order."""
    paths = [write_tar(tmp_path / f"{s}.tar", [f for i in range(7) for f in sample(10 * s + i)]) for s in range(3)]
    items, _ = manifest.read_volumes(paths, MODALITIES, "fail")
    assert list(items.blocks()) == [7, 7, 7]
    there = pickle.loads(pickle.dumps(items))
    for index in (20, 0, 8, 3):
        shard, number = divmod(index, 7)
        assert there.item(index, 0)["text"] == f"picture {10 * shard + number}"
        assert there.where(index) == f"{paths[shard]} sample data/{10 * shard + number:04d}"
    part = items.select([2, 15, 16])
    assert list(part.blocks()) == [1, 2] and part.item(1, 0)["text"] == "picture 21"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("x.png", b"no picture")], ["sample x", "x.png is damaged or not a picture"]),
        ([("x.txt", b"a"), ("y.txt", b"b"), ("x.png", b"")], ["sample x", "side by side"]),
        ([("x.json", b'[{"image": "z.png"}]'), ("x.png", png_bytes(digit(0)))], ["sample x", "no file 'z.png'"]),
        ([("x.xyz", b"?")], ["sample x", "empty document"]),
        ([("x.cls", b"99")], ["sample x", "no class 99"]),
    ],
)
def test_a_bad_sample_is_named_or_counted(tmp_path: Path, files: list[tuple[str, bytes]], words: list[str]) -> None:
    path = write_tar(tmp_path / "a.tar", [*files, *(f for i in range(5) for f in sample(i))])
    with pytest.raises(InputError) as error:
        manifest.read_volumes([path], MODALITIES, "fail")
    for word in words:
        assert word in str(error.value)
    items, skipped = manifest.read_volumes([path], MODALITIES, "skip")
    assert skipped == (f"{path} sample x",) and len(items) == 5 + 2 * ("y.txt" in dict(files))


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample(0))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="no whole, uncompressed tar"):
        manifest.read_volumes([path], MODALITIES, "fail")
    (tmp_path / "b.tar").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(InputError, match="no whole, uncompressed tar"):
        manifest.read_volumes([tmp_path / "b.tar"], MODALITIES, "fail")


# ---------------------------------------------------------------------------- as training data


def data(path: Path, context: int | None = None, **settings: Any) -> DataModule:
    module = GenerativeModule(MODALITIES, Transformer(width=16, n_layers=1, n_heads=1), context=context)
    data = DataModule(Manifest(), path=str(path), batch_size=2, **settings)
    module.prepare(data)
    return data


def test_a_text_longer_than_the_context_is_split_or_refused_as_the_recipe_says(tmp_path: Path) -> None:
    path = write(tmp_path, [*of_texts(9), [{"text": "long " * 40}]])
    split = data(path, context=64)
    parts = (split.train, split.val, split.test)
    whole = sum(own.document(i, 0)[0].length for own in parts for i in range(len(own)))
    assert whole == sum(len(f"document {i}") for i in range(9)) + 200
    for batch, _ in split.train_dataloader():
        assert batch.n_positions <= 64
    with pytest.raises(InputError, match=r"line 10: the document has 202 units, the model's context is 64"):
        refused = data(path, context=64, too_long="refuse")
        for own in (refused.train, refused.val, refused.test):
            for index in range(len(own)):
                own.document(index, 0)


def test_conditions_of_the_data_itself_are_dropped_for_guidance(tmp_path: Path) -> None:
    """No data.conditions is needed: what begins a document and is given is left out of some of them."""
    lines = [[{"text": str(i), "loss": False}, {"label": i % 10}] for i in range(40)]
    documents = data(write(tmp_path, lines), drop_conditions=0.5)
    loader = documents.train_dataloader()
    told = [batch.segments["text"].symbols.shape[0] if "text" in batch.segments else 0 for batch, _ in loader]
    assert 0 < sum(told) < len(documents.train)
    assert all((batch.segments["text"].weights == 0).all() for batch, _ in loader if "text" in batch.segments)
