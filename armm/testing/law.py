"""What a broken law says."""

from __future__ import annotations


class LawBroken(AssertionError):
    """A law of the library does not hold.

    Args:
        law: its name: `round trip`, `normalised`, `causal`, `two views agree`, `same seed, same sample` or `the sampler
            samples`.
        where: what was found, and at which place.
    """

    def __init__(self, law: str, where: str) -> None:
        super().__init__(f"{law}: {where}")
        self.law, self.where = law, where
