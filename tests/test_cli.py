"""The command line, from a user's own files to samples and bits, and every mistake in one line."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow
from tiny_modalities import hash_parameters

from armm import bundle
from armm.backbones import Transformer
from armm.cli import COMMANDS, main
from armm.commands import generate as generate_command
from armm.commands.score import score
from armm.modalities import Audio, Image, Label, Text
from armm.modalities.audio import mu_law_encode
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.windows import windows

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = "the cat sat on the mat, and that was that; the other cat sat on the other mat\n" * 40
SMALL_BACKBONE = "--model.backbone.init_args.width=16", "--model.backbone.init_args.n_layers=1"


# -------------------------------------------------------------------------- own files


def png_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def wav_bytes(n: int, rate: int = 8000, tone: float = 0.05) -> bytes:
    samples = (20000 * np.sin(np.arange(n) * tone)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def digit(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """An 8-bit picture of the 17 levels that the digits recipe has."""
    levels = np.random.default_rng(seed).integers(0, 17, (height, width))
    return np.rint(levels * 255 / 16).astype(np.uint8)


def write_texts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "one.txt").write_text(TEXT, encoding="utf-8")
    (folder / "two.txt").write_text(TEXT.upper() + TEXT, encoding="utf-8")
    return folder


def write_images(folder: Path) -> Path:
    """Two classes, by sub-folder."""
    for number in range(8):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png_bytes(digit(number)))
    return folder


def write_clips(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        (folder / f"{number}.wav").write_bytes(wav_bytes(300 + 150 * number, tone=0.02 * (1 + number)))
    return folder


# ----------------------------------------------------------------------------- running

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that succeeds; what it prints."""

    def call(*arguments: str | Path) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must refuse: one line that names the command and every given word, exit code 2."""

    def call(arguments: list[str | Path], *words: str) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert code == 2, (code, err)
        assert len(lines) == 1 and lines[0].startswith(f"armm {arguments[0]}: "), err
        assert "Traceback" not in err and all(str(word) in err for word in words), (err, words)
        return out

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, where runs/ and samples/ would appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small trained runs, made by `armm train` on files of the user's own: texts, images in two folders, clips."""
    place = tmp_path_factory.mktemp("trained")
    data = {
        "text": (write_texts(place / "texts"), "text/shakespeare_char", *SMALL_BACKBONE, "--model.context=64"),
        "image": (write_images(place / "images"), "image/digits"),
        "class": (place / "images", "image/digits_class", "--model.modalities.label.init_args.n_classes=0"),
        "audio": (write_clips(place / "clips"), "audio/fsdd", *SMALL_BACKBONE),
    }
    for name, (folder, recipe, *options) in data.items():
        arguments = [f"--data.path={folder}", f"--run_dir={place / name}", "--data.crop=32", "--n_samples=0"]
        if name in ("image", "class"):
            arguments.remove("--data.crop=32")
        assert main(["train", recipe, "--debug", *options, *arguments]) == 0
    return place


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# ------------------------------------------------------------------------------- train


@pytest.mark.parametrize("name", ["text", "image", "class", "audio"])
def test_training_on_own_files_leaves_a_run(name: str, runs: Path) -> None:
    """Resolved config, curves, scores and a bundle; the keys of the scores are those of the documentation."""
    folder = runs / name
    found = {path.name.split(".")[0] if "tfevents" in path.name else path.name for path in folder.iterdir()}
    assert found == {"config.yaml", "events", "hparams.yaml", "metrics.csv", "metrics.json", "model"}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    unit = {"text": "char", "audio": "sample"}.get(name, "dim")
    modality = "image" if name == "class" else name
    assert metrics["test"][modality][f"bits_per_{unit}"] > 0 and "label" not in metrics["test"]
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["trainer"]["max_steps"] == 4 and config["run_dir"] == str(folder)


def test_sub_folders_are_labels(runs: Path) -> None:
    assert bundle.load(runs / "class").modalities["label"].names == ("cats", "dogs")  # type: ignore[attr-defined]


