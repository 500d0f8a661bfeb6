"""The dial: what a size means, and who overrides whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from armm.cli import main
from armm.errors import InputError
from armm.training.size import SIZES, derived, n_layers_of, with_size

RECIPE: dict[str, Any] = {
    "model": {
        "backbone": {"class_path": "Transformer", "init_args": {"width": 128, "n_layers": 4, "n_heads": 4}},
        "optimization": {"lr": 4e-3},
    },
    "data": {"batch_size": 8},
}


def test_a_size_is_a_number_of_layers_or_a_name_of_one() -> None:
    assert n_layers_of("small") == n_layers_of(6) == n_layers_of("6") == SIZES["small"]
    for wrong in ("smal", "0", "-3", "1.5", ""):
        with pytest.raises(InputError, match="size is"):
            n_layers_of(wrong)
    with pytest.raises(InputError, match="did you mean 'small'"):
        n_layers_of("smal")


def test_everything_follows_from_the_size() -> None:
    """8 layers of 512: 4 times the width, so half the rate; 32 times the weights, so 32^0.383 = 3.8 times the batch."""
    assert derived(8, RECIPE) == {
        "model.backbone.init_args.width": 512,
        "model.backbone.init_args.n_layers": 8,
        "model.backbone.init_args.n_heads": 8,
        "model.optimization.lr": 2e-3,
        "data.batch_size": 30,
    }


def test_a_recipes_own_rates_are_scaled_too() -> None:
    recipe = {**RECIPE, "model": {**RECIPE["model"], "optimization": {"lr": 4e-3, "head_lr": 8e-4}}}
    assert derived(8, recipe)["model.optimization.head_lr"] == 4e-4


def test_its_own_size_changes_nothing() -> None:
    """A recipe whose shape is the dial's keeps its rate and batch."""
    recipe = {"model": {"backbone": {"class_path": "Transformer", "init_args": {"width": 256, "n_layers": 4}}}}
    values = derived(4, recipe)
    assert (values["model.optimization.lr"], values["data.batch_size"]) == (3e-3, 32)


def test_shared_heads_and_hidden_widths_grow_along() -> None:
    """Of a recipe that has them: its own size changes nothing, and heads can always be dealt out."""
    args = {"width": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "mlp": "swiglu", "mlp_width": 512}
    recipe = {"model": {"backbone": {"class_path": "Transformer", "init_args": args}}}
    values = {key.rpartition(".")[2]: value for key, value in derived(4, recipe).items()}
    assert {key: values[key] for key in args if key != "mlp"} == {k: v for k, v in args.items() if k != "mlp"}
    assert values["batch_size"] == 32
    for size, shared in ((5, 1), (6, 3), (8, 4)):
        values = derived(size, recipe)
        assert values["model.backbone.init_args.n_kv_heads"] == shared
        assert values["model.backbone.init_args.mlp_width"] == 128 * size


def test_no_transformer_no_size() -> None:
    with pytest.raises(InputError, match="NoBackbone"):
        derived("small", {"model": {"backbone": "armm.backbones.NoBackbone"}})


def test_the_command_line_overrides_the_size_and_the_size_the_recipe() -> None:
    arguments = with_size(["--size", "8", "--model.optimization.lr=0.5"], {**RECIPE, "size": "small"})
    assert arguments[0] == "--size=8" and arguments[-1] == "--model.optimization.lr=0.5"
    assert "--model.backbone.init_args.width=512" in arguments


def test_a_recipe_overrides_the_size_that_it_names() -> None:
    recipe = {"size": 8, "model": {"backbone": {"class_path": "Transformer", "init_args": {"n_heads": 4}}}}
    arguments = with_size(["--data.batch_size=3"], recipe)
    assert "--model.backbone.init_args.width=512" in arguments and arguments[-1] == "--data.batch_size=3"
    assert not any("n_heads" in argument for argument in arguments)


def test_no_size_no_change() -> None:
    assert with_size(["--a=1"], RECIPE) == ["--a=1"]
    with pytest.raises(InputError, match="lacks its value"):
        with_size(["--size"], RECIPE)


def test_resolved_values_are_in_the_run(tmp_path: Path) -> None:
    """What the size came to, and what overrode it; the saved configuration says the same when it is read again."""
    folder = tmp_path / "run"
    options = ("--debug", "--n_samples=0", "--size=nano", "--model.backbone.init_args.n_heads=1", "--data.batch_size=3")
    assert main(["train", "image/digits", *options, "--trainer.precision=32-true", f"--run_dir={folder}"]) == 0
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    blocks = saved["model"]["backbone"]["init_args"]
    assert (blocks["width"], blocks["n_layers"], blocks["n_heads"]) == (128, 2, 1)
    assert (saved["size"], saved["data"]["batch_size"], saved["trainer"]["precision"]) == ("nano", 3, "32-true")
    assert with_size([], saved) == ["--size=nano"]


def test_a_wrong_size_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "image/digits", "--size=hugee", f"--run_dir={tmp_path / 'run'}"]) == 2
    assert "size is 'hugee'" in capsys.readouterr().err and not (tmp_path / "run").exists()
