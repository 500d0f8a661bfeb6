"""`armm generate --stream`: what is drawn, on standard output as soon as it can be shown."""

from __future__ import annotations

import sys

from armm.errors import InputError
from armm.generation import Piece
from armm.model import AutoregressiveModel


class Live:
    """Text as it is; into a pipe, of models that make sound, 16-bit samples for a player.

    Raises InputError: the model makes neither, or a terminal would get sound.
    """

    def __init__(self, model: AutoregressiveModel) -> None:
        self.texts = {name for name, own in model.modalities.items() if own.symbol_bytes() is not None}
        sounds = {name: own for name, own in model.modalities.items() if own.sound_rate}
        self.sounds = {} if sys.stdout.isatty() else sounds
        if not self.texts and not sounds:
            raise InputError(f"--stream shows text and sound, this model makes {', '.join(model.modalities)}")
        if not self.texts and not self.sounds:
            rate = next(iter(sounds.values())).sound_rate
            raise InputError(f"--stream gives sound to a player: add | aplay -t raw -f S16_LE -r {rate}")

    def show(self, piece: Piece) -> None:
        if piece.data is None:
            return
        if piece.modality in self.sounds:
            sys.stdout.buffer.write(self.sounds[piece.modality].pcm(piece.data))
        elif piece.modality in self.texts and not self.sounds:
            sys.stdout.write(piece.data)
        sys.stdout.flush()

    def end(self) -> None:
        """A sample is finished."""
        if not self.sounds:
            print(flush=True)
