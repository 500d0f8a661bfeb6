"""Text as bytes, as characters, or as byte-level BPE tokens (arXiv:1508.07909, on bytes as in GPT-2).

Nothing is normalised and there is no unknown token: what is encoded decodes to exactly the same bytes, or is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from armm.errors import InputError
from armm.heads import HeadConfig
from armm.modalities.reading import one_line, read_bytes
from armm.modalities.units import ragged_segment
from armm.modality import Modality
from armm.sequence import Segment

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
PIECE = 2**14
# no token of a byte-level BPE spans a line end between two characters that are not spaces
TOKEN_BORDER = re.compile(r"\S\n(?=\S)")


@dataclass(frozen=True)
class Text(Modality):
    """Strings, exactly.

    Bytes that are not UTF-8 stand in a string as surrogate escapes (PEP 383), so `kind: bytes` takes any file at all,
    and any sample can be written to one.

    Attributes:
        kind: the symbols: `bytes`; `chars`, the characters of the training text; `bpe`, tokens learned from it.
        vocab_size: how many tokens `bpe` learns, the 256 bytes included; fewer where the text has no more to merge.
        unit_symbols: consecutive symbols that the backbone sees as one position; more than 1 is a patch of bytes
            (MEGABYTE, arXiv:2305.07185).
        ended: texts of their own length, whose end is coded. Otherwise a text is a window of an endless stream.
        max_units: the longest text, in units; only where `ended`.
        head: the head; by default softmax at one symbol per unit and the causal convolution block for more.
        tokenizer: the learned alphabet or merges as JSON. Training fills it in; a bundle keeps it as `tokenizer.json`.
        name: its name in a model.
    """

    kind: Literal["bytes", "chars", "bpe"]
    vocab_size: int = 1024
    unit_symbols: int = 1
    ended: bool = False
    max_units: int | None = None
    head: HeadConfig | None = None
    tokenizer: str | None = field(default=None, repr=False)
    name: str = "text"

    suffix: ClassVar[str] = ".txt"
    suffixes: ClassVar[tuple[str, ...]] = (
        *(".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".jsonl", ".yaml", ".toml", ".csv", ".tsv"),
        *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".sql", ".abc"),
    )

    def __post_init__(self) -> None:
        if self.kind not in ("bytes", "chars", "bpe"):
            raise InputError(f"{self.name}.kind is {self.kind!r}; expected bytes, chars or bpe")
        if self.kind == "bpe" and self.vocab_size < 256:
            raise InputError(
                f"{self.name}.vocab_size is {self.vocab_size}; bpe needs at least 256, one token for every byte"
            )
        if self.unit_symbols < 1:
            raise InputError(f"{self.name}.unit_symbols is {self.unit_symbols}; expected 1 or more")
        if self.max_units is not None and not self.ended:
            raise InputError(f"{self.name}.max_units needs {self.name}.ended: true; set that or remove max_units")
        if self.max_units is not None and self.max_units < 1:
            raise InputError(f"{self.name}.max_units is {self.max_units}; expected 1 or more")

    @property
    def vocab(self) -> int:
        """Number of symbols.

        Raises InputError: it is learned from data, and has not been.
        """
        if self.kind == "bytes":
            return 256
        return len(_alphabet(self._fitted())) if self.kind == "chars" else len(_bpe(self._fitted()).tokens)

    @property
    def bits_per(self) -> str:
        return "char" if self.kind == "chars" else "byte"

    @property
    def nats_per(self) -> str:
        return {"bytes": "byte", "chars": "char", "bpe": "token"}[self.kind]

    def n_bits_per(self, segment: Segment) -> int:
        """Characters for `chars`, otherwise bytes of the text."""
        if self.kind != "bpe":
            return segment.length
        return int(_bpe(self._fitted()).lengths[segment.flat().numpy()].sum())

    # ------------------------------------------------------------------ data

    def encode(self, raw: str | bytes) -> Segment:
        """A text as symbols; an empty one has no units.

        Raises InputError: the alphabet lacks a character of it, it is not UTF-8 where it has to be, or it is too long.
        """
        if self.kind == "bytes":
            symbols = np.frombuffer(self._bytes(raw), dtype=np.uint8)
        elif self.kind == "chars":
            symbols = self._characters(self._string(raw))
        else:
            symbols = self._tokens(self._string(raw))
        segment = ragged_segment(self.name, torch.from_numpy(symbols.astype(np.int64)), self.unit_symbols)
        if self.max_units is not None and segment.n_units > self.max_units:
            raise InputError(
                f"{self.name}: the text takes {segment.n_units} units, at most {self.max_units} are allowed; "
                f"shorten it or raise {self.name}.max_units"
            )
        return segment

    def decode(self, segment: Segment) -> str:
        """The text; bytes that are not UTF-8 (a character cut in two) come as surrogate escapes."""
        symbols = segment.flat().numpy()
        if self.kind == "chars":
            return _string_of(_alphabet(self._fitted())[symbols])
        if self.kind == "bytes":
            content = symbols.astype(np.uint8).tobytes()
        else:
            tokens = _bpe(self._fitted()).tokens
            content = b"".join(tokens[i] for i in symbols)
        return content.decode("utf-8", "surrogateescape")

    def parse(self, text: str) -> str:
        """The text itself, not a path."""
        return text

    def load(self, path: Path) -> str:
        """Read a file: any bytes for `kind: bytes`, UTF-8 otherwise. Line ends stay as they are.

        Raises InputError: it is empty, or not UTF-8.
        """
        content = read_bytes(path)
        if self.kind == "bytes":
            return content.decode("utf-8", "surrogateescape")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start}; convert it "
                f"to UTF-8, or set {self.name}.kind: bytes, which takes any file"
            ) from None

    def save(self, raw: str | bytes, path: Path) -> None:
        """Write the exact bytes of a text."""
        path.write_bytes(self._bytes(raw))

    # ---------------------------------------------------------------- fitting

    def fit(self, raws: Iterable[str | bytes]) -> Text:
        """The alphabet of the texts for `chars`, `vocab_size` tokens for `bpe`; the same texts always give the same."""
        if self.kind == "bytes" or self.tokenizer is not None:
            return self
        strings = (self._string(raw) for raw in raws)
        if self.kind == "bpe":
            return replace(self, tokenizer=_train_bpe(strings, self.vocab_size))
        alphabet = sorted({character for string in strings for character in set(string)})
        if not alphabet:
            raise InputError(
                f"{self.name}: the training text is empty, so there is no alphabet; name another --data.path"
            )
        return replace(self, tokenizer=json.dumps({"chars": "".join(alphabet)}))

    def files(self) -> dict[str, bytes]:
        return {} if self.tokenizer is None else {TOKENIZER_FILE: self.tokenizer.encode()}

    def with_files(self, files: Mapping[str, bytes]) -> Text:
        """Raises InputError: the file is missing or not one that `files` returned."""
        if self.kind == "bytes":
            return self
        if TOKENIZER_FILE not in files:
            raise InputError(f"{self.name}: {TOKENIZER_FILE} is missing, kind {self.kind} cannot be read without it")
        try:
            fitted = replace(self, tokenizer=files[TOKENIZER_FILE].decode())
            assert fitted.vocab > 0
        except InputError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exception
            raise InputError(
                f"{self.name}: {TOKENIZER_FILE} is not a {self.kind} tokenizer: {one_line(error)}; fetch it again"
            ) from error
        return fitted

    # --------------------------------------------------------------- symbols

    def symbol_bytes(self) -> list[bytes]:
        """The bytes of every symbol, in the alphabet's order; those of a text are the bytes of its symbols in a row."""
        if self.kind == "bytes":
            return [bytes([value]) for value in range(256)]
        if self.kind == "bpe":
            return list(_bpe(self._fitted()).tokens)
        return [chr(code_point).encode("utf-8") for code_point in _alphabet(self._fitted())]

    def _fitted(self) -> str:
        if self.tokenizer is None:
            what = "alphabet" if self.kind == "chars" else "tokenizer"
            raise InputError(f"{self.name}: kind {self.kind} has no {what} yet; training fits it, a bundle contains it")
        return self.tokenizer

    def _bytes(self, raw: str | bytes) -> bytes:
        if isinstance(raw, bytes):
            return raw
        try:
            return raw.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.name}: {raw[error.start]!r} at position {error.start} is half a surrogate pair, which no text "
                "file can hold; remove it"
            ) from None

    def _string(self, raw: str | bytes) -> str:
        """A text of whole characters."""
        string = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
        try:
            string.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.name}: {string[error.start]!r} at position {error.start} is not a character but a stray byte "
                f"or half a surrogate pair; remove it, or set {self.name}.kind: bytes"
            ) from None
        return string

    def _characters(self, string: str) -> np.ndarray:
        """(length,) index of every character in the sorted alphabet."""
        alphabet = _alphabet(self._fitted())
        codes = _code_points(string)
        symbols = np.searchsorted(alphabet, codes).clip(max=len(alphabet) - 1)
        unknown = np.flatnonzero(alphabet[symbols] != codes)
        if unknown.size:
            position = int(unknown[0])
            raise InputError(
                f"{self.name}: the character {string[position]!r} at position {position} is not among the "
                f"{len(alphabet)} of the training text; replace it, or use {self.name}.kind: bytes"
            )
        return symbols

    def _tokens(self, string: str) -> np.ndarray:
        """(length,) token numbers."""
        bpe = _bpe(self._fitted())
        # in pieces, because the library takes several times as long, and much memory, for one long string
        encodings = bpe.tokenizer.encode_batch_fast(_pieces(string))
        symbols = np.array([i for encoding in encodings for i in encoding.ids], dtype=np.int64)
        if b"".join(bpe.tokens[i] for i in symbols) != string.encode("utf-8"):
            raise InputError(
                f"{self.name}: {TOKENIZER_FILE} changes the text, so its bits would be those of another; "
                "use a byte-level tokenizer without normaliser and prefix space"
            )
        return symbols


