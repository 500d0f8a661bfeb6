"""Constraints: whatever the logits, what comes out matches; in any order of rows, at any end, for every alphabet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from tiny_modalities import Letters

from armm.errors import InputError
from armm.generation import constraints
from armm.generation.constraints import Constraint, JsonSchema, Lark, Regex
from armm.generation.content import Banned
from armm.generation.filter import Row
from armm.generation.filters import arrange
from armm.grammar import Grammar, Slot, Stage
from armm.modalities import Text

CORPUS = [
    '{"name": "Ada", "age": 36, "tall": true, "tags": ["a"], "x": false}\n' * 20,
    "0123456789 abc naïve café 2024-01-31\n" * 20,
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tall": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "é"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tall", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


def fitted(kind: Any, **keys: Any) -> Text:
    text = Text(kind=kind, vocab_size=300, **keys).fit(CORPUS)
    assert isinstance(text, Text)
    return text


TEXTS = {kind: fitted(kind) for kind in ("bytes", "chars", "bpe")}
BYTES = TEXTS["bytes"]


def row(text: Text, string: str | bytes = "", n_given: int = 0, n_left: int | None = None) -> Row:
    """A row about to write a payload symbol after a text."""
    return Row(Slot(Stage.PAYLOAD, "text", 0), text.encode(string).flat().tolist(), n_given, n_left)


def possible(constraint: Constraint, at: Row, vocab: int) -> list[int]:
    """The symbols that are left of equals."""
    return (constraint(torch.zeros(1, vocab), [at])[0] > -1).nonzero()[:, 0].tolist()


def spell(text: Text, symbols: list[int]) -> str:
    return b"".join(text.symbol_bytes()[symbol] for symbol in symbols).decode("utf-8", "surrogateescape")


def write(
    constraint: Constraint, text: Text, seed: int, prompt: str = "", end_bias: float = 0.0, most: int = 400
) -> tuple[str, str]:
    """What a model of random logits writes after a prompt, and why it stopped: the engine's loop, in short."""
    rng = np.random.default_rng(seed)
    grammar = Grammar({"text": text}, ["text"])
    cursor = grammar.start()
    for symbol in grammar.flatten([text.encode(prompt)], open_end=True):
        grammar.push(cursor, symbol)
    n_given = len(cursor.payload)
    for _ in range(most):
        n_left = cursor.unit_length if cursor.last else None
        at = Row(cursor.slot(), tuple(cursor.payload), n_given, n_left)
        if cursor.stage == Stage.DONE or constraint.complete(at):
            break
        logits = torch.tensor(rng.normal(size=(1, grammar.vocab(cursor.slot()))) * 3, dtype=torch.float32)
        if cursor.stage == Stage.DECISION:
            index = torch.tensor([cursor.position - cursor.start])
            logits[:, 1:] += end_bias
            logits = logits.masked_fill(~grammar.decision_mask("text", index), float("-inf"))
        grammar.push(cursor, int(constraint(logits, [at]).argmax()))
    stop = "end" if cursor.stage == Stage.DONE else "grammar" if constraint.complete(at) else "length"
    payload = cursor.payload if stop != "end" else cursor.closed[-1][2]
    return spell(text, payload[n_given:]), stop


# ------------------------------------------------------------------------- symbol bytes


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_symbol_bytes_spell_texts(text: Text) -> None:
    """What constraints read, and what `decode` writes, is the same."""
    string = "naïve café 31"
    symbols = text.encode(string).flat().tolist()
    pieces = text.symbol_bytes()
    assert len(pieces) == text.vocab and all(pieces)
    assert b"".join(pieces[symbol] for symbol in symbols).decode() == string


def test_an_alphabet_that_is_not_fitted_has_no_bytes() -> None:
    with pytest.raises(InputError, match="no alphabet yet"):
        Text(kind="chars").symbol_bytes()


# ------------------------------------------------------------------------ what is written

PATTERNS = [r"[0-9]{4}-[0-9]{2}-[0-9]{2}", r"(abc|ab|c){1,4}", r"caf(é|e)|naïve", r"[a-c]?", r"(?i)A B{0,3}c"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_match_the_pattern(pattern: str, text: Text) -> None:
    """Bounded patterns come to an end by themselves, in every alphabet, after any prompt."""
    constraint = Regex(pattern, text)
    written = {write(constraint, text, seed, prompt) for seed in range(8) for prompt in ("", "abc 3")}
    assert all(re.fullmatch(pattern, string) and stop == "grammar" for string, stop in written), written
    assert len(written) > 1


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_conform_to_the_schema(text: Text) -> None:
    constraint = JsonSchema(SCHEMA, text)
    for seed in range(6):
        string, stop = write(constraint, text, seed)
        value = json.loads(string)
        assert stop == "grammar" and list(value) == ["name", "age", "tall", "tags"]
        assert isinstance(value["name"], str) and len(value["name"]) <= 6
        assert type(value["age"]) is int and 0 <= value["age"] <= 150 and type(value["tall"]) is bool
        assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"a", "é"}


