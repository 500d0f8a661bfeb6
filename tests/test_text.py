"""Text: exact round trips, honest units of bits, and files that are not what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from armm.errors import InputError
from armm.modalities import Text
from armm.modalities.text import PIECE, _bpe
from armm.sequence import Segment

CORPUS = ["the cat sat on the mat\n" * 20, "def cat(mat):\n    return mat  # naïve café\n" * 20]
AWKWARD = [
    "",
    "\0",
    "a\r\nb\rc\n",
    "\ufeffBOM",
    "e\u0301 \u0065\u0301",
    "👩\u200d👩\u200d👧\u200d👦🏽",
    "\u2028\x85\x1c  \n\n \t",
    "\U0010ffff",
]

few = settings(max_examples=50)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """An InputError of one line that says all of these."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.fixture(scope="module")
def bpe() -> Text:
    fitted = Text(kind="bpe", vocab_size=300).fit(CORPUS)
    assert isinstance(fitted, Text)
    return fitted


def chars(alphabet: str, **keys: Any) -> Text:
    return Text(kind="chars", **keys).fit([alphabet])


# --------------------------------------------------------------- round trips


@few
@given(st.binary(max_size=50), st.integers(1, 5))
@example(b"\xff\xfe\x00valid \xc3\xa9 and cut \xc3", 4)
def test_bytes_round_trip_any_bytes_through_strings_and_files(content: bytes, unit_symbols: int) -> None:
    text = Text(kind="bytes", unit_symbols=unit_symbols)
    segment = text.encode(content)
    assert segment.flat().tolist() == list(content)
    decoded = text.decode(segment)
    assert decoded.encode("utf-8", "surrogateescape") == content
    assert text.encode(decoded).flat().tolist() == list(content)


@few
@given(st.text(max_size=50))
def test_every_kind_round_trips_any_string(bpe: Text, string: str) -> None:
    for text in (Text(kind="bytes"), bpe, chars(string + "x"), chars(string + "x", unit_symbols=3)):
        assert text.decode(text.encode(string)) == string


@pytest.mark.parametrize("string", AWKWARD)
def test_awkward_unicode_is_not_normalised(bpe: Text, string: str) -> None:
    for text in (Text(kind="bytes"), bpe, chars(string + "x")):
        assert text.decode(text.encode(string)) == string


