"""Recipes, keys and options: what is right is taken, what is mistyped is one line that names it and its mend."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from own_files import Run, everything_in

from armm.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")

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
        ([DIGITS, "--model.optimization.muonlr=1"], ["--model.optimization.muonlr", "'muon_lr'"]),
        ([DIGITS, "--model.guard.spikes=1"], ["--model.guard.spikes", "'spike'"]),
        (["image/fsq", "--size=3"], ["no option --size for this recipe"]),
        ([DIGITS, "--rundir", "x"], ["--rundir", "'run_dir'"]),
        ([DIGITS, "more"], ["'more'", "--key value"]),
        ([DIGITS, "--trainer.max_steps", "abc"], ["trainer.max_steps", "expected int", "abc"]),
        ([DIGITS, "--seed_everything", "x"], ["seed_everything", "x"]),
        ([DIGITS, "--trainer.precision", "7"], ["trainer.precision", "7", "bf16-mixed"]),
        ([DIGITS, "--model.optimization.schedule=linear"], ["schedule: expected wsd or cosine, found linear"]),
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
        ([DIGITS, "--model.optimization.betas=[1.5, 0.9]"], ["betas has 1.5", "less than 1"]),
        ([DIGITS, "--trainer.log_every_n_steps=0"], ["trainer.log_every_n_steps is 0", "at least 1"]),
        ([DIGITS, "--trainer.accumulate_grad_batches=-3"], ["trainer.accumulate_grad_batches is -3", "at least 1"]),
        ([DIGITS, "--trainer.val_check_interval=0"], ["trainer.val_check_interval is 0", "more than 0"]),
        ([DIGITS, "--trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val is -1", "at least 0"]),
        ([DIGITS, "--trainer.gradient_clip_val=.nan"], ["trainer.gradient_clip_val is nan"]),
        ([DIGITS, "--data.batch_size=1000000000000000"], ["not enough memory", "data.batch_size"]),
        ([DIGITS, "--size=30000"], ["not enough memory", "size of the model"]),
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
