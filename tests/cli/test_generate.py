"""`armm generate`: every power of the library, samples that are kept, and one line for every mistake."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_files import Run, everything_in, png_bytes
from PIL import Image as Pillow
from tiny_modalities import hash_parameters

from armm import bundle
from armm.backbones import Transformer
from armm.cli import main
from armm.commands import generate as generate_command
from armm.commands import origin as origins
from armm.generation import (
    Allowed,
    Banned,
    Filter,
    FrequencyPenalty,
    LogitBias,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Sample,
    Temperature,
    TopK,
    TopP,
    Typical,
    generate,
)
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.model import AutoregressiveModel

PIXELS = CausalConv(channels=4, dilations=(1, 2))
SMALL = Image(size=(4, 6), levels=4, head=PIXELS)
MODELS: dict[str, tuple[dict[str, Modality], bool]] = {
    "text": ({"text": Text(kind="bytes")}, False),
    "image": ({"image": SMALL}, False),
    "rgb": ({"image": Image(size=(4, 4), channels=3, levels=8, head=PIXELS)}, False),
    "audio": ({"audio": Audio(frame=8, max_units=6, head=CausalConv(channels=4, dilations=(1, 4)))}, False),
    "class": ({"label": Label(names=("cats", "dogs")), "image": SMALL}, False),
    "free": ({"text": Text(kind="bytes", ended=True, max_units=4), "image": SMALL}, True),
}


def save_model(name: str, folder: Path, seed: int = 0) -> AutoregressiveModel:
    modalities, free = MODELS[name]
    backbone = Transformer(width=16, n_layers=1, n_heads=2)
    model = AutoregressiveModel(modalities, backbone, None if free else list(modalities), 40 if free else None)
    hash_parameters(model, 3.0, seed)
    bundle.save(model.eval(), folder)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name in MODELS:
        save_model(name, place / name)
    save_model("text", place / "draft", seed=1)
    return place


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples_in(folder: Path) -> dict[str, bytes]:
    """Without what stands beside them."""
    return {name: content for name, content in written(folder).items() if not name.endswith((".json", "grid.png"))}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Pillow.open(path))


# -------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        (["--temperature", "0.5"], [Temperature(0.5)]),
        (["--temperature", "0"], [Temperature(0)]),
        (["--temperature-of", "text=0.5"], [Temperature(0.5, "text")]),
        (["--top-k", "3"], [TopK(3)]),
        (["--top-p", "0.3"], [TopP(0.3)]),
        (["--min-p", "0.5"], [MinP(0.5)]),
        (["--typical", "0.2"], [Typical(0.2)]),
        (["--repetition-penalty", "4"], [RepetitionPenalty(4)]),
        (["--presence-penalty", "5"], [PresencePenalty(5)]),
        (["--frequency-penalty", "5"], [FrequencyPenalty(5)]),
        (["--allow", "97-110", "--allow", "text=100-122"], [Allowed(range(97, 111)), Allowed(range(100, 123), "text")]),
        (
            ["--bias", "97:3.5,98:-2", "--bias", "text=99:1e1"],
            [LogitBias({97: 3.5, 98: -2}), LogitBias({99: 10}, "text")],
        ),
        (["--ban", "0-31,127", "--ban", "text=200-255"], [Banned([*range(32), 127]), Banned(range(200, 256), "text")]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_filters_are_those_of_the_library(
    options: list[str], filters: list[Filter], models: Path, here: Path, run: Run
) -> None:
    """And each makes another sample than none does: an option that is read and dropped would not."""
    model = bundle.load(models / "text")
    plain, expected = (
        [sample.decoded[0] for sample in generate(model, n=2, seed=3, max_symbols=30, filters=own, batch_size=2)]
        for own in ([], filters)
    )
    run("generate", models / "text", "--n", "2", "--seed", "3", "--max-symbols", "30", *options)
    found = [content.decode("utf-8", "surrogateescape") for content in samples_in(here / "samples").values()]
    assert found == expected != plain


def test_texts_end_before_a_stop_string(models: Path, here: Path, run: Run) -> None:
    """The file holds what the library's sample says, not the symbols that spell the stop string."""
    model = bundle.load(models / "text")
    (whole,) = generate(model, max_symbols=60)
    text = whole.decoded[0].encode("utf-8", "surrogateescape")
    stop = next(chr(byte) for byte in text[20:] if 32 < byte < 127)
    run("generate", models / "text", "--stop", "never there", "--stop", stop)
    found = samples_in(here / "samples")["0-0000.txt"]
    assert found == text[: text.index(stop.encode())]
    origin = origins.read(here / "samples/0-0000.txt")
    assert origin is not None and (origin.stop, origin.request.stop) == ("stop", ("never there", stop))