def test_a_schema_may_be_given_as_json() -> None:
    text = TEXTS["chars"]
    one, other = JsonSchema(SCHEMA, text), JsonSchema(json.dumps(SCHEMA), text)
    assert one == other and write(one, text, 0) == write(other, text, 0)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_are_of_the_grammar(text: Text) -> None:
    """A context-free language, which no regular expression is: as many b as a."""
    constraint = Lark('start: "a" start "b" | "c"', text)
    for seed in range(8):
        string, stop = write(constraint, text, seed)
        n = len(string) // 2
        assert stop == "grammar" and string == "a" * n + "c" + "b" * n


def test_digits_are_those_of_any_script() -> None:
    """As in Python's own expressions; [0-9] is ASCII."""
    digit = Regex(r"\d", BYTES)
    assert digit.complete(row(BYTES, "7")) and digit.complete(row(BYTES, "٣")) and not digit.complete(row(BYTES, "a"))
    assert possible(Regex("[0-9]", BYTES), row(BYTES), 256) == [*b"0123456789"]


def test_unbounded_patterns_go_on_where_texts_have_no_end() -> None:
    """Cut at any length they are the beginning of a match."""
    string, stop = write(Regex(r"[ab]+c", BYTES), BYTES, 0, most=1)
    assert stop == "length" and re.fullmatch("[ab]+", string)
    string, stop = write(Regex(r"(ab)*", BYTES), BYTES, 0, most=50)
    assert stop == "length" and string == "ab" * 25


def test_any_spelling_is_allowed() -> None:
    """A text whose bytes are forced is not forced to one tokenisation: what the model has learned decides."""
    text = TEXTS["bpe"]
    pieces = text.symbol_bytes()
    beginnings = [i for i, piece in enumerate(pieces) if b"name".startswith(piece)]
    assert possible(Regex("name", text), row(text), text.vocab) == beginnings and len(beginnings) > 2


# ----------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("pattern", [r"[0-9]+", r"(ab)*", r"(abc|b)+", r"[0-9]{3}", r"a|bc", r"a?"])
@pytest.mark.parametrize("end_bias", [0.0, 4.0])
def test_texts_with_an_end_end_in_a_match(pattern: str, end_bias: float) -> None:
    """One symbol per unit: the end is the document's own, coded as any other, never a cut."""
    text = fitted("chars", ended=True)
    constraint = Regex(pattern, text)
    written = {write(constraint, text, seed, end_bias=end_bias) for seed in range(12)}
    assert all(re.fullmatch(pattern, string) for string, _ in written), written
    assert len(written) > 1
    # only where it says that more follow, and then draws a symbol that nothing can follow, the grammar has to stop it
    assert all(stop == "end" for _, stop in written) or pattern == "a|bc"


def test_the_model_decides_when_an_unbounded_text_ends() -> None:
    text = fitted("bytes", ended=True)
    constraint = Regex(r"[0-9]+", text)
    short = [len(write(constraint, text, seed, end_bias=9)[0]) for seed in range(20)]
    long = [len(write(constraint, text, seed, end_bias=-6)[0]) for seed in range(20)]
    assert np.mean(short) < 2 and 5 < np.mean(long) < 100


def decisions(constraint: Constraint, text: Text, string: str) -> list[int]:
    at = Row(Slot(Stage.DECISION, "text", 0), text.encode(string).flat().tolist())
    return possible(constraint, at, text.unit_symbols + 2)


def test_decisions_are_those_that_the_grammar_can_keep() -> None:
    """0: more follow; 1 + j: the last unit, with j symbols."""
    text = fitted("bytes", ended=True)
    digits = Regex(r"[0-9]{3}", text)
    assert [decisions(digits, text, string) for string in ("", "1", "12")] == [[0], [0], [2]]
    pairs = Regex("(ab)*", text)
    assert [decisions(pairs, text, string) for string in ("", "a", "ab")] == [[0, 1], [0, 2], [0, 1]]
    quad = fitted("bytes", ended=True, unit_symbols=4)
    assert [decisions(Regex(pattern, quad), quad, "") for pattern in ("abc", "abcdef", "abc|d")] == [[4], [0], [2, 4]]
    assert decisions(Regex(r"(ab)*", quad), quad, "ab") == [0, 1, 3, 5]


