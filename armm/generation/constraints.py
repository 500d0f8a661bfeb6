"""Constraints: filters that let a text become nothing but a match of a regular expression, a JSON schema or a grammar.

    text = model.modalities["text"]
    generate(model, filters=[Regex(r"\\d{4}-\\d{2}-\\d{2}", text)])

They constrain what is generated of a segment; the prompt before it is free. The parsing is llguidance's
(github.com/guidance-ai/llguidance), on the bytes of every symbol, so a match may be spelled by any symbols that the
alphabet has. Grammars are Unicode: `.` is a character, whatever number of symbols that takes, and `\\d` a digit of any
script.

How a text ends, where nothing may follow or something may:

- Texts without an end of their own stop where nothing may follow (`complete`); until then they go on, so an unbounded
  grammar such as `\\d+` needs `max_symbols`.
- Where an end decision comes before each unit (`ended: true`), it may say "the last unit, with j symbols" only if
  exactly j more symbols can make a match, and these are then held to it; it may say "more follow" only if more can.
  Within that the model decides; where more should follow and it draws a symbol that nothing can follow, the text stops
  there (`complete`). What several symbols can lead to is looked up among the first `PLACES` continuations: an end that
  none of these finds is taken as impossible, and going on as possible.
- A text that is cut (`max_symbols`, `max_units`, the context) is the beginning of a match.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from armm.errors import InputError
from armm.generation.filter import Filter, Row
from armm.grammar import Stage
from armm.modality import Modality

if TYPE_CHECKING:
    from llguidance import LLMatcher

PLACES = 100  # continuations looked at to find an end several symbols ahead
FARTHEST_END = 16  # symbols: an end that is settled farther ahead than this is not looked for yet
KEPT = 512  # places of a grammar kept for the next call
# any spelling is allowed: otherwise llguidance insists on one tokenisation where the bytes are forced
ANY_SPELLING = '\n%llguidance {"no_forcing": true}\n'


class Constraint(Filter):
    """A grammar over the generated symbols of one modality."""

    order: ClassVar[int] = 23
    single: ClassVar[bool] = True

    _grammar: Walker
    _unit_symbols: int

    @property
    def reads_rows(self) -> bool:
        return True

    def _bind(self, lark: str, text: Modality, what: str) -> None:
        """Compile a grammar in Lark's syntax for the symbols of a text.

        Raises InputError: it is malformed, nothing that it matches begins with a symbol, or `text` is no text.
        """
        symbols = text.symbol_bytes()
        if symbols is None:
            raise InputError(
                f"{type(self).__name__} is for texts, and the symbols of {text.name!r} are not pieces of one; "
                'pass the model\'s text, such as model.modalities["text"]'
            )
        # a frozen dataclass that nobody else holds yet
        object.__setattr__(self, "modality", text.name)
        object.__setattr__(self, "_unit_symbols", text.unit_symbols)
        object.__setattr__(self, "_grammar", Walker(lark, symbols, what))

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Rule out what would leave the grammar.

        Left as they are: rows that are complete, and rows that have left the grammar already (wrong guesses, that the
        engine will throw away).

        Raises InputError: a match has begun that the alphabet cannot complete, or another filter bans what remains.
        """
        possible = np.ones(logits.shape, dtype=bool)
        for number, row in enumerate(rows):
            place = self._place(row)
            if place is None or place.complete:
                continue
            if row.slot.stage == Stage.PAYLOAD:
                self._grammar.check_dead_end(place)
                own = place.next_symbols(row.n_left)
            else:
                own = place.decisions(self._unit_symbols)
                offered = ~logits[number, : len(own)].isneginf().cpu().numpy()
                if not (own & offered).any():  # no further unit fits: the text is cut
                    continue
            possible[number] = False
            possible[number, : len(own)] = own
        left = logits.masked_fill(torch.from_numpy(~possible).to(logits.device), float("-inf"))
        if bool((left.isneginf().all(-1) & ~logits.isneginf().all(-1)).any()):
            raise InputError(
                f"{type(self).__name__} leaves no symbol that the model or another filter allows; loosen one of them"
            )
        return left

    def complete(self, row: Row) -> bool:
        """Whether what was generated is a match and no symbol can follow."""
        place = self._place(row)
        return place is not None and place.complete

    def check(self, alphabets: Mapping[str, int]) -> None:
        super().check(alphabets)
        if alphabets[self.modality] != self._grammar.vocab:
            raise InputError(
                f"{type(self).__name__} was made for an alphabet of {self._grammar.vocab} symbols, {self.modality!r} "
                f"of this model has {alphabets[self.modality]}; make it with this model's text"
            )

    def _place(self, row: Row) -> Place | None:
        """Where a row stands in the grammar; None for other kinds of symbols, and outside the grammar."""
        if row.slot.modality != self.modality or row.slot.stage not in (Stage.DECISION, Stage.PAYLOAD):
            return None
        return self._grammar.place(tuple(row.payload[row.n_given :]))


