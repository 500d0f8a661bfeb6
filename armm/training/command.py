"""`armm train RECIPE [--any.key value]`: a recipe, the Lightning CLI, and a run's folder."""

from __future__ import annotations

import inspect
import logging
import re
import time
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from armm.datasets import builtin_folder
from armm.errors import InputError, nearest
from armm.modality import discover
from armm.spec import import_class
from armm.training.callbacks import Recorder, SampleLogger
from armm.training.data import DataModule
from armm.training.module import GenerativeModule
from armm.training.progress import StepProgress

RUNS = Path("runs")
DEBUG = {  # what --debug turns any recipe into: seconds, to see that it runs
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
    "data.batch_size": 2,
    "data.eval_batch_size": 2,
    "data.n_val": 2,
    "n_samples": 1,
}
KEY = re.compile(r"Option '([\w.-]+)'|Key '([\w.-]+)'|[Uu]nrecognized arguments: --([\w.-]+)|key \"([\w.-]+)\" is not")


def find_recipe(name: str) -> Path:
    """A recipe by path, or by its name among those that come with the library (`image/digits`).

    Raises InputError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = builtin_folder("recipes")
    known = {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.yaml"))}
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short in known:
        return known[short]
    raise InputError(f"no recipe at {name}{nearest(short, known)}; armm list shows the recipes")


def new_run(recipe: Path) -> Path:
    """runs/<recipe>/<version>, the first version that is free."""
    folder = RUNS / recipe.stem
    taken = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    return folder / str(max(taken, default=-1) + 1)


class TrainCLI(LightningCLI):
    """The Lightning CLI over our module and data module, with a folder per run."""

    def __init__(self, recipe: Path, arguments: list[str]) -> None:
        self.recipe = recipe
        super().__init__(
            GenerativeModule,
            DataModule,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "max_steps": 1000,
                "max_epochs": -1,
                "gradient_clip_val": 1.0,
                "check_val_every_n_epoch": None,
                "val_check_interval": 250,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "enable_checkpointing": False,
                "enable_model_summary": False,
            },
            parser_kwargs={"exit_on_error": False, "prog": "armm train RECIPE"},
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run's folder; runs/<recipe>/<version> by default.",
        )
        parser.add_argument("--n_samples", type=int, default=8, help="Samples logged at every validation; 0 for none.")

    def before_instantiate_classes(self) -> None:
        wanted = self.config["run_dir"]
        self.run_dir = Path(wanted) if wanted else new_run(self.recipe)
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise InputError(f"run_dir {self.run_dir} is a file; name a folder")
        if (self.run_dir / "metrics.json").exists() or (self.run_dir / "model").exists():
            raise InputError(f"run_dir {self.run_dir} already holds a run; name another or remove it")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = self.config_init["trainer"]
        self.recorder = Recorder(self.run_dir, recipe_name(self.recipe), self.config["seed_everything"])
        if trainer["logger"] in (None, True):
            place, nothing = str(self.run_dir), ""
            kwargs["logger"] = [
                TensorBoardLogger(place, name=nothing, version=nothing),
                CSVLogger(place, name=nothing, version=nothing),
            ]
        kwargs["default_root_dir"] = trainer["default_root_dir"] or str(self.run_dir)
        given = trainer["callbacks"] or []
        own: list[L.Callback] = [self.recorder]
        if self.config["n_samples"]:
            own.append(SampleLogger(self.config["n_samples"]))
        if trainer["enable_progress_bar"] is not False:
            own.append(StepProgress())
        kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), *own]
        return super().instantiate_trainer(**kwargs)

    def save_config(self) -> None:
        """Write the resolved configuration into the run's folder."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, self.run_dir / "config.yaml", skip_check=True, overwrite=True)


def recipe_name(recipe: Path) -> str:
    """`image/digits` for recipes/image/digits.yaml, the stem for anyone else's file."""
    parts = recipe.with_suffix("").parts
    folders = [i for i, part in enumerate(parts) if part.strip("_") == "recipes"]
    return "/".join(parts[folders[-1] + 1 :]) if folders else recipe.stem


def train(arguments: list[str]) -> int:
    """Run `armm train`; returns the exit code.

    Raises InputError: a recipe, key, class, path or data set that is not right.
    """
    quiet()
    discover()  # so that installed modalities can be named by their class alone
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: armm train RECIPE [--any.key VALUE ...]\n\nRECIPE is a YAML file, or the name of one that comes")
        print("with the library (armm list). --debug runs it for seconds, to see that it works.")
        print("Every key of a recipe, and every Trainer flag, is an option:\n")
        arguments = ["image/digits", "--help"]
    recipe = find_recipe(arguments[0])
    if "--debug" in arguments:
        arguments = [argument for argument in arguments if argument != "--debug"]
        arguments[1:1] = [f"--{key}={value}" for key, value in DEBUG.items()]
    try:
        cli = TrainCLI(recipe, ["--config", str(recipe), *arguments[1:]])
    except ArgumentError as error:
        raise InputError(f"{recipe}: {explain(error)}") from error
    cli.save_config()
    began = time.perf_counter()
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    except SystemExit:
        if not cli.recorder.interrupted:
            raise
    if cli.recorder.interrupted:
        print(f"\nstopped at step {cli.trainer.global_step}; the model so far is in {cli.run_dir / 'model'}")
        return 130
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    report(cli, time.perf_counter() - began)
    return 0


def report(cli: TrainCLI, seconds: float) -> None:
    """Say what came out and what to do with it."""
    module = cli.model
    print(f"\n{module.model.n_parameters:,} parameters, {cli.trainer.global_step:,} steps,", end=" ")
    print(f"{cli.recorder.training_seconds:.0f} s of training, {seconds:.0f} s in all")
    for split, results in module.metrics.items():
        for name, values in results.items():
            print(f"{split:>5} {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()))
    print(f"run folder: {cli.run_dir}\nnext: armm generate {cli.run_dir} --n 16 --out samples/")


def quiet() -> None:
    """Leave out what Lightning says about itself, and what of it a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r"LightningCLI's args.*",
        r".*does not have many workers.*",
        r".*treespec.*",
        r".*log_every_n_steps.*",
        r".*isinstance.*",
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=r".*batch_size.*ambiguous.*")


def explain(error: Exception) -> str:
    """The parser's complaint in one line, naming the nearest known key or class."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    text = " ".join(lines)
    if len(text) > 600:
        text = text[:300] + " ... " + text[-300:]
    found = KEY.search(text)
    if not found:
        return text
    key = next(group for group in found.groups() if group)
    return text + nearest(key.split(".")[-1], _known_keys(text, key))


def _known_keys(text: str, key: str) -> Iterator[str]:
    """The keys that could have been meant: of the class that the message names, or of the section that the key is in."""
    classes = re.findall(r"class_path '([\w.]+)'", text)
    sections = {"trainer": L.Trainer, "model": GenerativeModule, "data": DataModule}
    if classes:
        owner: Any = import_class(classes[-1], object)
    else:
        owner = sections.get(key.split(".")[0])
    if owner is None:
        yield from (*sections, "run_dir", "seed_everything", "n_samples")
    else:
        yield from inspect.signature(owner.__init__).parameters