def test_a_single_file_is_data_too(here: Path, run: Run) -> None:
    (here / "mine.txt").write_text(TEXT, encoding="utf-8")
    run("train", "text/stdlib", "--debug", "--data.path=mine.txt", *SMALL_BACKBONE, "--n_samples=0")
    metrics = json.loads((here / "runs/stdlib/0/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["test"]["text"]) == {"bits_per_byte", "nats_per_token"}


def test_any_trainer_flag_and_any_recipe_key(here: Path, run: Run) -> None:
    """What is given on the command line is in the resolved configuration and has its effect; versions count up."""
    flags = {
        "trainer.max_steps": 3,
        "trainer.precision": "bf16-mixed",
        "trainer.accumulate_grad_batches": 2,
        "trainer.gradient_clip_val": 0.5,
        "trainer.log_every_n_steps": 1,
        "trainer.detect_anomaly": True,
        "data.batch_size": 4,
        "data.num_workers": 1,
        "model.optimization.lr": 0.001,
        "model.backbone.init_args.n_layers": 1,
        "model.modalities.image.init_args.head.init_args.dilations": [1, 2],
        "seed_everything": 7,
    }
    out = run("train", "image/digits", "--debug", *(f"--{key}={value}" for key, value in flags.items()))
    assert "3 steps" in out and "armm generate runs/digits/0" in out
    resolved = yaml.safe_load(Path("runs/digits/0/config.yaml").read_text(encoding="utf-8"))
    for key, value in flags.items():
        own = resolved
        for part in key.split("."):
            own = own[part]
        assert own == value, key
    metrics = json.loads(Path("runs/digits/0/metrics.json").read_text(encoding="utf-8"))
    assert (metrics["steps"], metrics["seed"], metrics["symbols_seen"]) == (3, 7, 3 * 2 * 4 * 64)
    assert metrics["recipe"] == "image/digits"
    run("train", "image/digits", "--debug", "--n_samples=0")
    assert everything_in(here / "runs/digits") >= {"0/model", "1/model"}


def test_a_run_can_be_made_again_from_its_config(here: Path, run: Run) -> None:
    """The resolved configuration is a recipe: the same scores, to the last bit."""
    run("train", "image/digits_class", "--debug", "--n_samples=0", "--run_dir=first", "--seed_everything=3")
    run("train", "first/config.yaml", "--run_dir=second")
    scores = [json.loads(Path(name, "metrics.json").read_text(encoding="utf-8")) for name in ("first", "second")]
    assert scores[0]["test"] == scores[1]["test"] and scores[0]["val"] == scores[1]["val"]


@pytest.mark.parametrize("arguments", [["--help"], [], *([name, "--help"] for name in COMMANDS)], ids=str)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of the program and of every command; of training also every key of a recipe and every flag of the Trainer."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert code == (0 if arguments else 2) and "usage: armm" in out and not err
    if arguments[:1] == ["train"]:
        for key in ("--trainer.max_steps", "--data.path", "--data.on_error", "--model.layout", "--run_dir"):
            assert key in out
        assert "documents per step" in out  # from our own docstrings
    if len(arguments) != 2:
        assert all(f"  {name}" in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("armm ")


# ---------------------------------------------------------------------------- generate


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_generate_continues_a_text(runs: Path, here: Path, run: Run) -> None:
    prompt = "the cat "
    out = run("generate", runs / "text", "--n", "3", "--prompt", prompt, "--max-symbols", "20")
    files = written(here / "samples")
    assert set(files) == {"0-0000.txt", "0-0001.txt", "0-0002.txt"}
    for content in files.values():
        text = content.decode()
        assert text.startswith(prompt) and len(text) == len(prompt) + 20 and text in out
    assert "3 samples, 60 symbols" in out


def test_generate_continues_the_top_of_an_image(runs: Path, here: Path, run: Run) -> None:
    """The given rows are kept to the last pixel."""
    top = digit(3, height=3)
    (here / "top.png").write_bytes(png_bytes(top))
    run("generate", runs / "image", "--n", "2", "--prompt", "top.png", "--out", "mine")
    for name in ("0-0000.png", "0-0001.png"):
        picture = np.asarray(Pillow.open(here / "mine" / name))
        assert picture.shape == (8, 8)
        np.testing.assert_array_equal(picture[:3], top)
    assert set(written(here / "mine")) == {"0-0000.png", "0-0001.png", "image-grid.png"}


def test_generate_continues_a_clip(runs: Path, here: Path, run: Run) -> None:
    """The given samples are kept to their mu-law codes, also where they end within a frame (32 samples)."""
    (here / "start.wav").write_bytes(wav_bytes(100))
    run("generate", runs / "audio", "--n", "2", "--prompt", "audio=start.wav", "--max-symbols", "70")
    audio = Audio()
    given = mu_law_encode(audio.load(here / "start.wav"), 256)
    for content in ("0-0000.wav", "0-0001.wav"):
        clip = audio.load(here / "samples" / content)
        assert len(clip) >= 100
        np.testing.assert_array_equal(mu_law_encode(clip, 256)[:100], given)


def test_generate_after_a_label(runs: Path, here: Path, run: Run) -> None:
    run("generate", runs / "class", "--n", "2", "--prompt", "label=cats")
    assert set(written(here / "samples")) == {"0-0000.png", "0-0001.png", "image-grid.png"}
    run("generate", runs / "class", "--prompt", "label=dogs", "--out", "two")
    assert set(written(here / "two")) == {"0-0000.png"}


def test_generate_takes_a_run_its_model_or_a_bundle(runs: Path, here: Path, run: Run) -> None:
    for number, place in enumerate((runs / "image", runs / "image" / "model")):
        run("generate", place, "--seed", "5", "--out", f"{number}")
    assert written(here / "0") == written(here / "1")


def test_generate_is_the_same_in_any_batch(runs: Path, here: Path, run: Run) -> None:
    """Seed and number say what a sample is; the batch size is a matter of speed."""
    options = ("--n", "5", "--seed", "9", "--temperature", "0.9", "--top-k", "10", "--top-p", "0.95")
    run("generate", runs / "image", *options, "--out", "one", "--batch-size", "1")
    run("generate", runs / "image", *options, "--out", "many", "--batch-size", "4")
    assert written(here / "one") == written(here / "many") and len(written(here / "one")) == 6
    run("generate", runs / "image", *options[2:], "--n", "5", "--seed", "10", "--out", "other")
    assert written(here / "one")["image-grid.png"] != written(here / "other")["image-grid.png"]


def test_generate_greedily_ignores_the_seed(runs: Path, here: Path, run: Run) -> None:
    for seed in ("1", "2"):
        run("generate", runs / "image", "--temperature", "0", "--seed", seed, "--out", seed)
    assert written(here / "1")["1-0000.png"] == written(here / "2")["2-0000.png"]


def test_generate_stops_long_texts_by_itself(runs: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text has no end of its own: a default length, not the whole context of a model that may be 8,192."""
    monkeypatch.setattr(generate_command, "DEFAULT_LENGTH", 12)
    run("generate", runs / "text")
    assert len(written(here / "samples")["0-0000.txt"]) == 12


def test_ctrl_c_keeps_finished_samples(
    runs: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are written stay, whole; exit code 130."""
    make = generate_command.generate

    def stopped(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, sample in enumerate(make(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield sample

    monkeypatch.setattr(generate_command, "generate", stopped)
    assert main(["generate", str(runs / "image"), "--n", "5"]) == 130
    out, err = capsys.readouterr()
    assert "2 of 5 samples are in samples" in out and err == "\narmm generate: stopped\n"
    assert set(written(here / "samples")) == {"0-0000.png", "0-0001.png"}


# ------------------------------------------------------------------------------- score


def test_score_is_the_models_own_log_probability(runs: Path, here: Path, run: Run) -> None:
    (here / "short.txt").write_text("the cat sat", encoding="utf-8")
    (result,) = [json.loads(line) for line in run("score", runs / "text", "short.txt", "--json").splitlines()]
    model = bundle.load(runs / "text")
    with torch.no_grad():
        nats = -float(model.stream_log_prob([model.modalities["text"].encode("the cat sat")]).sum())
    assert result["file"] == "short.txt" and result["structure_bits"] == 0
    assert result["bits"] == pytest.approx(nats / math.log(2))
    assert result["bits_per_char"] == pytest.approx(nats / math.log(2) / 11)
    assert result["nats_per_char"] == pytest.approx(nats / 11)


def test_score_long_files_in_windows(runs: Path, here: Path, run: Run) -> None:
    """A text of 200 characters under a context of 64: each once, whatever the window; a clip the same."""
    (here / "long.txt").write_text(TEXT[:200], encoding="utf-8")
    (here / "long.wav").write_bytes(wav_bytes(60_000))
    model = bundle.load(runs / "text")
    for window, size in (((), 64), (("--window", "20"), 20), (("--window", "5000"), 64)):
        result = json.loads(run("score", runs / "text", "long.txt", "--json", *window))
        whole = model.modalities["text"].encode(TEXT[:200])
        expected = 0.0
        with torch.no_grad():
            for first in range(0, 200 - size // 2, size // 2):
                document: Document = [whole.window(first, size)]
                nats = model.stream_log_prob(document)
                expected -= float(nats[size // 2 if first else 0 :].sum())
        assert result["bits"] == pytest.approx(expected / math.log(2), rel=1e-5)
    clip = json.loads(run("score", runs / "audio", "long.wav", "--json"))
    assert clip["bits_per_sample"] == pytest.approx(clip["bits"] / 60_000) and clip["structure_bits"] > 0


def test_score_counts_control_symbols_once() -> None:
    """A free document in windows: its beginnings with the first, its end with the last, as if it had not been cut."""
    backbone = Transformer(width=16, n_layers=1, n_heads=2, window=3)  # sees no further than half a window
    model = AutoregressiveModel({"text": Text(kind="bytes", ended=True), "label": Label(n_classes=3)}, backbone)
    hash_parameters(model, 3.0)
    document = [model.modalities["label"].encode(1).as_condition(), model.modalities["text"].encode(TEXT[:200])]
    whole, cut = score(model.eval(), document, 1000), score(model, document, 16)
    assert len(windows(document, model.grammar, 16)) > 20
    assert cut["structure_bits"] == pytest.approx(whole["structure_bits"], rel=1e-3) and whole["structure_bits"] > 1
    assert cut["bits"] == pytest.approx(whole["bits"], rel=1e-3)


def test_score_prints_a_line_per_file(runs: Path, here: Path, run: Run) -> None:
    for number in range(2):
        (here / f"{number}.png").write_bytes(png_bytes(digit(number)))
    lines = run("score", runs / "image", "0.png", "1.png").splitlines()
    assert [line.split(":")[0] for line in lines] == ["0.png", "1.png"]
    assert all("bits/dim" in line for line in lines) and lines[0][5:] != lines[1][5:]


def test_score_given_a_label(runs: Path, here: Path, run: Run, refused: Run) -> None:
    """The label itself is not scored, and a model of labels and images needs one."""
    (here / "a.png").write_bytes(png_bytes(digit(0)))
    cats = json.loads(run("score", runs / "class", "a.png", "--given", "label=cats", "--json"))
    model = bundle.load(runs / "class")
    document = [
        model.modalities["label"].encode("cats"),
        model.modalities["image"].encode(Image(size=(8, 8), levels=17).load(here / "a.png")),
    ]
    with torch.no_grad():
        nats = model.stream_log_prob(document)
    assert cats["bits"] == pytest.approx(-float(nats[1:].sum()) / math.log(2))
    refused(["score", runs / "class", "a.png"], "label, image", "--given NAME=VALUE")
    refused(["score", runs / "class", "a.png", "--given", "label=birds"], "birds", "cats, dogs")


def test_score_keeps_what_came_before_a_bad_file(runs: Path, here: Path, refused: Run) -> None:
    (here / "a.png").write_bytes(png_bytes(digit(0)))
    (here / "b.png").write_bytes(b"")
    out = refused(["score", runs / "image", "a.png", "b.png", "a.png"], "b.png")
    assert len(out.splitlines()) == 1 and out.startswith("a.png: ")


# ---------------------------------------------------------------- list, check-modality


def test_list_names_everything(runs: Path, here: Path, run: Run) -> None:
    out = run("list", "--runs", runs)
    for name in ("modalities:", "audio", "armm.modalities.image.Image", "recipes:", "image/digits_class", "runs:"):
        assert name in out
    assert f"{runs / 'text'}" in out and "bits_per_char" in out
    assert run("list", "runs").splitlines() == ["runs:", "  none"]
    assert "runs:" not in run("list", "recipes")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"test": [1]}', '{"test": {"image": {"bits_per_dim": null}}}'])
def test_list_survives_a_damaged_run(content: str, here: Path, run: Run) -> None:
    folder = here / "runs/digits/0"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(content, encoding="utf-8")
    assert "metrics.json cannot be read" in run("list", "runs")


@pytest.mark.parametrize("faults", [[], ["it leaks"]])
def test_check_modality_says_what_holds(
    faults: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 where a law is broken, so that a plug-in's own tests can run the command."""
    asked = []

    def check(path: str, init: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
        asked.append((path, init))
        yield "round trip", None
        yield from (("causal", fault) for fault in faults)

    monkeypatch.setattr("armm.testing.check_class_path", check)
    code = main(["check-modality", "my_pkg.Mine", "--init", '{"levels": 4}'])
    out = capsys.readouterr().out
    assert asked == [("my_pkg.Mine", {"levels": 4})] and code == len(faults)
    assert "ok     round trip" in out
    assert ("BROKEN causal: it leaks" in out and "1 laws broken" in out) if faults else "every law holds" in out


# ----------------------------------------------------------------- mistyped, misplaced

DIGITS = "image/digits"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["image/digitz"], ["image/digitz", "'image/digits'"]),
        (["recipes/image/mnist_binry.yaml"], ["mnist_binry", "'image/mnist_binary'"]),
        (["--trainer.max_steps", "3"], ["recipe comes before"]),
        ([DIGITS, "--trainer.max_stepz", "5"], ["--trainer.max_stepz", "'max_steps'"]),
        ([DIGITS, "--data.batch_sise=5"], ["--data.batch_sise", "'batch_size'"]),
        ([DIGITS, "--dta.batch_size", "5"], ["--dta.batch_size", "'data'"]),
        ([DIGITS, "--rundir", "x"], ["--rundir", "'run_dir'"]),
        ([DIGITS, "more"], ["'more'", "--key value"]),
        ([DIGITS, "--trainer.max_steps", "abc"], ["trainer.max_steps", "expected int", "abc"]),
        ([DIGITS, "--seed_everything", "x"], ["seed_everything", "x"]),
        ([DIGITS, "--trainer.precision", "7"], ["trainer.precision", "7"]),
        ([DIGITS, "--data.source", "armm.datasets.Digit"], ["data.source", "armm.datasets.Digit", "'Digits'"]),
        ([DIGITS, "--data.source", "Digitz"], ["data.source", "Digitz", "'Digits'"]),
        ([DIGITS, "--data.source", "nopackage.Digits"], ["nopackage.Digits", "no module"]),
        ([DIGITS, "--data.source", "armm.modalities.Image"], ["armm.modalities.Image is no Source"]),
        ([DIGITS, "--data.source.init_args.foo", "3"], ["armm.datasets.Digits takes no 'foo'"]),
        ([DIGITS, "--model.modalities.image.init_args.levelz", "3"], ["armm.modalities.Image", "'levels'"]),
        ([DIGITS, "--model.backbone.init_args.widht", "3"], ["Transformer takes no 'widht'", "'width'"]),
        ([DIGITS, "--model.backbone", "armm.backbones.Transformr"], ["Transformr", "'Transformer'"]),
        ([DIGITS, "--model.backbone.init_args.width=63"], ["width 63"]),
        ([DIGITS, "--model.layout", "[imge]"], ["imge", "'image'"]),
        ([DIGITS, "--model.context=3"], ["8 units", "context is 3"]),
        ([DIGITS, "--model.optimization.lr=-1"], ["lr must be greater than 0"]),
        ([DIGITS, "--data.path", "nowhere"], ["nowhere", "--data.path"]),
        ([DIGITS, "--data.path", "empty"], ["empty", ".png"]),
        (["text/shakespeare_char", "--data.path", "empty"], ["empty", ".txt"]),
        (["audio/fsdd", "--data.path", "empty"], ["empty", ".wav"]),
        ([DIGITS, "--data.batch_size=0"], ["data.batch_size is 0"]),
        ([DIGITS, "--data.seed=-1"], ["data.seed is -1"]),
        ([DIGITS, "--data.conditions=[image]"], ["data.conditions"]),
        ([DIGITS, "--n_samples=-1"], ["n_samples is -1"]),
        ([DIGITS, "--trainer.max_steps=-1"], ["trainer.max_steps"]),
        ([DIGITS, "--trainer.devices=0"], ["devices"]),
        ([DIGITS, "--trainer.strategy=nope"], ["nope"]),
        ([DIGITS, "--trainer.accelerator=abacus"], ["abacus"]),
        ([DIGITS, "--trainer.gradient_clip_algorithm=norms"], ["norms"]),
        ([DIGITS, "--trainer.check_val_every_n_epoch=1"], ["val_check_interval"]),
        ([DIGITS, "--seed_everything=-5"], ["-5"]),
        ([DIGITS, "--run_dir=file.txt"], ["file.txt", "name a folder"]),
        ([DIGITS, "--run_dir=file.txt/run"], ["file.txt/run"]),
        ([DIGITS, "--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["empty"], ["empty"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and "/" in value[0] else "",
)
def test_train_refuses(arguments: list[str], words: list[str], here: Path, refused: Run) -> None:
    """And leaves no run folder behind."""
    (here / "empty").mkdir()
    (here / "file.txt").write_text("x", encoding="utf-8")
    refused(["train", *arguments], *words)
    assert everything_in(here) == {"empty", "file.txt"}


RECIPE = """# Digits.
model:
  modalities:
    image:
      class_path: armm.modalities.Image
      init_args: {size: [8, 8], levels: 17, head: {class_path: armm.heads.CausalConv, init_args: {channels: 4}}}
  layout: [image]
data: {source: armm.datasets.Digits, batch_size: 4}
trainer: {max_steps: 2}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch_size", "batch_sise", ["data takes no 'batch_sise'", "'batch_size'"]),
        ("\ntrainer:", "\ntrainr:", ["no 'trainr'", "'trainer'"]),
        ("levels: 17", "levelz: 17", ["armm.modalities.Image takes no 'levelz'", "'levels'"]),
        ("channels: 4", "chanels: 4", ["armm.heads.CausalConv takes no 'chanels'", "'channels'"]),
        ("channels: 4", "channels: many", ["head.channels: expected int, found many"]),
        ("heads.CausalConv", "heads.CausalCov", ["armm.heads.CausalCov", "'CausalConv'"]),
        ("armm.datasets.Digits", "armm.dataset.Digits", ["armm.dataset.Digits", "'datasets'"]),
        ("size: [8, 8]", "size: [8]", ["size", "found [8]"]),
        ("layout: [image]", "layout: image", ["model.layout", "expected list[str]", "found image"]),
        ("class_path: armm.modalities.Image", "", ["expected a class_path"]),
        ("source: armm.datasets.Digits, ", "", ["data.source"]),
        ("data: {", "data: [", ["cannot be read as YAML"]),
        (RECIPE, "", ["no recipe"]),
        (RECIPE, "just words", ["no recipe"]),
        (RECIPE, "\x00\x01", ["cannot be read as YAML"]),
    ],
    ids=lambda value: value[:25].strip() if isinstance(value, str) else "",
)
def test_train_refuses_a_mistyped_recipe(old: str, new: str, words: list[str], here: Path, refused: Run) -> None:
    assert old in RECIPE
    (here / "mine.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    refused(["train", "mine.yaml"], "mine.yaml", *words)
    assert everything_in(here) == {"mine.yaml"}


def test_train_refuses_a_recipe_that_is_no_text(here: Path, refused: Run) -> None:
    (here / "mine.yaml").write_bytes(bytes(range(256)))
    refused(["train", "mine.yaml"], "mine.yaml", "cannot be read as YAML")


def test_train_takes_a_recipe_of_ones_own(here: Path, run: Run) -> None:
    """What the mistyped ones above are made from does train."""
    (here / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    run("train", "mine.yaml", "--trainer.limit_test_batches=1", "--n_samples=0")
    assert json.loads(Path("runs/mine/0/metrics.json").read_text(encoding="utf-8"))["recipe"] == "mine"


def test_a_class_of_ones_own_needs_no_package(here: Path, run: Run) -> None:
    """A modality in a file of the working directory: trained by its class path, and found again by the bundle."""
    own = """
from dataclasses import dataclass
from armm.modalities import Image

@dataclass(frozen=True)
class OwnDigits(Image):
    def encode(self, raw):
        return super().encode(raw[::-1].copy())
"""
    (here / "armm_own_file.py").write_text(own, encoding="utf-8")
    recipe = RECIPE.replace("armm.modalities.Image", "armm_own_file.OwnDigits")
    (here / "mine.yaml").write_text(recipe, encoding="utf-8")
    try:
        run("train", "mine.yaml", "--debug", "--n_samples=0")
        run("generate", "runs/mine")
    finally:
        sys.modules.pop("armm_own_file", None)
    assert (here / "samples/0-0000.png").is_file()


def test_train_does_not_write_over_a_run(runs: Path, refused: Run) -> None:
    before = everything_in(runs / "image")
    refused(["train", DIGITS, "--debug", f"--run_dir={runs / 'image'}"], str(runs / "image"), "already holds a run")
    assert everything_in(runs / "image") == before


def test_a_failed_start_empties_a_folder_that_was_empty(here: Path, refused: Run) -> None:
    (here / "mine").mkdir()
    refused(["train", DIGITS, "--run_dir=mine", "--trainer.check_val_every_n_epoch=1"], "val_check_interval")
    assert everything_in(here) == {"mine"}


def test_commands_refuse_unknown_options(here: Path, runs: Path, refused: Run) -> None:
    refused(["generate", runs / "image", "--temprature", "1"], "--temprature", "'--temperature'")
    refused(["generate", runs / "image", "--n", "many"], "--n", "many")
    refused(["generate"], "run")
    refused(["score", runs / "image"], "FILE")
    refused(["list", "recipez"], "recipez")
    refused(["check-modality", "x.Y", "--init", "[1]"], "--init")
    refused(["check-modality", "x.Y", "--init", "{"], "--init", "JSON")
    refused(["check-modality", "nopackage.Y"], "nopackage")
    assert everything_in(here) == set()


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", DIGITS]) == 2
    assert (
        capsys.readouterr().err == "armm: there is no command 'trian'; did you mean 'train'? (armm --help lists them)\n"
    )


# ---------------------------------------------------------------- generate and score: no


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("image", ["--n", "0"], ["n is 0"]),
        ("image", ["--n", "-1"], ["n is -1"]),
        ("image", ["--temperature", "-0.5"], ["temperature is -0.5"]),
        ("image", ["--temperature", "nan"], ["temperature is nan"]),
        ("image", ["--top-k", "0"], ["top_k is 0"]),
        ("image", ["--top-p", "1.5"], ["top_p is 1.5"]),
        ("image", ["--batch-size", "0"], ["batch_size is 0"]),
        ("image", ["--max-symbols", "0"], ["max_symbols is 0"]),
        ("image", ["--plan", "image"], ["always image"]),
        ("image", ["--out", "file.txt"], ["--out file.txt is a file"]),
        ("image", ["--out", "file.txt/samples"], ["file.txt/samples"]),
        ("image", ["--device", "abacus"], ["abacus"]),
        ("image", ["--prompt", "nowhere.png"], ["nowhere.png"]),
        ("image", ["--prompt", "wide.png"], ["wide.png", "3x9", "8x8"]),
        ("image", ["--prompt", "whole.png"], ["whole.png", "8x8", "1 to 7 rows"]),
        ("class", ["--prompt", "cats"], ["--prompt 'cats'", "NAME=VALUE", "label, image"]),
        ("class", ["--prompt", "lable=cats"], ["'label'"]),
        ("class", ["--prompt", "label=birds"], ["birds", "cats, dogs"]),
        ("class", ["--prompt", "image=top.png"], ["the prompt is image", "label, image"]),
        ("text", ["--prompt", "the cat €"], ["'€' at position 8"]),
        ("text", ["--prompt", "a" * 64], ["64 units", "context is 64"]),
        ("text", ["--prompt", "a" * 1000], ["1000 units", "context is 64"]),
        ("audio", ["--prompt", "long.wav"], ["context is 1024"]),
        ("audio", ["--prompt", "whole.png"], ["whole.png is not a WAV"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else value,
)
def test_generate_refuses(
    model: str, options: list[str], words: list[str], runs: Path, here: Path, refused: Run
) -> None:
    (here / "file.txt").write_text("x", encoding="utf-8")
    (here / "wide.png").write_bytes(png_bytes(digit(0, 3, 9)))
    (here / "whole.png").write_bytes(png_bytes(digit(0)))
    (here / "top.png").write_bytes(png_bytes(digit(0, 3)))
    (here / "long.wav").write_bytes(wav_bytes(40_000))
    before = everything_in(here)
    refused(["generate", runs / model, *options], *words)
    assert everything_in(here) == before


PNG, WAV = png_bytes(digit(0)), wav_bytes(400)


def corrupted(content: bytes, at: int = -20) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "cut short PNG": ("image", PNG[: len(PNG) // 2], ".png"),
    "PNG without its end": ("image", PNG[:-12], ".png"),
    "corrupt PNG": ("image", corrupted(PNG), ".png"),
    "empty PNG": ("image", b"", ".png"),
    "text named .png": ("image", b"hello, world\n" * 9, ".png"),
    "WAV named .png": ("image", WAV, ".png"),
    "PNG of another size": ("image", png_bytes(digit(0, 9, 8)), ".png"),
    "coloured PNG": ("image", png_bytes(np.dstack([digit(1), digit(2), digit(3)])), ".png"),
    "transparent PNG": ("image", png_bytes(np.dstack([digit(1)] * 4)), ".png"),
    "cut short WAV": ("audio", WAV[: len(WAV) // 2], ".wav"),
    "WAV of a header": ("audio", WAV[:20], ".wav"),
    "WAV without samples": ("audio", wav_bytes(0), ".wav"),
    "empty WAV": ("audio", b"", ".wav"),
    "text named .wav": ("audio", b"hello, world\n" * 9, ".wav"),
    "PNG named .wav": ("audio", PNG, ".wav"),
    "text that is not UTF-8": ("text", b"the cat \xff\xfe sat", ".txt"),
    "empty text": ("text", b"", ".txt"),
    "PNG named .txt": ("text", PNG, ".txt"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_score_refuses_bad_files(bad: str, runs: Path, here: Path, refused: Run) -> None:
    model, content, suffix = BAD_FILES[bad]
    (here / f"bad{suffix}").write_bytes(content)
    refused(["score", runs / model, f"bad{suffix}"], f"bad{suffix}")


@pytest.mark.parametrize("bad", [bad for bad, (model, *_) in BAD_FILES.items() if model != "text"])
def test_generate_refuses_bad_prompts(bad: str, runs: Path, here: Path, refused: Run) -> None:
    model, content, suffix = BAD_FILES[bad]
    (here / f"bad{suffix}").write_bytes(content)
    refused(["generate", runs / model, "--prompt", f"bad{suffix}"], f"bad{suffix}")
    assert everything_in(here) == {f"bad{suffix}"}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_train_refuses_bad_files(bad: str, here: Path, refused: Run) -> None:
    """Among good ones, before a run has a folder, and says how to go on without them."""
    model, content, suffix = BAD_FILES[bad]
    recipe = {"image": DIGITS, "audio": "audio/fsdd", "text": "text/shakespeare_char"}[model]
    folder = {"image": write_images, "audio": write_clips, "text": write_texts}[model](here / "data")
    (folder / f"bad{suffix}").write_bytes(content)
    refused(["train", recipe, "--debug", "--data.path=data"], f"data/bad{suffix}", "--data.on_error skip")
    assert not (here / "runs").exists()


def test_bad_files_can_be_skipped(here: Path, run: Run) -> None:
    """Only when asked for, and each is named."""
    folder = write_images(here / "data")
    (folder / "cats" / "bad.png").write_bytes(PNG[:40])
    (folder / "cats" / "wide.png").write_bytes(png_bytes(digit(0, 8, 9)))
    out = run("train", DIGITS, "--debug", "--data.path=data", "--data.on_error=skip", "--n_samples=0")
    assert "left out data/cats/bad.png" in out and "left out data/cats/wide.png" in out


def test_unknown_characters_are_refused_before_training(here: Path, refused: Run) -> None:
    """The end of a text, which is validation, may have characters that its beginning lacks."""
    (here / "mine.txt").write_text("the cat sat on the mat\n" * 30 + "ünïque", encoding="utf-8")
    refused(["train", "text/shakespeare_char", "--debug", "--data.path=mine.txt"], "'ü'", "kind: bytes")
    assert everything_in(here) == {"mine.txt"}


@pytest.mark.parametrize("command", ["score", "generate"])
def test_bundle_problems_are_one_line(command: str, runs: Path, here: Path, refused: Run) -> None:
    """Each names the place: nothing there, no model in it, another format, a file missing."""
    (here / "a.png").write_bytes(PNG)
    last = ["a.png"] if command == "score" else []
    refused([command, "nowhere", *last], "nowhere does not exist")
    (here / "empty").mkdir()
    refused([command, "empty", *last], "empty holds no model")
    refused([command, "a.png", *last], "a.png holds no model")
    shutil.copytree(runs / "image" / "model", here / "model")
    (here / "model" / "weights.safetensors").unlink()
    refused([command, "model", *last], "model/weights.safetensors is missing")
    config = json.loads((here / "model/config.json").read_text(encoding="utf-8"))
    (here / "model/config.json").write_text(json.dumps({**config, "format": 99}), encoding="utf-8")
    refused([command, "model", *last], "model/config.json", "format 99")


# ----------------------------------------------------------------------- no space left


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(self: Any, raw: Any, path: Path) -> None:
    path.write_bytes(b"half")
    no_space()


def test_a_full_disk_leaves_no_half_sample(
    runs: Path, here: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "save", half_written)
    refused(["generate", runs / "image"], "samples/0-0000.png", "No space left on device")
    assert everything_in(here) == {"samples"}


def test_a_folder_that_cannot_be_written(runs: Path, here: Path, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused(["generate", runs / "image", "--out", "locked"], "locked", "Permission denied")
    refused(["train", DIGITS, "--debug", "--run_dir=locked"], "locked", "Permission denied")
    assert everything_in(here) == set()


def test_a_full_disk_in_training_keeps_the_last_bundle(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second validation finds no space: the bundle and the scores of the first are still whole."""
    save, calls = bundle.save_model, []

    def second_fails(*arguments: Any) -> None:
        calls.append(1)
        save(*arguments) if len(calls) == 1 else no_space()

    monkeypatch.setattr(bundle, "save_model", second_fails)
    assert main(["train", DIGITS, "--debug", "--run_dir=mine", "--n_samples=0"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("armm train: ") and "mine/model" in last and "No space left" in last
    assert json.loads((here / "mine/metrics.json").read_text(encoding="utf-8"))["steps"] == 2
    assert bundle.load("mine").n_parameters > 0
    assert not [name for name in everything_in(here / "mine") if name.split("/")[-1].startswith(".")]


# ------------------------------------------------------------------ a process of its own


def test_a_real_process_prints_one_line_too(runs: Path, here: Path) -> None:
    """Warnings of libraries go past what the tests above capture; a pipe that closes early is no error."""
    (here / "bad.wav").write_bytes(WAV[:200])
    calls = [
        ["train", DIGITS, "--trainer.max_stepz=3"],
        ["train", DIGITS, "--data.path=nowhere"],
        ["train", DIGITS, "--trainer.devices=0"],
        ["score", str(runs / "audio"), "bad.wav"],
        ["generate", str(runs / "image"), "--n", "0"],
    ]
    code = f"from armm.cli import main\nfor call in {calls!r}:\n    assert main(call) == 2"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [f"armm {call[0]}" for call in calls]
    assert everything_in(here) == {"bad.wav"}


def test_a_pipe_that_closes_early_is_no_error() -> None:
    command = f"{sys.executable} -m armm.cli list | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert result.stdout == "modalities:\n" and result.stderr == ""