@dataclass(frozen=True)
class Regex(Constraint):
    """Texts that match a regular expression as a whole, in the syntax of Rust's regex crate (docs.rs/regex).

    Raises InputError: it is malformed, has look-around or back-references, or the text's symbols cannot spell a match.
    """

    pattern: str
    text: InitVar[Modality]
    modality: str = field(init=False)

    def __post_init__(self, text: Modality) -> None:
        self._bind(f"start: /{llguidance().regex_to_lark(self.pattern)}/", text, f"Regex.pattern {self.pattern!r}")


@dataclass(frozen=True)
class JsonSchema(Constraint):
    """JSON that conforms to a schema (json-schema.org, draft 2020-12), given as a dict or as JSON; kept as JSON.

    Properties come in the schema's order. White space is free; `"x-guidance": {"whitespace_flexible": false}` in the
    schema asks for compact JSON.

    Raises InputError: it is no schema, uses a keyword that llguidance cannot enforce, or the text's symbols cannot
    spell such JSON.
    """

    schema: Mapping[str, Any] | str
    text: InitVar[Modality]
    modality: str = field(init=False)

    def __post_init__(self, text: Modality) -> None:
        try:
            schema = json.loads(self.schema if isinstance(self.schema, str) else json.dumps(self.schema))
        except (TypeError, ValueError) as error:
            raise InputError(f"JsonSchema.schema is not JSON: {error}; correct it") from error
        if not isinstance(schema, dict):
            raise InputError(f"JsonSchema.schema is {schema!r}; expected an object such as " + '{"type": "integer"}')
        object.__setattr__(self, "schema", json.dumps(schema))
        self._bind(f"start: %json {self.schema}", text, "JsonSchema.schema")


@dataclass(frozen=True)
class Lark(Constraint):
    """Texts of a context-free grammar in llguidance's variant of Lark's syntax, from its rule `start`.

    Raises InputError: it is malformed, or the text's symbols cannot spell anything of it.
    """

    grammar: str
    text: InitVar[Modality]
    modality: str = field(init=False)

    def __post_init__(self, text: Modality) -> None:
        if not self.grammar.strip():
            raise InputError('Lark.grammar is empty; give it a rule such as start: "yes" | "no"')
        self._bind(self.grammar, text, "Lark.grammar")


class Place:
    """Where a grammar stands after some symbols. It never changes, so any number of rows may stand there.

    Attributes:
        accepting: the symbols are a match.
        allowed: (V,) bool: the symbols that may follow.
    """

    def __init__(self, matcher: LLMatcher, vocab: int, symbols: tuple[int, ...]) -> None:
        self._matcher, self._vocab, self.symbols = matcher, vocab, symbols
        self.accepting = matcher.is_accepting()

    @cached_property
    def allowed(self) -> np.ndarray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little", count=self._vocab).astype(bool)

    @property
    def complete(self) -> bool:
        return self.accepting and not self.allowed.any()

    def after(self, symbols: tuple[int, ...]) -> Place | None:
        """The place some symbols further; None where the grammar refuses one of them."""
        if self._matcher.validate_tokens(list(symbols)) < len(symbols):
            return None
        matcher = self._matcher.deep_copy()
        matcher.consume_tokens(list(symbols))
        return Place(matcher, self._vocab, self.symbols + symbols)

    def next_symbols(self, n_left: int | None) -> np.ndarray:
        """(V,) bool: the symbols that may come; those that lead to an end after exactly `n_left`, if any does."""
        if n_left is None or n_left > FARTHEST_END:
            return self.allowed
        ending = np.zeros_like(self.allowed)
        for symbol in np.flatnonzero(self.allowed).tolist():
            ending[symbol] = self._ends_with(symbol) if n_left == 1 else self._step(symbol).can_end(n_left - 1)
        return ending if ending.any() else self.allowed

    def decisions(self, unit_symbols: int) -> np.ndarray:
        """(K + 2,) bool: the end decisions that may come; "more follow" where no other leads to an end."""
        ends = [self.can_end(n) for n in range(unit_symbols + 1)]
        goes_on = not any(ends[1:]) or self._goes_on(unit_symbols, [PLACES])
        return np.array([goes_on, *ends])

    def can_end(self, n: int) -> bool:
        """Whether exactly n more symbols make a match; n from 2 on may be False where it would take long to find."""
        return self._search_end(n, [PLACES if n > 1 else self._vocab])

    def _search_end(self, n: int, budget: list[int]) -> bool:
        # symbols in ascending order: what is found within a budget is found again, one symbol on, within the same
        if n == 0:
            return self.accepting
        for symbol in np.flatnonzero(self.allowed).tolist():
            if not budget[0]:
                return False
            budget[0] -= 1
            if self._ends_with(symbol) if n == 1 else self._step(symbol)._search_end(n - 1, budget):
                return True
        return False

    def _goes_on(self, n: int, budget: list[int]) -> bool:
        """Whether something can follow the next n symbols; True where it would take long to find."""
        if n == 0 or not budget[0]:
            return bool(self.allowed.any())
        for symbol in np.flatnonzero(self.allowed).tolist():
            budget[0] -= bool(budget[0])
            if self._step(symbol)._goes_on(n - 1, budget):
                return True
        return False

    def _ends_with(self, symbol: int) -> bool:
        """Whether one more symbol makes a match; the end is a token of its own, behind the alphabet."""
        return self._matcher.validate_tokens([symbol, self._vocab]) == 2

    def _step(self, symbol: int) -> Place:
        place = self.after((symbol,))
        assert place is not None, "an allowed symbol"
        return place