@few
@given(st.text(alphabet="ab \n\r\t\u3000\x1c.é", max_size=200))
@example("a\n    return a")
def test_cutting_long_texts_into_pieces_changes_no_token(bpe: Text, tail: str) -> None:
    assert bpe.tokenizer is not None
    string = "the\n" * (PIECE // 4) + tail + "\nmat\n" + tail * 3
    assert bpe.encode(string).flat().tolist() == _bpe(bpe.tokenizer).tokenizer.encode(string).ids


def test_bpe_merges_what_is_frequent(bpe: Text) -> None:
    assert 256 < bpe.vocab <= 300
    assert bpe.encode(CORPUS[0]).n_units < len(CORPUS[0]) / 3


def test_symbols_stay_inside_the_vocabulary(bpe: Text) -> None:
    for text in (Text(kind="bytes"), bpe, chars(CORPUS[1])):
        symbols = text.encode(CORPUS[1]).flat()
        assert symbols.min() >= 0 and symbols.max() < text.vocab


def test_a_last_unit_may_be_partial() -> None:
    segment = Text(kind="bytes", unit_symbols=4).encode("abcdef")
    assert segment.symbols.shape == (2, 4)
    assert segment.n_symbols == 6


def test_a_character_cut_in_two_is_kept_byte_for_byte(bpe: Text, tmp_path: Path) -> None:
    """A sample or a window may end inside a character; the library's own decoder would write U+FFFD."""
    for text in (Text(kind="bytes"), bpe):
        whole = text.encode("x👩")
        cut = Segment(text.name, whole.symbols[:-1])
        text.save(text.decode(cut), tmp_path / "cut.txt")
        assert (tmp_path / "cut.txt").read_bytes() == "x👩".encode()[:-1]


# ---------------------------------------------------------------------- bits


def test_bits_and_nats_are_counted_in_the_units_they_are_named_after(bpe: Text) -> None:
    string = "naïve café\n"
    found = {
        text.kind: (
            text.bits_per,
            text.n_bits_per(text.encode(string)),
            text.nats_per,
            text.n_nats_per(text.encode(string)),
        )
        for text in (Text(kind="bytes"), chars(string), bpe)
    }
    assert found["bytes"] == ("byte", 13, "byte", 13)
    assert found["chars"] == ("char", 11, "char", 11)
    assert found["bpe"][:3] == ("byte", 13, "token")
    assert found["bpe"][3] == bpe.encode(string).n_units < 11


# ------------------------------------------------------------------- fitting


def test_training_a_tokenizer_is_deterministic(bpe: Text) -> None:
    again = Text(kind="bpe", vocab_size=300).fit(iter(CORPUS))
    assert again == bpe
    assert again.files() == bpe.files()


def test_a_fitted_text_survives_its_files(bpe: Text) -> None:
    for text in (bpe, chars("hello wörld\n")):
        files = text.files()
        assert list(files) == ["tokenizer.json"]
        unfitted = Text(kind=text.kind, vocab_size=text.vocab_size)
        assert unfitted.with_files(files) == text
    assert Text(kind="bytes").files() == {}
    assert Text(kind="bytes").with_files({}) == Text(kind="bytes")


def test_fitting_again_keeps_the_symbols() -> None:
    """Training goes on with the alphabet a model has, or its embeddings would mean other symbols."""
    text = chars("abc")
    assert text.fit(["xyz"]) == text


def test_the_alphabet_is_sorted_and_exact() -> None:
    text = chars("banana\n")
    assert text.vocab == 4
    assert text.encode("\nabn").flat().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["chars", "bpe"])
def test_use_before_training_says_that_training_fits_it(kind: Any) -> None:
    text = Text(kind=kind)
    with refused("text", kind, "training"):
        text.encode("a")
    with refused("text", kind, "training"):
        _ = text.vocab


@pytest.mark.parametrize("kind", ["chars", "bpe"])
@pytest.mark.parametrize("content", [b"", b"not json", b"{}", b'{"chars": "ba"}', b'{"chars": ""}', b"\xff"])
def test_a_damaged_tokenizer_file_is_refused(kind: Any, content: bytes) -> None:
    with refused("tokenizer.json", kind):
        Text(kind=kind).with_files({"tokenizer.json": content})


def test_a_missing_tokenizer_file_is_refused() -> None:
    with refused("tokenizer.json", "missing"):
        Text(kind="bpe").with_files({})


def test_a_tokenizer_that_changes_the_text_is_refused(bpe: Text) -> None:
    """A normaliser or a prefix space would make the bits those of another text."""
    assert bpe.tokenizer is not None
    changing = bpe.tokenizer.replace('"normalizer":null', '"normalizer":{"type":"Lowercase"}')
    assert changing != bpe.tokenizer
    text = Text(kind="bpe", tokenizer=changing)
    assert text.decode(text.encode("cat")) == "cat"
    with refused("tokenizer.json", "changes the text"):
        text.encode("Cat")


def test_training_on_no_text_is_refused() -> None:
    with refused("empty", "--data.path"):
        Text(kind="chars").fit([""])


# ------------------------------------------------------------------- refused


def test_an_unknown_character_is_named_with_its_position() -> None:
    with refused("'q'", "position 3", "kind: bytes"):
        chars("abc").encode("abcq")
    with refused("'A'", "position 0"):
        chars("abc").encode("A")


