"""`armm generate --stream`, shown as soon as it can be; `--best-of` and `--beam`, the most probable instead."""

from __future__ import annotations

import io
import sys
import wave
from pathlib import Path

import pytest
from own_files import Run
from tiny_modalities import hash_parameters

from armm import bundle
from armm.backbones import Transformer
from armm.cli import main
from armm.generation import beam_search, best_of, generate
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Text
from armm.modality import Modality
from armm.model import AutoregressiveModel

MODELS: dict[str, Modality] = {
    "text": Text(kind="bytes"),
    "words": Text(kind="bytes", ended=True, max_units=6),
    "audio": Audio(frame=8, max_units=6, head=CausalConv(channels=4, dilations=(1, 4))),
    "image": Image(size=(4, 6), levels=4, head=CausalConv(channels=4, dilations=(1, 2))),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name, modality in MODELS.items():
        own = "text" if name == "words" else name
        model = AutoregressiveModel({own: modality}, Transformer(width=16, n_layers=1, n_heads=2), [own])
        hash_parameters(model, 3.0, 5 if name == "audio" else 0)  # clips of more than a frame
        bundle.save(model.eval(), place / name)
    return place


def texts_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.txt")}


class Pipe(io.TextIOWrapper):
    """Standard output; notes how many samples were in files whenever something is shown."""

    def __init__(self, folder: Path) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="surrogateescape", newline="\n")
        self.folder, self.n_files = folder, []

    def flush(self) -> None:
        super().flush()
        self.n_files.append(len(list(self.folder.glob("0-????.*[tv]"))))

    def content(self) -> bytes:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


class Terminal(Pipe):
    def isatty(self) -> bool:
        return True


def test_texts_are_shown_while_they_are_drawn(
    models: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, whole in the end, and nothing else among them; the files are those of the plain command."""
    options = ["generate", str(models / "text"), "--n", "3", "--max-symbols", "20"]
    monkeypatch.setattr(sys, "stdout", pipe := Pipe(here / "samples"))
    assert main([*options, "--stream"]) == 0
    model = bundle.load(models / "text")
    texts = [sample.decoded[0] for sample in generate(model, n=3, max_symbols=20)]
    shown = "".join(text + "\n" for text in texts)
    assert pipe.content() == shown.encode("utf-8", "backslashreplace"), "what is no UTF-8 as escapes"
    assert pipe.n_files.count(0) >= 10, "the first text is shown before it is finished"
    assert "3 samples, 60 symbols" in capsys.readouterr().err
    files = [(here / f"samples/0-000{i}.txt").read_bytes() for i in range(3)]
    assert files == [text.encode("utf-8", "surrogateescape") for text in texts]
    assert main(options) == 0 and b"kept 3, made 0" in pipe.content()


def test_sound_goes_to_a_player_while_it_is_drawn(models: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples that the file has, in order, and not a word among them."""
    monkeypatch.setattr(sys, "stdout", pipe := Pipe(here / "samples"))
    assert main(["generate", str(models / "audio"), "--n", "8", "--stream"]) == 0
    frames = []
    for path in sorted((here / "samples").glob("*.wav")):
        with wave.open(str(path)) as file:
            frames.append(file.readframes(file.getnframes()))
    assert len(frames) == 8 and max(map(len, frames)) > 2 * 8, "some clip has more than a frame"
    assert pipe.content() == b"".join(frames)
    assert pipe.n_files[0] == 0


def test_what_cannot_be_shown_is_said(
    models: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(models / "image"), "--stream"]) == 2
    assert "this model makes image" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", Terminal(here))
    assert main(["generate", str(models / "audio"), "--stream"]) == 2
    assert "| aplay -t raw -f S16_LE -r 8000" in capsys.readouterr().err
    assert not (here / "samples").exists()


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_writes_the_most_probable(penalty: float, models: Path, here: Path, run: Run) -> None:
    """The library's, the best first; each can be made again by itself, and is kept by the same command."""
    model = bundle.load(models / "words")
    found = beam_search(model, width=5, n_best=3, length_penalty=penalty)
    options = ("generate", models / "words", "--n", "3", "--beam", "5", "--length-penalty", str(penalty))
    run(*options)
    files = [here / f"samples/0-000{rank}.txt" for rank in range(3)]
    texts = [sample.decoded[0].encode("utf-8", "surrogateescape") for sample in found]
    assert [path.read_bytes() for path in files] == texts and len(set(texts)) == 3
    assert all("identical" in run("reproduce", path) for path in files)
    assert "kept 3, made 0" in run(*options)
    assert "kept" not in run("generate", models / "words", "--n", "3")


def test_the_best_of_several_are_kept(models: Path, here: Path, run: Run) -> None:
    """By the library's own order, of every prompt; a second time nothing is drawn, and what is lost is found again."""
    (here / "lines.txt").write_text("it is\nit was\n", encoding="utf-8")
    model = bundle.load(models / "text")
    prompts = [[model.modalities["text"].encode(line)] for line in (b"it is", b"it was")]
    expected = {}
    for number, prompt in enumerate(prompts):
        for sample in best_of(generate(model, [prompt], n=5, max_symbols=20), 2):
            expected[f"0-{number:04d}-{sample.index:04d}.txt"] = sample.decoded[0].encode("utf-8", "surrogateescape")
    options = ("--prompts", "lines.txt", "--best-of", "5", "--n", "2", "--max-symbols", "20")
    run("generate", models / "text", *options)
    assert texts_in(here / "samples") == expected
    assert "kept 4, made 0" in run("generate", models / "text", *options)
    (here / "samples" / min(expected)).unlink()
    assert "kept 2, made 2" in run("generate", models / "text", *options)
    assert texts_in(here / "samples") == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--beam", "2", "--n", "3"], ["--beam 2", "--n asks for 3"]),
        (["--beam", "0"], ["--beam 0"]),
        (["--beam", "4", "--temperature", "0.5"], ["--temperature"]),
        (["--beam", "4", "--stop", "x"], ["--stop"]),
        (["--beam", "4", "--guidance", "2"], ["--guidance"]),
        (["--beam", "4", "--proposer", "ngram"], ["--proposer"]),
        (["--beam", "4", "--stream"], ["--stream", "--beam"]),
        (["--length-penalty", "1"], ["add --beam"]),
        (["--best-of", "2", "--n", "3"], ["--best-of 2", "--n 3"]),
        (["--best-of", "2", "--stream"], ["--best-of", "--stream"]),
        (["--best-of", "2", "--beam", "2"], ["--best-of", "--beam"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_a_search_does_not_do_is_said(
    options: list[str], words: list[str], models: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(models / "words"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert not (here / "samples").exists()
