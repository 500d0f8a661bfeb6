"""Every recipe that comes with the library: documented, short, and trained for seconds on tiny data of its format."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from armm import bundle
from armm.cli import main
from armm.commands.listing import recipes as listed_recipes

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parents[1]
ALL = sorted((ROOT / "recipes").rglob("*.yaml"))
# a tokenizer, and what needs a trained one: tests/test_fsq.py trains both
OF_TOKENIZERS = ("image/fsq", "image/latents")
RECIPES = [path for path in ALL if path.relative_to(ROOT / "recipes").with_suffix("").as_posix() not in OF_TOKENIZERS]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").with_suffix("").as_posix()


# -------------------------------------------------------------- tiny data, by the source's class


def write_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is built in."""


def write_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "input.txt").write_text("To be, or not to be: that is the question.\n" * 60, encoding="utf-8")


def write_wav(path: Path, n: int, rate: int) -> None:
    samples = (9000 * np.sin(np.arange(n) * 0.1)).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def write_spoken_digits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(10):
        write_wav(folder / "recordings" / f"{index}_jackson_{index}.wav", 400 + 100 * index, 8000)


def write_yesno(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_wav(folder / "waves_yesno" / f"{'_'.join(f'{number:08b}')}.wav", 900, 8000)


def write_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder / "SpeechCommands" / "speech_commands_v0.02"
    for word in ("yes", "no"):
        for number in range(4):
            write_wav(root / word / f"{number:08x}_nohash_0.wav", 1600, 16000)
    for name, number in (("testing", 0), ("validation", 1)):
        (root / f"{name}_list.txt").write_text(f"yes/{number:08x}_nohash_0.wav\nno/{number:08x}_nohash_0.wav\n")


def write_idx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 images are for validation, the others to train on."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 5020), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(n).astype(np.uint8) % 10)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(head + array.tobytes())


def write_torchvision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fashion-MNIST's idx files, or CIFAR-10's pickles, which torchvision compares with their checksums."""
    if "fashion" in folder.name:
        return write_idx(folder, monkeypatch)
    from torchvision.datasets import CIFAR10

    rng, lists = np.random.default_rng(0), []
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        n = 10 if name == "test_batch" else 1010
        data = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}
        content = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]} if "meta" in name else data)
        (batches / name).write_bytes(content)
        lists.append([name, hashlib.md5(content).hexdigest()])
    monkeypatch.setattr(CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(CIFAR10, "test_list", lists[5:6])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": lists[6][1]})


def write_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = folder.with_name("text.txt")
    text.write_text("To be, or not to be: that is the question.\n" * 60, encoding="utf-8")
    assert main(["prepare", "text/shards", str(text), "--out", str(folder), "--val=0.1", "--test=0.1"]) == 0


def write_chorales(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chorale = [[72, 67, 60, 48]] * 8 + [[74, 65, 62, 50]] * 8
    content = {"train": [chorale] * 8, "valid": [chorale] * 2, "test": [chorale] * 2}
    (folder / "jsb-chorales-16th.json").write_text(json.dumps(content), encoding="utf-8")


# A recipe with a source that is not here fails: it would go untested.
WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "armm.datasets.Calculator": write_nothing,
    "armm.datasets.Chorales": write_chorales,
    "armm.datasets.Corpus": write_text,
    "armm.datasets.Digits": write_nothing,
    "armm.datasets.Fasta": write_nothing,
    "armm.datasets.FillInMiddle": write_nothing,
    "armm.datasets.Mnist": write_idx,
    "armm.datasets.MovingDigits": write_idx,
    "armm.datasets.Numbers": write_nothing,
    "armm.datasets.Pairs": write_nothing,
    "armm.datasets.SpeechCommands": write_commands,
    "armm.datasets.SpokenDigits": write_spoken_digits,
    "armm.datasets.Sprites": write_nothing,
    "armm.datasets.StandardLibrary": write_nothing,
    "armm.datasets.Synth": write_nothing,
    "armm.datasets.TokenShards": write_shards,
    "armm.datasets.TorchvisionImages": write_torchvision,
    "armm.datasets.YesNo": write_yesno,
}


# ------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_recipe_is_short_and_says_what_it_is(path: Path) -> None:
    """Under 60 lines, with an opening comment that `armm list` shows, a seed and a length."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 130
    assert lines[0].startswith("# ") and lines[0].rstrip().endswith(".")
    assert (name_of(path), lines[0][2:]) in listed_recipes()
    recipe = yaml.safe_load("\n".join(lines))
    assert [key for key in recipe if key != "scores"] == ["seed_everything", "model", "data", "trainer"]
    assert isinstance(recipe["seed_everything"], int) and recipe["trainer"]["max_steps"] > 0


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--debug` runs it in seconds: training, validation, test, a bundle, and scores by the documented names."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = recipe["data"]["source"]
    while isinstance(source, dict) and "source" in source.get("init_args", {}):  # such as a captioned one
        source = source["init_args"]["source"]
    write = WRITERS[source if isinstance(source, str) else source["class_path"]]
    data = tmp_path / f"data_{path.stem}"
    data.mkdir()
    write(data, monkeypatch)
    monkeypatch.chdir(tmp_path)
    where = [f"--data.path={data}"] if write is not write_nothing else []
    assert main(["train", name_of(path), "--debug", "--n_samples=0", *where]) == 0

    run = tmp_path / "runs" / path.stem / "0"
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["recipe"] == name_of(path) and metrics["seed"] == recipe["seed_everything"]
    assert metrics["training_seconds"] > 0 and metrics["steps"] == 4
    assert metrics["symbols_seen"] > 0 and metrics["n_parameters"] > 0
    assert set(metrics["versions"]) >= {"armm", "torch", "lightning", "python"}
    scored = set(recipe["model"].get("layout", recipe["model"]["modalities"])) - set(
        recipe["data"].get("conditions", [])
    )
    for split in ("val", "test"):
        found = set(metrics[split]) - {"structure"}
        assert found <= scored if "layout" not in recipe["model"] else found == scored
        for name in found:
            bits, nats = sorted(metrics[split][name])
            assert re.fullmatch("bits_per_(dim|byte|char|sample|token|label|residue)", bits)
            assert re.fullmatch("nats_per_(image|frame|byte|char|sample|token|label|residue)", nats)
            assert 0 < metrics[split][name][bits] < 20
    model = bundle.load(run)
    assert model.n_parameters == metrics["n_parameters"] and list(model.modalities) == list(
        recipe["model"]["modalities"]
    )
    if "scores" in recipe:
        assert metrics["scores"] and all(own["n_trials"] > 0 for own in metrics["scores"].values())
        assert all(np.isfinite(own["value"]) for own in metrics["scores"].values())
    assert (run / "config.yaml").is_file() and list(run.glob("events.out.tfevents*"))
