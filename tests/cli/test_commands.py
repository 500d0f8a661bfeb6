"""The command line, from a user's own files to samples and bits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from own_files import SMALL_BACKBONE, TEXT, Run, digit, everything_in, png_bytes, wav_bytes
from PIL import Image as Pillow
from tiny_modalities import hash_parameters

from armm import bundle
from armm.backbones import Transformer
from armm.cli import COMMANDS, main
from armm.commands import generate as generate_command
from armm.commands.score import score
from armm.generation import Sample
from armm.modalities import Audio, Image, Label, Text
from armm.modalities.audio import mu_law_encode
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.windows import windows

pytestmark = pytest.mark.filterwarnings("ignore")

# ------------------------------------------------------------------------------- train


@pytest.mark.parametrize("name", ["text", "image", "class", "audio"])
def test_training_on_own_files_leaves_a_run(name: str, runs: Path) -> None:
    """Resolved config, curves, scores and a bundle; the keys of the scores are those of the documentation."""
    folder = runs / name
    found = {path.name.split(".")[0] if "tfevents" in path.name else path.name for path in folder.iterdir()}
    assert found == {"checkpoints", "config.yaml", "events", "hparams.yaml", "metrics.csv", "metrics.json", "model"}
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
    names = {"0-0000.txt", "0-0001.txt", "0-0002.txt"}
    assert set(files) == names | {f"{name}.json" for name in names}  # beside each where it came from
    for name in names:
        text = files[name].decode()
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
    first, second = (np.asarray(Pillow.open(here / seed / f"{seed}-0000.png")) for seed in ("1", "2"))
    np.testing.assert_array_equal(first, second)


def test_generate_stops_long_texts_by_itself(runs: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text has no end of its own: a default length, not the whole context of a model that may be 8,192."""
    monkeypatch.setattr(generate_command, "DEFAULT_LENGTH", 12)
    run("generate", runs / "text")
    assert len(written(here / "samples")["0-0000.txt"]) == 12


def test_ctrl_c_keeps_finished_samples(
    runs: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are written stay, whole; exit code 130. The same command again makes the missing ones only."""
    draw = generate_command.draw

    def stopped(*arguments: Any) -> Iterator[Any]:
        n_samples = 0
        for event in draw(*arguments):
            if n_samples == 2:
                raise KeyboardInterrupt
            n_samples += isinstance(event, Sample)
            yield event

    with monkeypatch.context() as patched:
        patched.setattr(generate_command, "draw", stopped)
        assert main(["generate", str(runs / "image"), "--n", "5", "--batch-size", "2"]) == 130
    out, err = capsys.readouterr()
    assert "2 of 5 samples are in samples" in out and err == "\narmm generate: stopped\n"
    first = written(here / "samples")
    assert set(first) == {"0-0000.png", "0-0001.png"}
    out = run("generate", runs / "image", "--n", "5")
    assert "kept 2, made 3" in out and written(here / "samples").items() >= first.items()
    run("generate", runs / "image", "--n", "5", "--out", "whole")
    assert written(here / "samples") == written(here / "whole")  # the grid of all five too


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