class Walker:
    """The places of a grammar, each found from the nearest one known: one step on for a row that grew by a symbol.

    Rows may come in any order, repeat, grow, shrink or be dropped; what is kept changes the speed only.
    """

    def __init__(self, lark: str, symbols: list[bytes], what: str) -> None:
        library = llguidance()
        self.vocab, self._symbols, self._what = len(symbols), symbols, what
        tokenizer = library.LLTokenizer(library.TokenizerWrapper(Alphabet(symbols)))
        grammar = json.dumps({"grammars": [{"lark_grammar": lark + ANY_SPELLING}]})
        matcher = library.LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"{what} cannot be used: {reason(matcher.get_error())}")
        self._root = Place(matcher, self.vocab, ())
        self._kept: OrderedDict[tuple[int, ...], Place] = OrderedDict()
        if not self._root.accepting:
            self.check_dead_end(self._root)

    def place(self, symbols: tuple[int, ...]) -> Place | None:
        """Where the grammar stands after these symbols; None where it refuses one of them."""
        if not symbols:
            return self._root
        if symbols in self._kept:
            self._kept.move_to_end(symbols)
            return self._kept[symbols]
        n = next((n for n in range(len(symbols) - 1, 0, -1) if symbols[:n] in self._kept), 0)
        nearest = self._kept[symbols[:n]] if n else self._root
        place = nearest.after(symbols[n:])
        if place is not None:
            self._kept[symbols] = place
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return place

    def check_dead_end(self, place: Place) -> None:
        """Raises InputError: no match, and no symbol that leads to one."""
        if place.allowed.any() or place.accepting:
            return
        so_far = b"".join(self._symbols[symbol] for symbol in place.symbols).decode("utf-8", "replace")
        after = f"the text {so_far[-40:]!r}" if so_far else "the beginning"
        raise InputError(
            f"{self._what} cannot be met: of the {self.vocab} symbols of this alphabet none can follow {after}; "
            "loosen it, or use a text of kind: bytes, which spells anything"
        )


class Alphabet:
    """An alphabet as llguidance's TokenizerWrapper wants it, with a token for the end behind the symbols."""

    def __init__(self, symbols: list[bytes]) -> None:
        self.tokens = [*symbols, b"<end>"]
        self.eos_token_id = len(symbols)
        self.special_token_ids = [len(symbols)]
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return []  # only asked for where a spelling is forced


def reason(error: str) -> str:
    """The line of llguidance's message that says what is wrong."""
    parse_error = re.search(r"^error: (.+)$", error, re.MULTILINE)
    return parse_error[1] if parse_error else error.strip().splitlines()[0]


def llguidance() -> Any:
    """The library, imported where it is needed.

    Raises InputError: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise InputError(f"constraints need the llguidance package ({error}); pip install armm[constraints]") from error
    return llguidance
