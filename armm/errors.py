"""The one exception that means: the user can mend this."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A mistake in what the user gave: a file, a recipe key, a value.

    Its message is one line that names the thing, says what was expected and how to mend it. The command line
    prints it and exits with code 2; anything else that escapes is a bug of ours and keeps its traceback.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word most like `word`, or an empty string."""
    matches = get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
