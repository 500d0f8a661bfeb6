"""Bundles: saved and loaded to the same bits, whole or not there, and every damage told in one line."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_modalities import hash_parameters

from armm import bundle
from armm.backbones import NoBackbone, Transformer
from armm.errors import InputError
from armm.heads import Categorical, CausalConv, LogisticMixture
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.model import AutoregressiveModel

SMALL = CausalConv(channels=4, skip=4, hidden_layers=1)
PIXELS = CausalConv(channels=4, dilations=(1, 2))
BACKBONE = Transformer(width=16, n_layers=2, n_heads=2, value_embeddings=True, residual_scalars=True)
WORDS = "the cat sat on the mat with the other cats and that was that\n" * 5


def levels(*shape: int, n: int = 17) -> np.ndarray:
    return (np.arange(int(np.prod(shape))) * 7 % n).astype(np.uint8).reshape(shape)


def wave(n: int) -> np.ndarray:
    return (0.8 * np.sin(np.arange(n) / 3)).astype(np.float32)


CASES: dict[str, tuple[dict[str, Modality], dict[str, Any]]] = {
    "bytes": ({"text": Text(kind="bytes")}, {"text": "naïve\udcff"}),
    "byte patches": ({"text": Text(kind="bytes", unit_symbols=4, ended=True, head=SMALL)}, {"text": "hello"}),
    "chars": ({"text": Text(kind="chars")}, {"text": "the cat"}),
    "tied bpe": ({"text": Text(kind="bpe", vocab_size=270, head=Categorical(tied=True))}, {"text": "the other cat €"}),
    "rows": ({"image": Image(size=(4, 4), levels=17, head=PIXELS)}, {"image": levels(4, 4)}),
    "patches of any size": (
        {"image": Image(max_size=(4, 8), block=(2, 2), levels=17, head=PIXELS)},
        {"image": levels(4, 6)},
    ),
    "colours": (
        {
            "image": Image(
                size=(4, 4),
                channels=3,
                head=CausalConv(channels=4, dilations=(1,), distribution=LogisticMixture(n_components=2)),
            )
        },
        {"image": levels(4, 4, 3, n=256)},
    ),
    "audio": ({"audio": Audio(frame=8, head=SMALL)}, {"audio": wave(21)}),
    "label names and image": (
        {"label": Label(), "image": Image(size=(4, 4), levels=17, head=PIXELS)},
        {"label": "dog", "image": levels(4, 4)},
    ),
}
TRAINING = {"text": [WORDS], "label": ["cat", "dog", "owl"]}


def make(case: str, free: bool = False, **options: Any) -> tuple[AutoregressiveModel, dict[str, Any]]:
    modalities, raws = CASES[case]
    fitted = {name: modality.fit(TRAINING.get(name, [])) for name, modality in modalities.items()}
    model = AutoregressiveModel(fitted, options.pop("backbone", BACKBONE), None if free else list(fitted), **options)
    hash_parameters(model)
    return model.eval(), raws


def nats(model: AutoregressiveModel, raws: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.stream_log_prob([model.modalities[name].encode(raw) for name, raw in raws.items()])


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, _ = make("chars")
    return bundle.save(model, tmp_path / "model", about={"recipe": "text/x"})


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ----------------------------------------------------------------------- round trip


@pytest.mark.parametrize("free", [False, True], ids=["layout", "free"])
@pytest.mark.parametrize("case", CASES)
def test_a_loaded_model_gives_the_same_bits(case: str, free: bool, tmp_path: Path) -> None:
    """Bitwise: weights, buffers, alphabets, merges and class names come back exactly."""
    model, raws = make(case, free=free and case not in ("bytes", "chars", "tied bpe"))
    again = bundle.load(bundle.save(model, tmp_path / "model"))
    assert torch.equal(nats(again, raws), nats(model, raws))
    for name, modality in model.modalities.items():
        assert again.modalities[name].files() == modality.files()
        assert again.modalities[name].vocab == modality.vocab
    assert again.backbone_config == model.backbone_config and not again.training
    assert again.grammar.layout == model.grammar.layout


def test_context_and_no_backbone_come_back(tmp_path: Path) -> None:
    model, raws = make("audio", backbone=NoBackbone(width=8), context=50)
    again = bundle.load(bundle.save(model, tmp_path / "model"))
    assert again.grammar.context == 50
    assert torch.equal(nats(again, raws), nats(model, raws))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model, _ = make("tied bpe")
    folder = bundle.save(model, tmp_path / "model")
    stored = load_file(folder / "weights.safetensors")
    assert len({"embedders.text.weight", "heads.text.weight"} & set(stored)) == 1
    again = bundle.load(folder)
    assert again.head("text").weight is again.embedders["text"].weight  # type: ignore[union-attr]


def test_no_pickle(tmp_path: Path) -> None:
    """JSON, safetensors and a tokenizer: nothing in a bundle can run code. A pickle begins with 0x80, a zip with PK."""
    model, _ = make("tied bpe")
    folder = bundle.save(model, tmp_path / "model")
    assert files(folder) == {"config.json", "weights.safetensors", "text.tokenizer.json"}
    for path in folder.iterdir():
        assert path.read_bytes()[:1] != b"\x80" and path.read_bytes()[:2] != b"PK"
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def test_everyone_may_read_what_everyone_may_read(tmp_path: Path) -> None:
    """The weights have the mode of the other files; safetensors alone makes them unreadable for others."""
    model, _ = make("chars")
    folder = bundle.save(model, tmp_path / "model")
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_about_is_kept(saved: Path) -> None:
    assert bundle.read_config(saved)["about"] == {"recipe": "text/x"}


# ---------------------------------------------------------------------- replacement


def test_a_bundle_is_replaced_whole(saved: Path, tmp_path: Path) -> None:
    """The old tokenizer does not linger beside a model that has none."""
    model, raws = make("rows")
    bundle.save(model, saved)
    assert files(saved) == {"config.json", "weights.safetensors"}
    assert files(tmp_path) == {"model"}
    assert torch.equal(nats(bundle.load(saved), raws), nats(model, raws))


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("before", [True, False], ids=["over a bundle", "anew"])
def test_a_full_disk_leaves_what_was_there(before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, raws = make("chars")
    if before:
        bundle.save(model, tmp_path / "model")
    monkeypatch.setattr(bundle, "save_model", full_disk)
    with pytest.raises(InputError, match="No space left") as error:
        bundle.save(make("rows")[0], tmp_path / "model")
    assert str(tmp_path / "model") in message(error)
    assert files(tmp_path) == ({"model"} if before else set())
    if before:
        assert torch.equal(nats(bundle.load(tmp_path / "model"), raws), nats(model, raws))


def test_a_stop_between_two_renames_leaves_the_old_bundle(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the old bundle has moved away and the new one is not in place yet."""
    rename = Path.rename

    def stop(path: Path, target: Path) -> Path:
        if path.name.startswith(".") and not path.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        bundle.save(make("rows")[0], saved)
    assert files(saved.parent) == {"model"}
    assert list(bundle.load(saved).modalities) == ["text"]


