"""`armm train RECIPE [--any.key value]`: a recipe, the Lightning CLI, and a run's folder."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from armm.datasets import builtin_folder
from armm.errors import InputError, nearest
from armm.evaluation import Score
from armm.memory import keep_freed_memory
from armm.modality import discover
from armm.training.callbacks import Recorder, SampleLogger
from armm.training.checkpoints import CheckedIO, Saved, in_run
from armm.training.complaints import in_one_line, told_by_process
from armm.training.data import DataModule
from armm.training.defaults import TRAINER, check_trainer
from armm.training.diagnostics import Diagnostics
from armm.training.loggers import Board, Curves, sparing_threads
from armm.training.module import GenerativeModule
from armm.training.precision import AUTO, allow_auto, choose, several_processes
from armm.training.progress import StepProgress
from armm.training.resuming import (
    CONFIG,
    find_checkpoint,
    find_run,
    is_complete,
    keep_curves,
    newest_run,
    recipe_of,
    reopen,
    take,
)
from armm.training.run_folder import RUNS, holds_run, keep_only_runs, new_run, pointing_at
from armm.training.saving import Checkpointing, Checkpoints
from armm.training.scoring import check_scores, score_run
from armm.training.size import SIZES, with_size
from armm.training.speed import FetchTimer, SpeedMonitor
from armm.training.tokenizing import train_tokenizer, trains_tokenizer

DEBUG = {  # what --debug turns any recipe into: seconds, to see that it runs
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
    "data.batch_size": 2,
    "data.eval_batch_size": 2,
    "data.n_val": 2,
    "n_samples": 1,
    "score_trials": 2,
}


USAGE = """usage: armm train RECIPE [--any.key VALUE ...]
       armm train --resume RUN [--any.key VALUE ...]
       armm train RECIPE --resume [--any.key VALUE ...]

