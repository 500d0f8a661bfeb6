"""`armm train image/fsq`: an image tokenizer instead of a model, by the same data and the same Trainer.

A run leaves `tokenizer/` (what `armm.modalities.LatentImage` reads), metrics.json with the error of what comes back and
the codes that are used, the curves, and pictures before and after in TensorBoard.
Axes: B images, H, W pixels, C channels, h, w places of the code.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from armm.errors import InputError
from armm.fsq import FSQ, Autoencoder, to_files
from armm.grammar import Grammar
from armm.modalities.image import Image
from armm.modalities.latent import from_pixels, to_pixels
from armm.sequence import Batch
from armm.training.data import DataModule
from armm.training.defaults import TRAINER
from armm.training.loading import Counts
from armm.training.resuming import CONFIG
from armm.training.schedule import factor, progress_of


def trains_tokenizer(recipe: Path) -> bool:
    """Whether a recipe's model is a tokenizer."""
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return isinstance(content.get("model"), dict) and "tokenizer" in content["model"]


class TokenizerModule(L.LightningModule):
    """Trains an autoencoder with a rounded code.

    Args:
        image: the images: their size, channels and levels.
        tokenizer: the autoencoder.
        lr: AdamW's peak learning rate; it rises over the first 3 % of the run and falls over the last half.
    """

    def __init__(self, image: Image, tokenizer: FSQ = FSQ(), lr: float = 2e-3) -> None:  # noqa: B008 - frozen
        super().__init__()
        if image.size is None or any(side % tokenizer.factor for side in image.size):
            raise InputError(
                f"model.image.size is {image.size and list(image.size)}, it must be set, both sides multiples of the "
                f"tokenizer's factor {tokenizer.factor}"
            )
        if lr <= 0:
            raise InputError(f"model.lr is {lr}, it must be greater than 0")
        self.image, self.config, self.lr = image.named("image"), tokenizer, lr
        self.net: Autoencoder = tokenizer.build(image.channels)
        self.metrics: dict[str, dict[str, float]] = {}
        self._error = torch.zeros(2, dtype=torch.float64)  # summed squares in levels, and of how many values
        self._used = torch.zeros(tokenizer.n_codes, dtype=torch.int64)
        self.shown: tuple[Tensor, Tensor] | None = None  # some images, before and after

    def prepare(self, data: DataModule) -> None:
        """Load the data.

        Raises InputError: they are not right.
        """
        if data.grammar is None:
            data.fit_modalities({"image": self.image})
            data.attach(Grammar({"image": self.image}, ["image"]))

    def setup(self, stage: str) -> None:
        self.prepare(self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0)
        progress = progress_of(self.trainer)
        schedule = LambdaLR(optimizer, lambda step: factor(*progress(step), "wsd", 0.03, 0.5, 0.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def images(self, batch: Batch) -> Tensor:
        """(B, H, W, C) levels."""
        assert self.image.size is not None
        return batch.segments["image"].symbols.reshape(-1, *self.image.size, self.image.channels)

    def training_step(self, data: tuple[Batch, Counts], index: int) -> Tensor:
        pixels = to_pixels(self.images(data[0]), self.image.levels)
        drawn, _ = self.net(pixels)
        loss = F.mse_loss(drawn, pixels)
        self.log("train/mse", loss, prog_bar=True, batch_size=len(pixels))
        return loss

    def _score(self, data: tuple[Batch, Counts]) -> None:
        images = self.images(data[0])
        drawn, codes = self.net(to_pixels(images, self.image.levels))
        back = from_pixels(drawn, self.image.levels)
        squares = (back.double() - images).square()
        self._error += torch.tensor([float(squares.sum()), squares.numel()], dtype=torch.float64)
        self._used += torch.bincount(codes.flatten().cpu(), minlength=self.config.n_codes)
        self.shown = self.shown or (images[:8].cpu(), back[:8].cpu())

    def _finish(self, split: str) -> None:
        mse = float(self._error[0] / self._error[1].clamp(min=1))
        share = self._used.double() / self._used.sum().clamp(min=1)
        entropy = float(-(share * share.clamp(min=1e-300).log2()).sum())
        self.metrics[split] = {
            "rmse_levels": math.sqrt(mse),
            "psnr_db": 10 * math.log10((self.image.levels - 1) ** 2 / mse) if mse else math.inf,
            "codes_used": float((self._used > 0).double().mean()),
            "code_perplexity": 2.0**entropy,
            "code_bits_at_most": math.log2(self.config.n_codes),
        }
        for key, value in self.metrics[split].items():
            self.log(f"{split}/{key}", value, prog_bar=key == "rmse_levels")
        self._error, self._used = torch.zeros_like(self._error), torch.zeros_like(self._used)

    def validation_step(self, data: tuple[Batch, Counts], index: int) -> None:
        self._score(data)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        if self.shown is not None:
            images, back = (part.to(torch.uint8).numpy() for part in self.shown)
            squeezed = [image[..., 0] if image.shape[-1] == 1 else image for image in (*images, *back)]
            preview = self.image.preview(squeezed)
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image("reconstructions", preview.data, self.global_step, dataformats="HWC")
        self.shown = None

    def test_step(self, data: tuple[Batch, Counts], index: int) -> None:
        self._score(data)

    def on_test_epoch_end(self) -> None:
        self._finish("test")


class TokenizerCLI(LightningCLI):
    """The Lightning CLI over a tokenizer and our data."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            TokenizerModule,
            DataModule,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={**TRAINER, "enable_checkpointing": False},
            parser_kwargs={"exit_on_error": False, "prog": "armm train RECIPE"},
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str | None, default=None, help="The run's folder.")
        parser.add_argument("--n_samples", type=int, default=8, help="Not used: pictures come back, none are drawn.")
        parser.add_argument("--score_trials", type=int | None, default=None, help="Not used: there are no scores.")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        self.run_dir = Path(self.config["run_dir"])
        kwargs["logger"] = [logger(str(self.run_dir), name="", version="") for logger in (TensorBoardLogger, CSVLogger)]
        kwargs["default_root_dir"] = str(self.run_dir)
        return super().instantiate_trainer(**kwargs)


def train_tokenizer(recipe: Path, name: str, arguments: list[str], free: Path) -> int:
    """Train, validate, test, and write the tokenizer.

    Args:
        free: the run's folder where `arguments` name none.

    Raises InputError: a recipe, key or data that are not right, or a folder that holds a run.
    """
    given = [argument for argument in arguments if argument.startswith("--run_dir=")]
    folder = Path(given[-1].partition("=")[2]) if given else free
    if (folder / "tokenizer").exists() or (folder / "metrics.json").exists():
        raise InputError(f"run_dir {folder} already holds a run; name another or remove it")
    arguments = [argument for argument in arguments if not argument.startswith("--run_dir=")]
    cli = TokenizerCLI(["--config", str(recipe), *arguments, f"--run_dir={folder}"])
    module: TokenizerModule = cli.model
    module.prepare(cli.datamodule)
    cli.trainer.fit(module, datamodule=cli.datamodule)
    cli.trainer.validate(module, datamodule=cli.datamodule, verbose=False)
    cli.trainer.test(module, datamodule=cli.datamodule, verbose=False)
    if cli.trainer.is_global_zero:
        assert module.image.size is not None
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        for file, content in to_files(module.net, module.image.size, module.image.levels).items():
            write_whole(folder / "tokenizer" / file, content)
        about = {
            "recipe": name,
            "seed": cli.config["seed_everything"],
            "steps": cli.trainer.global_step,
            **module.metrics,
        }
        write_whole(folder / "metrics.json", (json.dumps(about, indent=1) + "\n").encode())
        cli.parser.save(cli.config, folder / CONFIG, skip_check=True, overwrite=True)
        for split, scores in module.metrics.items():
            print(f"{split:>5}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
        print(f"run folder: {folder}\nnext: armm train image/latents --model.modalities.image.init_args.run={folder}")
    return 0


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