def test_a_linked_folder_stays_a_link(saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to(saved)
    bundle.save(make("rows")[0], link)
    assert link.is_symlink() and list(bundle.load(saved).modalities) == ["image"]


@pytest.mark.parametrize(
    "strange",
    [
        {"notes.txt": "mine"},
        {"config.json": "{}"},  # another library's
        {"config.json": json.dumps({"format": 1}), "weights.safetensors": ""},
    ],
    ids=["a file", "another config", "half a bundle"],
)
def test_what_is_no_bundle_is_not_replaced(strange: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in strange.items():
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="no bundle's") as error:
        bundle.save(make("chars")[0], folder)
    assert str(folder) in message(error)
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == strange
    assert files(tmp_path) == {"model"}


def test_a_bundle_with_something_beside_it_is_not_replaced(saved: Path) -> None:
    """A user's notes in the folder would be gone without a word."""
    (saved / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="no bundle's"):
        bundle.save(make("rows")[0], saved)
    assert (saved / "notes.txt").is_file() and list(bundle.load(saved).modalities) == ["text"]


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="no bundle's"):
        bundle.save(make("chars")[0], tmp_path / "model")
    with pytest.raises(InputError, match="cannot write"):
        bundle.save(make("chars")[0], tmp_path / "model" / "inside")


# --------------------------------------------------------------------------- damage


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change keys of the configuration; None removes one."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del config[key]
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def another_models_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / "weights.safetensors")


def wrong_shapes(folder: Path) -> None:
    stored = load_file(folder / "weights.safetensors")
    save_file({name: torch.zeros(2, 2) for name in stored}, folder / "weights.safetensors")


