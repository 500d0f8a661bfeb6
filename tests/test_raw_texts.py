"""Reading and encoding much text: however it is cut, it is the text, and its symbols are those of `encode`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_sets import read_all

from armm.datasets import raw_texts as raw_texts_module
from armm.datasets.encoding import encoder, is_plain
from armm.modalities import Text

POEM = "The café's owner said: “It isn't 12:30 yet!”\n\n    if x_1 == 'don''t':\n\treturn a+b*3.14  # ok\r\n" * 3


# ------------------------------------------------------------ encoding

FITTED = Text(kind="bpe", vocab_size=420).fit([POEM * 20, "we'll they've I'd I'm you're it's don't 55x  y\n\n\n" * 30])


def encoded(text: str) -> list[int]:
    return encoder(FITTED)(text.encode()).tolist()


@given(st.text(st.sampled_from(" \n\t\rabé's.1_“\x85\xa0\u180e\u2028\u3000\x1c\x0b²\u0301")))
def test_words_looked_up_are_the_tokens_of_encode(text: str) -> None:
    """White space of every kind, signs, digits, apostrophes, other scripts: where the pattern cuts, and where not."""
    assert encoded(text) == FITTED.encode(text).flat().tolist()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        POEM,
        "x" * 3000,
        "it's'll 've",
        "we'll they've I'd I'm you're it's don't",
        " 'tis",
        "a\u00a0 b",
        "\n \n x",
        "  ",
        "a' b'c",
    ],
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


# ------------------------------------------------------------ raw texts


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