def test_the_last_symbols_are_held_to_the_end_that_was_decided() -> None:
    constraint = Regex("ab|abc|bd", BYTES)
    assert possible(constraint, row(BYTES), 256) == [*b"ab"]
    assert possible(constraint, row(BYTES, n_left=3), 256) == [*b"a"]
    assert possible(constraint, row(BYTES, n_left=2), 256) == [*b"ab"]
    assert possible(constraint, row(BYTES, "ab", n_left=1), 256) == [*b"c"]
    assert possible(constraint, row(BYTES, n_left=1), 256) == [*b"ab"]  # cannot be: then the text is cut
    assert possible(constraint, row(BYTES, n_left=1000), 256) == [*b"ab"]  # too far ahead to look


@pytest.mark.parametrize("kind", ["bytes", "chars"])
@pytest.mark.parametrize("pattern", [r"[0-9]+", r"(abc|b)+", r"[0-9]{3,9}", r"([0-9]{4} )*"])
def test_units_of_several_symbols(kind: str, pattern: str) -> None:
    """Patches: the end falls inside a unit, and is the document's own or the grammar's, but always of a match."""
    text = fitted(kind, ended=True, unit_symbols=3)
    constraint = Regex(pattern, text)
    written = {write(constraint, text, seed, end_bias=1.0) for seed in range(15)}
    assert all(re.fullmatch(pattern, string) and stop != "length" for string, stop in written), written
    assert len({len(string) for string, _ in written}) > 1


def test_json_in_units_of_several_symbols() -> None:
    text = fitted("bytes", ended=True, unit_symbols=4)
    constraint = JsonSchema(SCHEMA, text)
    for seed in range(3):
        string, stop = write(constraint, text, seed)
        assert stop in ("end", "grammar") and json.loads(string)


def test_a_text_that_fills_its_units_is_cut() -> None:
    """`max_units` ends a text as `max_symbols` does: no error, and the beginning of a match."""
    text = fitted("bytes", ended=True, max_units=3)
    for seed in range(5):
        string, stop = write(Regex(r"[0-9]{5}", text), text, seed)
        assert stop == "end" and re.fullmatch(r"[0-9]{3}", string)
        string, stop = write(Regex(r"[0-9]{2}", text), text, seed)
        assert stop == "end" and re.fullmatch(r"[0-9]{2}", string)


def test_complete() -> None:
    constraint = Regex("ab?", BYTES)
    found = [constraint.complete(row(BYTES, string)) for string in ("", "a", "ab", "x", "abb")]
    assert found == [False, False, True, False, False]
    assert constraint.complete(Row(Slot(Stage.DECISION, "text", 0), [*b"ab"]))
    assert not constraint.complete(Row(Slot(Stage.PAYLOAD, "image", 0), [*b"ab"]))
    assert Regex("", BYTES).complete(row(BYTES))


# ----------------------------------------------------------------------------------- rows


def test_the_prompt_is_free() -> None:
    """Only what is generated has to match, whatever stood before it."""
    constraint = Regex(r"[0-9]{2}", BYTES)
    assert possible(constraint, row(BYTES, "no digits: ", n_given=11), 256) == possible(constraint, row(BYTES), 256)
    assert constraint.complete(row(BYTES, "7 or 12", n_given=5))
    assert not constraint.complete(row(BYTES, "7 or 12", n_given=6))


def test_other_symbols_are_left_alone() -> None:
    """Another modality, structure, rows that are complete, and guesses that the grammar refuses."""
    constraint = Regex("ab", BYTES)
    logits = torch.arange(5.0).repeat(6, 1)
    at = [
        Row(Slot(Stage.CONTROL, "", 0), []),
        Row(Slot(Stage.HEADER, "text", 0), []),
        Row(Slot(Stage.PAYLOAD, "image", 0), []),
        Row(Slot(Stage.DONE, "", 0), []),
        row(BYTES, "ab"),
        row(BYTES, "xy"),
    ]
    assert torch.equal(constraint(logits, at), logits)


def test_what_is_kept_keeps_its_logit_and_other_rows_change_nothing() -> None:
    constraint = Regex(r"[a-f]+x", BYTES)
    torch.manual_seed(0)
    logits = torch.randn(4, 300)
    before = logits.clone()
    rows = [row(BYTES, string) for string in ("", "abc", "f", "abx")]
    found = constraint(logits, rows)
    assert torch.equal(logits, before)
    for number, at in enumerate(rows):
        alone = constraint(logits[number : number + 1, :256], [at])
        assert torch.equal(found[number : number + 1, :256], alone)
    inside = found[:3, :256] > -np.inf
    assert torch.equal(found[:3, :256][inside], logits[:3, :256][inside]) and inside.sum() == 6 + 7 + 7
    assert found[:3, 256:].isneginf().all()


