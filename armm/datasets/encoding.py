"""Much text to symbols, quickly: exactly what the modality's `encode` gives.

Byte-level BPE merges inside words only, and most words of a text have been there before. So words are looked up, and
only new ones go to the tokenizers library, which is several times as fast as sending it everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np

from armm.errors import InputError
from armm.modalities.text import Text
from armm.modality import Modality

Encoder = Callable[[bytes], np.ndarray]
"""A text, or part of one, to its (n,) symbols."""

N_WORDS = 2**18  # that are remembered, some 50 MB

WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
ASCII = r"(?![^\x00-\x7f])"  # what else is a letter is left to the library
# GPT-2's pattern, which byte-level BPE cuts texts by; a word with more than ASCII in it comes whole to its end
WORDS = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)"
    rf"| ?[A-Za-z]++{ASCII}"
    rf"| ?[0-9]++{ASCII}"
    rf"| ?[^A-Za-z0-9\t-\r \x80-\U0010ffff]++{ASCII}"
    rf"| ?[^{WHITE}]+"
    rf"|[{WHITE}]+(?![^{WHITE}])"
    rf"|[{WHITE}]"
)


def encoder(modality: Modality) -> Encoder:
    """The quickest way that gives what `modality.encode` gives."""
    if isinstance(modality, Text) and modality.kind == "bytes":
        return lambda content: np.frombuffer(content, dtype=np.uint8)
    if isinstance(modality, Text) and modality.kind == "bpe" and modality.tokenizer and is_plain(modality.tokenizer):
        return _bpe(modality.tokenizer)
    return lambda content: modality.encode(content).flat().numpy()


def is_plain(tokenizer: str) -> bool:
    """Whether a tokenizer, as JSON, splits texts by GPT-2's pattern and does nothing else but merge."""
    found: dict[str, Any] = json.loads(tokenizer)
    pre = found.get("pre_tokenizer") or {}
    splits = pre.get("type") == "ByteLevel" and pre.get("use_regex", True) and not pre.get("add_prefix_space")
    others = ("normalizer", "post_processor", "truncation", "padding", "added_tokens")
    return bool(splits) and not any(found.get(key) for key in others) and not found["model"].get("dropout")


@lru_cache(maxsize=1)
def _bpe(tokenizer: str) -> Bpe:
    return Bpe(tokenizer)


def text_of(content: bytes) -> str:
    """Raises InputError: it is no UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 text: byte 0x{content[error.start]:02x} after {error.start} more; convert it to UTF-8, or "
            "prepare it with kind: bytes, which takes any file"
        ) from error


class Bpe:
    """Words, and their symbols: word i has `symbols[starts[i] : starts[i + 1]]`."""

    def __init__(self, tokenizer: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.spelling = Text(kind="bpe", tokenizer=tokenizer).symbol_bytes()
        self._forget()

    def _forget(self) -> None:
        self.numbers: dict[str, int] = {}
        self.symbols, self.starts = np.zeros(1 << 16, np.uint32), np.zeros(1 << 14, np.int64)

    def __call__(self, content: bytes) -> np.ndarray:
        """Raises InputError: the text is not UTF-8."""
        words = WORDS.findall(text_of(content))
        if len(self.numbers) > N_WORDS:
            self._forget()
        numbers = np.fromiter(map(self.numbers.get, words, repeat(-1)), np.int64, len(words))
        new = np.flatnonzero(numbers < 0)
        if new.size:
            found = [words[i] for i in new.tolist()]
            self._learn(list(dict.fromkeys(found)))
            numbers[new] = np.fromiter(map(self.numbers.__getitem__, found), np.int64, len(found))
        return self._gather(numbers)

    def _gather(self, numbers: np.ndarray) -> np.ndarray:
        """The symbols of words in a row."""
        starts = self.starts[numbers]
        lengths = self.starts[numbers + 1] - starts
        ends = np.cumsum(lengths)
        n = int(ends[-1]) if len(ends) else 0
        return self.symbols[np.repeat(starts - ends + lengths, lengths) + np.arange(n)]

    def _learn(self, words: list[str]) -> None:
        for word, encoding in zip(words, self.tokenizer.encode_batch_fast(words), strict=True):
            symbols = encoding.ids
            if b"".join([self.spelling[i] for i in symbols]) != word.encode():
                raise InputError("the tokenizer changes the text, so its bits would be those of another; learn another")
            self._add(word, np.array(symbols, dtype=np.uint32))

    def _add(self, word: str, symbols: np.ndarray) -> None:
        number = len(self.numbers)
        start = self.starts[number]
        end = start + len(symbols)
        if number + 2 > len(self.starts):
            self.starts = np.concatenate([self.starts, np.zeros_like(self.starts)])
        while end > len(self.symbols):
            self.symbols = np.concatenate([self.symbols, np.zeros_like(self.symbols)])
        self.symbols[start:end] = symbols
        self.starts[number + 1] = end
        self.numbers[word] = number