def test_stray_bytes_in_characters_are_refused_with_advice(bpe: Text) -> None:
    for text in (bpe, chars("abc")):
        with refused("position 2", "kind: bytes"):
            text.encode("ab\udcff")
        with refused("position 2", "kind: bytes"):
            text.encode(b"ab\xff")
    with refused("position 1", "surrogate"):
        Text(kind="bytes").encode("a\ud800")


def test_lengths_are_checked_where_they_are_coded() -> None:
    text = Text(kind="bytes", ended=True, max_units=2, unit_symbols=2)
    assert text.encode("abcd").n_units == 2
    with refused("3 units", "at most 2", "max_units"):
        text.encode("abcde")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "word"}, ("text.kind", "'word'", "bytes, chars or bpe")),
        ({"kind": "bpe", "vocab_size": 255}, ("vocab_size", "255", "256")),
        ({"kind": "bytes", "unit_symbols": 0}, ("unit_symbols", "0")),
        ({"kind": "bytes", "max_units": 5}, ("max_units", "ended: true")),
        ({"kind": "bytes", "max_units": 0, "ended": True}, ("max_units", "0")),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(*words):
        Text(**keys)


# --------------------------------------------------------------------- files


def test_files_keep_their_line_ends_and_byte_order_mark(bpe: Text, tmp_path: Path) -> None:
    content = "\ufeffa\r\nb\rc\n".encode()
    (tmp_path / "in.txt").write_bytes(content)
    for text in (Text(kind="bytes"), chars("\ufeffabc\r\n"), bpe):
        text.save(text.decode(text.encode(text.load(tmp_path / "in.txt"))), tmp_path / "out.txt")
        assert (tmp_path / "out.txt").read_bytes() == content


def test_undecodable_files_name_the_offset_and_the_way_out(bpe: Text, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    for text in (bpe, chars("caf")):
        with refused(str(path), "UTF-8", "0xe9", "offset 3", "kind: bytes"):
            text.load(path)
    text = Text(kind="bytes")
    text.save(text.load(path), tmp_path / "same.txt")
    assert (tmp_path / "same.txt").read_bytes() == path.read_bytes()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    text = Text(kind="bytes")
    (tmp_path / "empty.txt").touch()
    with refused("empty.txt", "empty"):
        text.load(tmp_path / "empty.txt")
    with refused("none.txt", "no such file"):
        text.load(tmp_path / "none.txt")
    with refused(tmp_path.name, "folder"):
        text.load(tmp_path)


def test_a_real_corpus_round_trips(shared_data: Path) -> None:
    path = shared_data / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tiny Shakespeare is not here")
    corpus = Text(kind="bytes").load(path)
    text = chars(corpus)
    assert text.vocab == 65
    assert text.decode(text.encode(corpus)) == corpus
    text = Text(kind="bpe", vocab_size=512).fit([corpus[:100_000]])
    assert text.vocab == 512
    segment = text.encode(corpus[:200_000])
    assert text.decode(segment) == corpus[:200_000]
    assert text.n_bits_per(segment) == 200_000


def test_a_prompt_is_the_text_itself_and_not_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("content")
    assert Text(kind="bytes").parse(str(tmp_path / "a.txt")) == str(tmp_path / "a.txt")


# ------------------------------------------------------------------- modules


@pytest.mark.parametrize("unit_symbols", [1, 4])
def test_embedder_and_head_fit_the_units(unit_symbols: int) -> None:
    text = Text(kind="bytes", unit_symbols=unit_symbols)
    segment = text.encode("abcdefgh")
    n_units = segment.n_units
    vectors = text.build_embedder(16)(
        segment.symbols, torch.arange(n_units), torch.zeros(n_units, 0, dtype=torch.int64)
    )
    assert vectors.shape == (n_units, 16)
    assert text.unit.continuous
    known = torch.ones(1, n_units, unit_symbols, dtype=torch.bool)
    log_prob = text.build_head(16).log_prob(vectors[None], segment.symbols[None], known, torch.zeros(1, 0).long())
    assert log_prob.shape == (1, n_units, unit_symbols)
    assert (log_prob < 0).all()