# ---------------------------------------------------------------- characters


def _code_points(string: str) -> np.ndarray:
    return np.frombuffer(string.encode("utf-32-le"), dtype="<u4")


def _string_of(code_points: np.ndarray) -> str:
    return code_points.astype("<u4").tobytes().decode("utf-32-le")


@lru_cache(maxsize=8)
def _alphabet(tokenizer: str) -> np.ndarray:
    """(V,) the code points of the alphabet, ascending."""
    alphabet = _code_points(json.loads(tokenizer)["chars"])
    if not len(alphabet) or (np.diff(alphabet.astype(np.int64)) <= 0).any():
        raise ValueError("its characters are not in ascending order")
    return alphabet


# ----------------------------------------------------------------------- BPE


@dataclass(frozen=True)
class _Bpe:
    """A parsed tokenizer.

    Attributes:
        tokenizer: the library's object.
        tokens: the bytes of every token.
        lengths: (V,) how many bytes those are.
    """

    tokenizer: Tokenizer
    tokens: list[bytes]
    lengths: np.ndarray


@lru_cache(maxsize=8)
def _bpe(tokenizer: str) -> _Bpe:
    parsed = _tokenizers().Tokenizer.from_str(tokenizer)
    byte_of = _byte_of_character()
    pieces = [parsed.id_to_token(i) for i in range(parsed.get_vocab_size())]
    if any(piece is None or not byte_of.keys() >= set(piece) for piece in pieces):
        raise ValueError("its tokens are not byte-level")
    tokens = [bytes(byte_of[character] for character in piece) for piece in pieces]
    return _Bpe(parsed, tokens, np.array([len(token) for token in tokens], dtype=np.int64))


def _pieces(string: str) -> list[str]:
    """The string cut where its tokens are cut anyway."""
    cuts = [0]
    while cut := TOKEN_BORDER.search(string, cuts[-1] + PIECE):
        cuts.append(cut.end())
    return [string[start:end] for start, end in pairwise([*cuts, len(string)])]


def _train_bpe(strings: Iterable[str], vocab_size: int) -> str:
    """Byte-level BPE that can spell every string, as the JSON of the tokenizers library."""
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(strings, trainer)
    return tokenizer.to_str()


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable character of every byte: itself where it prints, otherwise the next unused from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(f"kind: bpe needs the tokenizers package ({error}); pip install armm[text]") from error
    return tokenizers