IMAGE = {"class_path": "armm.modalities.Image", "init_args": {}}
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "another format": (edit(format=2), "format 2.*reads format 1"),
    "no format": (edit(format=None), "format"),
    "no weights": (remove("weights.safetensors"), "weights.safetensors is missing"),
    "no tokenizer": (remove("text.tokenizer.json"), "text.tokenizer.json is missing"),
    "unlisted tokenizer": (edit(files={"text": []}), "alphabet"),
    "damaged tokenizer": (write("text.tokenizer.json", b"{}"), "tokenizer"),
    "binary tokenizer": (write("text.tokenizer.json", b"\xff\xfe\x00"), "tokenizer"),
    "half a config": (truncate("config.json", 0.5), "config.json"),
    "empty config": (write("config.json", b""), "config.json"),
    "binary config": (write("config.json", bytes(range(256))), "config.json"),
    "a list for a config": (write("config.json", b"[]"), "config.json"),
    "a config of zeros": (write("config.json", bytes(100)), "config.json"),
    "no modalities": (edit(modalities=None), "lacks modalities"),
    "empty modalities": (edit(modalities={}), "modality"),
    "modalities in a list": (edit(modalities=[1]), "config.json"),
    "files in a list": (edit(files=[1]), "config.json"),
    "a modality of nothing": (edit(modalities={"text": 7}), "class_path"),
    "an unknown class": (edit(modalities={"text": {"class_path": "armm.modalities.Txet"}}), "Txet"),
    "impossible arguments": (edit(modalities={"text": IMAGE}, files={}), "set either size"),
    "unknown layout": (edit(layout=["words"]), "words"),
    "layout of numbers": (edit(layout=3), "config.json"),
    "context of words": (edit(context="long"), "config.json"),
    "a backbone of nothing": (edit(backbone={}), "class_path"),
    "half the weights": (truncate("weights.safetensors", 0.5), "weights"),
    "weights without a header": (write("weights.safetensors", b"abc"), "weights"),
    "empty weights": (write("weights.safetensors", b""), "weights"),
    "weights of another model": (another_models_weights, "weights"),
    "weights of other shapes": (wrong_shapes, "weights.*size mismatch"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_one_line_that_names_it(damage: str, saved: Path) -> None:
    apply, words = DAMAGES[damage]
    apply(saved)
    with pytest.raises(InputError, match=words) as error:
        bundle.load(saved)
    assert str(saved) in message(error)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_an_unknown_device_is_one_line(device: str, saved: Path) -> None:
    with pytest.raises(InputError, match=device) as error:
        bundle.load(saved, device)
    message(error)


# ---------------------------------------------------------------------- which bundle


def test_a_run_its_model_and_the_newest_of_runs(saved: Path, tmp_path: Path) -> None:
    for version in ("2", "10", "9"):
        shutil.copytree(saved, tmp_path / "runs" / version / "model")
    assert bundle.find(saved) == saved
    assert bundle.find(tmp_path / "runs" / "2") == tmp_path / "runs" / "2" / "model"
    assert bundle.find(tmp_path / "runs") == tmp_path / "runs" / "10" / "model"


@pytest.mark.parametrize("place", ["nowhere", "empty", "file.txt", "file.txt/model"])
def test_no_bundle_is_one_line_that_names_the_place(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError) as error:
        bundle.load(tmp_path / place)
    assert str(tmp_path / place) in message(error)


def test_content_hash_is_of_every_byte_and_name(tmp_path: Path) -> None:
    model, _ = make("rows")
    bundle.save(model, tmp_path / "one")
    bundle.save(model, tmp_path / "two")
    first = bundle.content_hash(tmp_path / "one")
    assert re.fullmatch("[0-9a-f]{16}", first) and bundle.content_hash(tmp_path / "two") == first
    weights = tmp_path / "two" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert bundle.content_hash(tmp_path / "two") != first
    (tmp_path / "one" / "config.json").rename(tmp_path / "one" / "config.jsonx")
    assert bundle.content_hash(tmp_path / "one") != first


def test_a_quantised_model_cannot_be_saved(tmp_path: Path) -> None:
    """Its codes would be taken for weights; the float bundle that is there stays."""
    bundle.save(make("bytes")[0], tmp_path / "float")
    model = bundle.load(tmp_path / "float", weights="int8")
    assert not model.training
    for place in (tmp_path / "new", tmp_path / "float"):
        before = bundle.content_hash(place) if place.exists() else None
        with pytest.raises(InputError, match="quantised"):
            bundle.save(model, place)
        assert (bundle.content_hash(place) if place.exists() else None) == before


def test_a_model_without_large_matrices_cannot_be_quantised(tmp_path: Path) -> None:
    """It says so, rather than going on in float."""
    model = AutoregressiveModel({"image": Image(size=(4, 6), levels=4, head=PIXELS)}, NoBackbone(width=8), ["image"])
    bundle.save(model, tmp_path / "model")
    with pytest.raises(InputError, match="int8"):
        bundle.load(tmp_path / "model", weights="int8")