def test_any_order_of_rows_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grown, shrunk, repeated, reordered and forgotten rows have the masks of a matcher that reads them afresh."""
    text, pattern = TEXTS["bpe"], r'("[a-c ]*", )*true'
    rng = np.random.default_rng(0)
    strings = ['"abc"', '"a", "b", tru', '"", "", "c', "true", '"abc ab", "c", ']
    histories = [text.encode(string).flat().tolist() for string in strings]
    rows = [Row(Slot(Stage.PAYLOAD, "text", 0), own[:n]) for own in histories for n in range(len(own) + 1)]
    expected = [Regex(pattern, text)(torch.zeros(1, text.vocab), [at])[0] for at in rows]  # each with a new one
    for kept in (512, 2, 0):
        monkeypatch.setattr(constraints, "KEPT", kept)
        constraint = Regex(pattern, text)
        order = [*range(len(rows)), *rng.integers(0, len(rows), 60).tolist(), *reversed(range(len(rows)))]
        for number in order:
            assert torch.equal(constraint(torch.zeros(1, text.vocab), [rows[number]])[0], expected[number])
        shuffled = rng.permutation(len(rows)).tolist() * 2
        found = constraint(torch.zeros(len(shuffled), text.vocab), [rows[i] for i in shuffled])
        assert torch.equal(found, torch.stack([expected[i] for i in shuffled]))
        assert len(constraint._grammar._kept) <= kept


def test_growing_by_a_symbol_reads_one_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a step does not grow with the text, also where all rows have a beginning in common."""
    read: list[int] = []
    after = constraints.Place.after
    monkeypatch.setattr(constraints.Place, "after", lambda at, symbols: read.append(len(symbols)) or after(at, symbols))
    constraint = Regex(r"[ab]*", BYTES)
    for n in range(30):
        constraint(torch.zeros(2, 256), [row(BYTES, "a" * n), row(BYTES, "b" + "a" * n)])
    assert set(read) == {1}


# ------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Regex("(", BYTES), r"Regex.pattern '\(' cannot be used: unclosed group"),
        (lambda: Regex(r"(a)\1", BYTES), "backreferences are not supported"),
        (lambda: Regex("a(?=b)", BYTES), "look-around"),
        (lambda: JsonSchema("{nope", BYTES), "JsonSchema.schema is not JSON"),
        (lambda: JsonSchema({"type": {1, 2}}, BYTES), "JsonSchema.schema is not JSON"),
        (lambda: JsonSchema("[1]", BYTES), r"JsonSchema.schema is \[1\]; expected an object"),
        (lambda: JsonSchema({"type": "strin"}, BYTES), "JsonSchema.schema cannot be used.*strin"),
        (lambda: JsonSchema({"not": {}}, BYTES), "JsonSchema.schema cannot be used.*not"),
        (lambda: Lark('start: "a" word', BYTES), "Lark.grammar cannot be used.*word"),
        (lambda: Lark(" ", BYTES), "Lark.grammar is empty"),
        (lambda: Regex("ж", TEXTS["chars"]), "Regex.pattern 'ж' cannot be met.*none can follow the beginning"),
        (lambda: Regex("a", Letters()), "Regex is for texts, and the symbols of 'letters' are not"),
        (lambda: arrange([Regex("a", BYTES), Lark('start: "a"', BYTES)]), "Regex and Lark for the same symbols"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_match_that_the_alphabet_cannot_complete_is_a_mistake() -> None:
    """Better than an endless text, or one that does not match."""
    text = TEXTS["chars"]
    with pytest.raises(InputError, match=r"none can follow the text 'ab'; loosen it") as error:
        write(Regex("abж", text), text, 0)
    assert "\n" not in str(error.value)


def test_a_constraint_and_a_ban_that_leave_nothing_are_a_mistake() -> None:
    logits = Banned([*b"ab"])(torch.zeros(1, 256), [row(BYTES)])
    with pytest.raises(InputError, match="Regex leaves no symbol that the model or another filter allows"):
        Regex("[ab]", BYTES)(logits, [row(BYTES)])


def test_a_constraint_belongs_to_its_alphabet() -> None:
    constraint = Regex("a", BYTES)
    constraint.check({"text": 256, "image": 4})
    with pytest.raises(InputError, match="an alphabet of 256 symbols, 'text' of this model has 65"):
        constraint.check({"text": 65})
    with pytest.raises(InputError, match=r"Regex\.modality is 'text'; the model has image"):
        constraint.check({"image": 4})


def test_constraints_are_values() -> None:
    """The grammar and the modality's name go into a sample's provenance, the alphabet does not."""
    caption = BYTES.named("caption")
    assert asdict(Regex("a|b", caption)) == {"pattern": "a|b", "modality": "caption"}
    assert repr(Regex("a", BYTES)) == "Regex(pattern='a', modality='text')"
    assert asdict(JsonSchema({"type": "null"}, BYTES)) == {"schema": '{"type": "null"}', "modality": "text"}
    assert hash(Lark('start: "a"', BYTES)) == hash(Lark('start: "a"', BYTES))


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InputError, match=r"pip install armm\[constraints\]"):
        Regex("a", BYTES)