RECIPE is a YAML file, or the name of one that comes
with the library (armm list). --debug runs it for seconds, to see that it works.
--resume goes on with a run that was stopped; after a recipe, with its newest run (or that of --run_dir=FOLDER), and
begins where there is none.
Every key of a recipe, and every Trainer flag, is an option:
"""


def find_recipe(name: str) -> Path:
    """A recipe by path, or by its name among those that come with the library (`image/digits`).

    Raises InputError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name.startswith("-"):
        raise InputError(f"the recipe comes before {name}: armm train RECIPE --key value (armm list shows the recipes)")
    folder = builtin_folder("recipes")
    known = {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.yaml"))}
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short in known:
        return known[short]
    raise InputError(f"there is no recipe {name}{nearest(short, known)} (armm list shows the recipes)")


def check_recipe(path: Path) -> None:
    """Raises InputError: not a YAML file of sections."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}; mend it or name another recipe") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no recipe: expected the sections model, data and trainer in it")


class TrainCLI(LightningCLI):
    """The Lightning CLI over our module and data module, with a folder per run.

    Args:
        recipe: its name, for the record.
        resumed: whether the run is there already, and goes on.
    """

    def __init__(self, recipe: str, arguments: list[str], resumed: bool) -> None:
        self.recipe, self.resumed = recipe, resumed
        self.saved: Saved | None = None  # what the run goes on with
        super().__init__(
            GenerativeModule,
            DataModule,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={**TRAINER, "precision": AUTO, "log_every_n_steps": 10},
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
        parser.add_class_arguments(Checkpointing, "checkpoints")
        allow_auto(parser)
        parser.add_argument(
            "--size",
            type=str | int | None,
            default=None,
            help=f"Width, depth, heads, rates and batch at once: a number of layers, or {', '.join(SIZES)}.",
        )
        parser.add_argument("--n_samples", type=int, default=8, help="Samples logged at every validation; 0 for none.")
        parser.add_argument(
            "--scores", type=list[Score], default=[], help="What is computed at the end, and by armm evaluate."
        )
        parser.add_argument(
            "--score_trials", type=int | None, default=None, help="At most so many trials a score; 0 leaves scores out."
        )

    def before_instantiate_classes(self) -> None:
        wanted = self.config["run_dir"]
        self.run_dir = Path(wanted) if wanted else new_run(self.recipe.rpartition("/")[2])
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise InputError(f"run_dir {self.run_dir} is a file; name a folder")
        if self.resumed:
            self.saved = find_checkpoint(self.run_dir)
        elif rank_zero_only.rank == 0 and holds_run(self.run_dir):
            raise InputError(
                f"run_dir {self.run_dir} already holds a run; go on with it by armm train --resume {self.run_dir}, "
                "name another or remove it"
            )
        check_trainer(self.config["trainer"])
        max_steps = self.config["trainer"]["max_steps"]
        if self.saved and -1 < max_steps < self.saved.step:
            raise InputError(
                f"trainer.max_steps is {max_steps}, and {self.run_dir} is at step {self.saved.step:,} already; "
                "give more, or leave it out"
            )
        if self.config["n_samples"] < 0:
            raise InputError(f"n_samples is {self.config['n_samples']}, it must be at least 0; 0 logs none")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = self.config_init["trainer"]
        speed, choice = SpeedMonitor(), None
        if trainer["precision"] in (None, AUTO):
            choice = choose(self.model, self.datamodule, str(trainer["accelerator"]), not several_processes(trainer))
            kwargs["precision"] = self.config["trainer"]["precision"] = choice.precision
            if rank_zero_only.rank == 0:
                print(f"precision {choice.precision}: {choice.reason}")
        if trainer["profiler"] is None:
            kwargs["profiler"] = FetchTimer()
        seed, reason = self.config["seed_everything"], choice.reason if choice else None
        self.recorder = Recorder(self.run_dir, self.recipe, seed, speed, reason)
        if trainer["logger"] in (None, True):
            place, nothing = str(self.run_dir), ""
            since = self.saved.step if self.saved else None  # what a run that was killed drew later is void
            kwargs["logger"] = [
                Board(place, name=nothing, version=nothing, purge_step=since),
                Curves(place, name=nothing, version=nothing),
            ]
        kwargs["default_root_dir"] = trainer["default_root_dir"] or str(self.run_dir)
        given = trainer["callbacks"] or []
        own: list[L.Callback] = [speed, Diagnostics(), self.recorder]
        if self.saved:  # once the checkpoint has been taken: a run that refuses other keys keeps its own
            own.append(LambdaCallback(on_train_start=lambda trainer, module: self.go_on()))
        if self.config["n_samples"]:
            own.append(SampleLogger(self.config["n_samples"]))
        if trainer["enable_progress_bar"] is not False:
            own.append(StepProgress())
        self.checkpoints: Checkpoints | None = None
        if trainer["enable_checkpointing"] is not False:
            self.checkpoints = Checkpoints(self.run_dir, self.config_init["checkpoints"], self.saved)
            own.append(self.checkpoints)
            plugins = trainer["plugins"] or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                kwargs["plugins"] = [*plugins, CheckedIO()]
        kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), *own]
        return super().instantiate_trainer(**kwargs)

    def go_on(self) -> None:
        """Have the run's folder say what it is now that it trains on."""
        self.save_config()
        reopen(self.run_dir)

    def save_config(self) -> None:
        """Write the resolved configuration into the run's folder."""
        if self.trainer.is_global_zero:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            beside = self.run_dir / f".{CONFIG}.{os.getpid()}"
            try:
                self.parser.save(self.config, beside, skip_check=True, overwrite=True)
                beside.replace(self.run_dir / CONFIG)
            finally:
                beside.unlink(missing_ok=True)


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
        print(USAGE)
        arguments = ["image/digits", "--help"]
    arguments, resume = take(arguments)
    folder = None
    if resume is not None and (resume.run or not arguments or arguments[0].startswith("-")):
        if resume.run is None:
            raise InputError("--resume goes on with a run: armm train --resume RUN, or armm train RECIPE --resume")
        folder = find_run(resume.run)
        arguments = arguments[0 if not arguments or arguments[0].startswith("-") else 1 :]
        recipe, name = folder / CONFIG, recipe_of(folder)
    else:
        recipe = find_recipe(arguments[0])
        name, arguments = recipe_name(recipe), arguments[1:]
        if resume is not None:
            folder = last_run(name, arguments)
            recipe = recipe if folder is None else folder / CONFIG
    check_recipe(recipe)
    if "--debug" in arguments:
        given = [argument for argument in arguments if argument != "--debug"]
        arguments = [*(f"--{key}={value}" for key, value in DEBUG.items()), *given]
    if folder is not None:
        own = [argument for argument in arguments if not argument.startswith("--run_dir=")]
        if is_complete(folder) and not own:
            print(f"{folder}: complete; train it longer by --trainer.max_steps, or begin a new run without --resume")
            return 0
        if any(argument.partition("=")[0] == "--size" for argument in own):
            raise InputError(f"--size changes the model, and {folder} goes on with its own; leave --size out")
        arguments = [*own, f"--run_dir={folder}"]
    else:
        arguments = with_size(arguments, yaml.safe_load(recipe.read_text(encoding="utf-8")))
    with told_by_process(), in_one_line(recipe):
        if trains_tokenizer(recipe):
            return train_tokenizer(recipe, name, arguments, new_run(name.rpartition("/")[2]))
        return run(recipe, name, arguments, resumed=folder is not None)


def last_run(name: str, arguments: list[str]) -> Path | None:
    """The run that `armm train RECIPE --resume` goes on with: that of --run_dir, or the recipe's newest."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("--run_dir=")]
    if "--run_dir" in arguments:
        raise InputError("with --resume, write --run_dir=FOLDER in one word")
    place = Path(given[-1]) if given else RUNS / name.rpartition("/")[2]
    found = newest_run(place)
    if found is None:
        print(f"{place}: nothing to go on with yet; begins")
    return found


def run(recipe: Path, name: str, arguments: list[str], resumed: bool) -> int:
    """Train, validate, test, report."""
    keep_freed_memory()
    cli = TrainCLI(name, ["--config", str(recipe), *arguments], resumed)
    cli.model.prepare(cli.datamodule)
    check_scores(cli.config_init["scores"], cli.model.model)
    with keep_only_runs(cli.run_dir, not resumed), pointing_at(cli.run_dir), in_one_line(recipe), sparing_threads():
        if cli.saved is None:
            cli.save_config()
        began = time.perf_counter()
        step = cli.saved.step if cli.saved else 0
        for logger in cli.trainer.loggers:
            if resumed and isinstance(logger, Curves):
                keep_curves(logger, step)
        try:
            checkpoint = str(cli.saved.path) if cli.saved else None
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
            if cli.recorder.validated_at != cli.trainer.global_step:
                cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
            cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
            if cli.trainer.is_global_zero:
                score_run(cli.run_dir, cli.config_init["scores"], cli.datamodule, cli.config["score_trials"])
        except SystemExit:  # how the Trainer ends on Ctrl-C
            if not cli.recorder.interrupted:
                raise
    if cli.recorder.interrupted:
        number = (cli.checkpoints and cli.checkpoints.signal) or signal.SIGINT
        if rank_zero_only.rank == 0:
            kept = f"in {cli.run_dir / 'model'}"
            if cli.model.sharded:
                kept = f"in its checkpoint; as a bundle: armm consolidate {cli.run_dir}"
            print(f"\nstopped at step {cli.trainer.global_step}; the model so far is {kept}")
            if in_run(cli.run_dir):
                print(f"go on with it: armm train --resume {cli.run_dir}")
        return 128 + number
    if cli.trainer.is_global_zero:
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
    if cli.recorder.speed and (complaint := cli.recorder.speed.complaint()):
        print(complaint)
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
        r".*Experiment logs directory.*",
        r".*batch_size.*ambiguous.*",
        r"\s*Dump of a value that does not round-trip",  # tuples, which our classes take as lists too
        r".*ended before the epoch ended and your dataloader is.*",  # data.train_dataloader begins where it did
        r".*sync_dist=True.*",  # the sums of all ranks are added up before they are logged
    ):
        warnings.filterwarnings("ignore", message)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