def test_texts_follow_a_grammar(models: Path, here: Path, run: Run) -> None:
    pytest.importorskip("llguidance")
    run("generate", models / "text", "--n", "3", "--regex", "[a-e]{3,6}!", "--prompt", "it is ")
    for content in samples_in(here / "samples").values():
        assert re.fullmatch(rb"it is [a-e]{3,6}!", content)
    schema = {"enum": ["yes", "no"]}
    (here / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    for number, given in enumerate((json.dumps(schema), "schema.json")):
        run("generate", models / "text", "--json-schema", given, "--ban", "9-32", "--out", f"{number}")
        assert json.loads(samples_in(here / f"{number}")["0-0000.txt"]) in ("yes", "no")
    assert written(here / "0") == written(here / "1")  # the schema itself is kept, wherever it came from
    grammar = 'start: "one" | "two" "!"~2'
    (here / "given.lark").write_text(grammar, encoding="utf-8")
    for number, given in enumerate((grammar, "given.lark")):
        run("generate", models / "text", "--lark", given, "--out", f"lark{number}")
        assert samples_in(here / f"lark{number}")["0-0000.txt"] in (b"one", b"two!!")
    assert written(here / "lark0") == written(here / "lark1")


def test_guidance_steers_away(models: Path, here: Path, run: Run) -> None:
    model = bundle.load(models / "class")
    cats, dogs = (model.modalities["label"].encode(name) for name in ("cats", "dogs"))
    (expected,) = generate(model, [[cats]], guidance=4.0, without=[dogs])
    (plain,) = generate(model, [[cats]])
    options = ("--guidance", "4", "--without", "label=dogs")
    run("generate", models / "class", "--prompt", "label=cats", *options)
    found = SMALL.load(here / "samples/0-0000.png")
    np.testing.assert_array_equal(found, expected.decoded[1])
    assert (found != plain.decoded[1]).any()
    (untold,) = generate(model, [[cats]], guidance=4.0)
    run("generate", models / "class", "--prompt", "label=cats", "--guidance", "4", "--out", "untold")
    np.testing.assert_array_equal(SMALL.load(here / "untold/0-0000.png"), untold.decoded[1])


# -------------------------------------------------------------- what it begins with


def test_prompts_of_a_file(models: Path, here: Path, run: Run) -> None:
    """Lines of any length, word for word; each sample is that of its prompt alone, and names carry both numbers."""
    lines = ["hello", "text=x = y", "the longest of them all", "\u00fc\\n"]
    (here / "prompts.txt").write_bytes("\r\n".join(lines).encode())
    out = run("generate", models / "text", "--prompts", "prompts.txt", "--n", "2", "--max-symbols", "7")
    found = samples_in(here / "samples")
    assert set(found) == {f"0-{prompt:04d}-{index:04d}.txt" for prompt in range(4) for index in range(2)}
    assert "8 samples, 56 symbols" in out
    model = bundle.load(models / "text")
    for prompt, line in enumerate(lines):
        for sample in generate(model, [[model.modalities["text"].encode(line)]], n=2, max_symbols=7):
            content = found[f"0-{prompt:04d}-{sample.index:04d}.txt"]
            assert (
                content == sample.decoded[0].encode("utf-8", "surrogateescape") and len(content.decode("latin-1")) > 7
            )
            assert content.startswith(line.encode())
    (here / "one.txt").write_bytes(b"alone\n")
    run("generate", models / "text", "--prompts", "one.txt", "--max-symbols", "3", "--out", "one")
    assert set(samples_in(here / "one")) == {"0-0000-0000.txt"}


@pytest.mark.parametrize("name", ["image", "rgb"])
def test_black_pixels_of_a_mask_are_sampled(name: str, models: Path, here: Path, run: Run) -> None:
    """What is white, or merely not black, is kept to the last bit; the rest is what the model makes of it."""
    modality = bundle.load(models / name).modalities["image"]
    assert isinstance(modality, Image) and modality.size is not None
    shape = (*modality.size, 3) if name == "rgb" else modality.size
    given = np.random.default_rng(1).integers(0, modality.levels, shape).astype(np.uint8)
    modality.save(given, here / "given.png")
    mask = np.zeros(modality.size, dtype=np.uint8)
    mask[1], mask[3, ::2] = 255, 1
    (here / "mask.png").write_bytes(png_bytes(mask))
    run("generate", models / name, "--prompt", "given.png", "--mask", "mask.png", "--n", "6")
    found = np.stack([modality.load(here / f"samples/0-{index:04d}.png") for index in range(6)])
    keep = mask > 0
    assert (found[:, keep] == given[keep]).all()
    assert (found[:, ~keep] != given[~keep]).any() and len({own.tobytes() for own in found}) > 1
    # pixels that come after a kept one are drawn given it: the library's own samples
    (sample,) = generate(bundle.load(models / name), [[modality.encode_masked(given, keep)]], samples=[(0, 4)])
    np.testing.assert_array_equal(found[4], sample.decoded[0])


# ----------------------------------------------------------------- how it is computed


@pytest.mark.parametrize("proposer", ["ngram", "fixed-point", "unit-above", "hold", "draft"])
def test_whoever_guesses_files_are_the_same(proposer: str, models: Path, here: Path, run: Run) -> None:
    """To the last byte, provenance too; and so for any batch size."""
    name = "text" if proposer in ("ngram", "draft") else "image"
    who = f"draft:{models / 'draft'}" if proposer == "draft" else proposer
    options = ("--n", "3", "--max-symbols", "24")
    run("generate", models / name, *options, "--out", "plain")
    run("generate", models / name, *options, "--out", "guessed", "--proposer", who, "--batch-size", "2")
    assert written(here / "plain") == written(here / "guessed") and len(samples_in(here / "plain")) == 3


def test_quantised_weights(models: Path, here: Path, run: Run) -> None:
    """Other samples than those of the float model, the ones that the quantised model draws; the file says so."""
    run("generate", models / "text", "--max-symbols", "40", "--weights", "int4")
    (expected,) = generate(bundle.load(models / "text", weights="int4"), max_symbols=40)
    (plain,) = generate(bundle.load(models / "text"), max_symbols=40)
    content = samples_in(here / "samples")["0-0000.txt"].decode("utf-8", "surrogateescape")
    assert content == expected.decoded[0] != plain.decoded[0]
    origin = origins.read(here / "samples/0-0000.txt")
    assert origin is not None and origin.request.weights == "int4"


def test_the_last_line_says_whether_it_is_exact(models: Path, here: Path, run: Run) -> None:
    assert ", exact, in samples" in run("generate", models / "image").splitlines()[-1]
    options = ("--max-symbols", "24", "--approximate", "--out", "other")
    last = run("generate", models / "text", *options).splitlines()[-1]
    assert re.fullmatch(r"1 sample, 24 symbols in [\d.]+ s \([\d,]+ a second\), approximate, in other", last)


def test_a_terminal_shows_how_far_it_is(
    models: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that is written over again and wiped at the end; nothing at all where it is no terminal."""
    assert main(["generate", str(models / "image"), "--n", "4"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main(["generate", str(models / "image"), "--n", "4", "--seed", "1"]) == 0
    shown = terminal.getvalue()
    assert "\n" not in shown and "4 of 4 samples, " in shown and "symbols/s" in shown and shown.endswith("\r\x1b[K")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# ---------------------------------------------------------------------------- kept


@pytest.mark.parametrize("name", ["text", "image", "audio", "free"])
def test_the_same_command_makes_what_is_missing(name: str, models: Path, here: Path, run: Run) -> None:
    """Files that are there are not even written again; what is shown is that of all samples."""
    options = ("generate", models / name, "--n", "5", "--max-symbols", "40")
    options += ("--plan", "text,image") if name == "free" else ()
    first = run(*options)
    whole = written(here / "samples")
    lost = [path for path in (here / "samples").iterdir() if "-0003" in path.name or "-0001" in path.name]
    for path in lost:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in (here / "samples").iterdir() if "grid" not in path.name}
    again = run(*options)
    assert lost and written(here / "samples") == whole
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert re.search(r"5 samples \(kept \d, made \d\), ", again) and "kept 3, made 2" in again
    assert first.splitlines()[:-1] == again.splitlines()[:-1]
    assert "kept 5, made 0" in run(*options)


def test_samples_of_something_else_are_written_over(models: Path, here: Path, run: Run) -> None:
    """Another setting, another model at the same place, a damaged origin, or a text whose own was lost."""
    model = here / "model"
    save_model("text", model)
    options = ("generate", model, "--n", "2", "--max-symbols", "9")
    run(*options)
    assert "kept" not in run(*options, "--temperature", "0.9")
    assert "kept" not in run(*options)
    save_model("text", model, seed=1)
    assert "kept" not in run(*options)
    (here / "samples/0-0001.txt.json").write_text("{", encoding="utf-8")
    assert "kept 1, made 1" in run(*options)
    (here / "samples/0-0001.txt.json").unlink()
    assert "kept 1, made 1" in run(*options) and "kept 2, made 0" in run(*options)
    assert "kept" not in run(*options, "--prompt", "a")


def test_a_sample_stopped_between_its_two_files_is_no_sample(
    models: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of new settings beside the origin of old ones would be kept for theirs."""
    options = ["generate", str(models / "text"), "--max-symbols", "9"]
    run(*options)
    with monkeypatch.context() as patched:
        patched.setattr(origins, "_write_text", stop)
        assert main([*options, "--seed", "0", "--temperature", "0.5"]) == 130
    assert everything_in(here / "samples") == {"0-0000.txt"}
    assert "kept" not in run(*options)


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
    ],
    ids=["cpu", "cuda", "python"],
)
def test_no_memory_left_is_one_line(
    error: Exception, models: Path, here: Path, run: Run, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to lower, and finished samples stay: with less at once the same command makes the others."""
    with monkeypatch.context() as patched:
        patched.setattr(generate_command, "draw", failing(generate_command.draw, 2, error))
        options = ["generate", models / "image", "--n", "4"]
        refused([*options, "--batch-size", "1"], "out of memory", "2 of 4 samples", "--batch-size", "--max-symbols")
    assert set(written(here / "samples")) == {"0-0000.png", "0-0001.png"}
    assert "kept 2, made 2" in run(*options)


def test_other_errors_are_not_taken_for_missing_memory(
    models: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_command, "draw", failing(generate_command.draw, 1, RuntimeError("a bug of ours")))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        main(["generate", str(models / "image")])


def failing(draw: Callable[..., Iterator[Any]], after: int, error: Exception) -> Callable[..., Iterator[Any]]:
    """What draws so many samples and then fails."""

    def call(*arguments: Any) -> Iterator[Any]:
        n_samples = 0
        for event in draw(*arguments):
            yield event
            n_samples += isinstance(event, Sample)
            if n_samples == after:
                raise error

    return call


# ---------------------------------------------------------------------- one line each


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("text", ["--min-p", "2"], ["--min-p", "is 2.0"]),
        ("text", ["--typical", "0"], ["--typical", "is 0.0"]),
        ("text", ["--repetition-penalty", "-1"], ["--repetition-penalty", "is -1.0"]),
        ("text", ["--presence-penalty", "nan"], ["--presence-penalty", "is nan"]),
        ("text", ["--temperature-of", "txt=0.5"], ["--temperature-of txt=0.5", "'text'"]),
        ("text", ["--temperature-of", "text"], ["--temperature-of text", "text=0.9"]),
        ("text", ["--temperature-of", "text=-1"], ["--temperature-of", "is -1.0"]),
        ("text", ["--temperature-of", "text=1", "--temperature", "2"], ["Temperature and Temperature"]),
        ("text", ["--ban", "a"], ["--ban a", "10,13"]),
        ("text", ["--allow", "a"], ["--allow a", "10,13"]),
        ("text", ["--allow", "text=300"], ["--allow text=300", "no symbol 300"]),
        ("text", ["--bias", "10"], ["--bias 10", "10:-2.5"]),
        ("text", ["--bias", "10:1.2.3"], ["--bias 10:1.2.3", "10:-2.5"]),
        ("text", ["--bias", "300:1"], ["no symbol 300"]),
        ("text", ["--bias", "10:1,10:2"], ["--bias", "twice"]),
        ("text", ["--lark", "nowhere.lark"], ["--lark nowhere.lark", "name a file"]),
        ("text", ["--ban", "9-3"], ["--ban 9-3"]),
        ("text", ["--ban", "0-999999999"], ["--ban", "symbol 999999999", "0 to 255"]),
        ("text", ["--ban", "txt=3"], ["--ban txt=3", "'text'"]),
        ("text", ["--ban", "0-255"], ["leaves no symbol"]),
        ("text", ["--stop", ""], ["stop", "empty"]),
        ("text", ["--regex", "(", "--max-symbols", "5"], ["--regex", "'('"]),
        ("text", ["--regex", "a", "--json-schema", "{}"], ["Regex and JsonSchema"]),
        ("text", ["--regex", "[0-9]{3}", "--ban", "48-57"], ["leaves no symbol"]),
        ("text", ["--json-schema", "nowhere.json"], ["--json-schema nowhere.json"]),
        ("text", ["--json-schema", "{"], ["--json-schema", "not JSON"]),
        ("text", ["--prompts", "nowhere.txt"], ["--prompts nowhere.txt", "No such file"]),
        ("text", ["--prompts", "gap.txt"], ["gap.txt", "line 2 is empty"]),
        ("text", ["--prompts", "empty.txt"], ["empty.txt is empty"]),
        ("text", ["--prompts", "lines.txt", "--mask", "mask.png"], ["--mask", "--prompt"]),
        ("text", ["--prompt", "a", "--mask", "mask.png"], ["--mask is for images", "'text'"]),
        ("text", ["--proposer", "ngrams"], ["--proposer", "'ngram'"]),
        ("text", ["--proposer", "draft:nowhere"], ["draft:nowhere", "does not exist"]),
        ("text", ["--proposer", "draft:IMAGE"], ["draft:", "another vocabulary"]),
        ("text", ["--weights", "int3"], ["weights is 'int3'", "int8"]),
        ("text", ["--guidance", "-1"], ["guidance is -1.0"]),
        ("text", ["--without", "a"], ["guidance"]),
        ("image", ["--stop", "a"], ["has none", "image"]),
        ("image", ["--regex", "a"], ["--regex is for texts", "image"]),
        ("image", ["--json-schema", "{}"], ["--json-schema is for texts", "image"]),
        ("image", ["--prompts", "lines.txt"], ["--prompts is for texts", "image"]),
        ("image", ["--mask", "mask.png"], ["--mask", "--prompt"]),
        ("image", ["--prompt", "whole.png", "--mask", "nowhere.png"], ["--mask nowhere.png", "No such file"]),
        ("image", ["--prompt", "whole.png", "--mask", "lines.txt"], ["--mask lines.txt", "picture"]),
        ("image", ["--prompt", "whole.png", "--mask", "small.png"], ["--mask small.png", "4x5", "4x6"]),
        ("image", ["--prompt", "whole.png", "--mask", "white.png"], ["--mask white.png", "keeps every pixel"]),
        ("image", ["--prompt", "small.png", "--mask", "mask.png"], ["small.png", "4x5", "4x6"]),
        ("class", ["--prompt", "label=cats", "--guidance", "3", "--without", "label=cows"], ["--without", "cows"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_mistakes_are_one_line(
    model: str, options: list[str], words: list[str], models: Path, here: Path, refused: Run
) -> None:
    """And nothing is written."""
    if {"--regex", "--json-schema"} & set(options):
        pytest.importorskip("llguidance")
    for name, own in {"mask": np.eye(4, 6), "small": np.zeros((4, 5)), "white": np.ones((4, 6))}.items():
        (here / f"{name}.png").write_bytes(png_bytes(own.astype(np.uint8) * 255))
    (here / "whole.png").write_bytes(png_bytes(np.zeros((4, 6), dtype=np.uint8)))
    for name, text in {"lines": "a\nb\n", "gap": "a\n\nb\n", "empty": ""}.items():
        (here / f"{name}.txt").write_text(text, encoding="utf-8")
    before = everything_in(here)
    refused(["generate", models / model, *(o.replace("IMAGE", str(models / "image")) for o in options)], *words)
    assert everything_in(here) == before
