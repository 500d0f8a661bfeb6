"""Built-in audio: notes and sung vowels, made by `data/synth.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from armm.datasets.builtin import builtin_folder, load_script
from armm.datasets.files import reader
from armm.datasets.folder import own_data
from armm.datasets.source import Item, ListOfItems, OnError, Source, Splits
from armm.errors import InputError
from armm.modalities.audio import Audio
from armm.modality import Modality


@dataclass(frozen=True)
class Synth(Source):
    """Built in: notes of six instruments and sung vowels, made anew each time by `data/synth.py`, the same every time.

    Clip number i is for the test where i ends in 9, for validation where it ends in 8, and else to train on. Items have
    a `label`: the instrument or the vowel. With a path: your own data.

    Args:
        clips: how many, each of half a second to a second.
        seed: another seed makes other clips.
    """

    clips: int = 300
    seed: int = 0

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is not None:
            return own_data("", modalities, path, on_error)
        name, audio = reader(modalities, ".wav")
        if not isinstance(audio, Audio):
            raise InputError(f"{name}: the synthesiser needs the audio modality armm.Audio, not {type(audio).__name__}")
        if self.clips < 10:
            raise InputError(f"data.source.clips is {self.clips}; at least 10 make one test and one validation clip")
        if self.seed < 0:
            raise InputError(f"data.source.seed is {self.seed}; expected 0 or more")
        make_clip = load_script(builtin_folder("data") / "synth.py").make_clip
        splits: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
        for index in range(self.clips):
            label, waveform = make_clip(index, audio.sample_rate, self.seed)
            splits[{9: 2, 8: 1}.get(index % 10, 0)].append({name: waveform, "label": label})
        train, val, test = (ListOfItems(split) for split in splits)
        return Splits(train, val, test)
