"""Stop strings, and text as it comes: never half a character, and nothing that may yet turn out to be a stop string.

Works on symbols of any modality whose symbols are pieces of UTF-8 text (`Modality.symbol_bytes`).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from armm.grammar import Grammar, Stage


class StopWatch:
    """Reads a document's symbols and says when the text of the open segment contains a stop string.

    The prompt's text counts as context only: a stop string that lies in it, even in part, does not stop.
    """

    def __init__(self, stops: Sequence[str], grammar: Grammar) -> None:
        self.stops, self.grammar = [stop for stop in stops if stop], grammar
        self.cursor = grammar.start()
        self.pieces = {name: m.symbol_bytes() for name, m in grammar.modalities.items()}
        self.text, self.found = "", False
        self.segment = 0  # the number of the one that the stop string is in
        self.finished = ""  # the text of the segment that ended last
        self._begin()

    def _begin(self) -> None:
        self.whole, self.searched = "", 0  # of the open segment; what was searched for stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def read(self, symbols: Sequence[int]) -> None:
        """Symbols of the prompt."""
        for symbol in symbols:
            self._decode(symbol)
        self.searched = len(self.whole)

    def push(self, symbol: int) -> bool:
        """A drawn symbol; whether the text has come to a stop string. `text` is then what stands before it."""
        self._decode(symbol, search=True)
        return self.found

    def _decode(self, symbol: int, search: bool = False) -> None:
        slot = self.cursor.slot()
        n_closed = len(self.cursor.closed)
        pieces = self.pieces.get(slot.modality) if slot.stage == Stage.PAYLOAD else None
        if pieces is not None:
            self.whole += self.decoder.decode(pieces[symbol])
            places = [place for stop in self.stops if (place := self.whole.find(stop, self.searched)) >= 0]
            if search and places:  # before the segment may end with this symbol
                self.text, self.found, self.segment = self.whole[: min(places)], True, n_closed
        if slot.stage != Stage.DONE:
            self.grammar.push(self.cursor, symbol)
        if len(self.cursor.closed) > n_closed and not self.found:
            self.finished = self.rest()
            self._begin()

    def rest(self) -> str:
        """The whole text of the open segment, if nothing more comes."""
        return self.whole + self.decoder.decode(b"", final=True)

    def is_text(self, modality: str) -> bool:
        return self.pieces.get(modality) is not None

    @property
    def held_back(self) -> int:
        """How many of the last characters may yet become a stop string."""
        return max((longest_overlap(self.whole[self.searched :], stop) for stop in self.stops), default=0)


def longest_overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
