"""The user's own files: which are read, how they are dealt out, and what is said when that fails."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from armm.backbones import Transformer
from armm.datasets import Folder, Items, Splits
from armm.datasets import files as files_module
from armm.datasets.files import FileItems, FileList, list_files, split_by_hash
from armm.errors import InputError
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Segment
from armm.training import DataModule
from armm.training import data as data_module

TEXT = {"text": Text(kind="bytes")}
IMAGE = {"image": Image(size=(2, 2), levels=4)}
LABELLED = {"label": Label(), **IMAGE}


@dataclass(frozen=True)
class Number(Modality):
    """A plug-in: an integer in a file that ends in .num."""

    name: str = "number"
    vocab: int = 10
    suffixes: ClassVar[tuple[str, ...]] = (".num",)

    def encode(self, raw: Any) -> Segment:
        return Segment(self.name, torch.tensor([[raw]]))

    def decode(self, segment: Segment) -> Any:
        return int(segment.symbols[0, 0])

    def load(self, path: Path) -> int:
        return int(path.read_text())


def write_images(folder: Path, n: int, ending: str = ".png") -> None:
    """`n` pictures, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.array([[i % 4, i // 4 % 4], [i // 16 % 4, 0]], dtype=np.uint8)
        IMAGE["image"].save(pixels, folder / f"{i:03d}{ending}")


def all_items(items: Items) -> list[dict[str, Any]]:
    return [items.item(i, draw=0) for i in range(len(items))]


def parts(splits: Splits) -> list[list[dict[str, Any]]]:
    return [all_items(split) for split in (splits.train, splits.val, splits.test)]


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------- texts


def test_one_text_is_cut_into_parts_that_follow_each_other(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(100))
    (tmp_path / "a.txt").write_text(text)
    for path in (tmp_path / "a.txt", tmp_path):
        train, val, test = parts(Folder(val=0.2, test=0.1).load(TEXT, path, "fail"))
        assert [item["text"] for item in train + val + test] == [text[:70], text[70:90], text[90:]]


def test_a_named_text_is_read_whatever_its_ending(tmp_path):
    (tmp_path / "LICENSE").write_text("x" * 50)
    assert all_items(Folder().load(TEXT, tmp_path / "LICENSE", "fail").train) == [{"text": "x" * 40}]


def test_few_texts_are_cut_each(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(str(i) * 20)
    train, val, test = parts(Folder().load(TEXT, tmp_path, "fail"))
    assert [item["text"] for item in train] == [str(i) * 16 for i in range(9)]
    assert [item["text"] for item in val] == [item["text"] for item in test] == [str(i) * 2 for i in range(9)]


def test_many_texts_are_dealt_out_whole(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    train, val, test = parts(Folder().load(TEXT, tmp_path, "fail"))
    assert [len(train), len(val), len(test)] == [16, 2, 2]
    assert sorted(item["text"] for item in train + val + test) == sorted(f"text {i}" for i in range(20))


def test_a_text_too_short_to_cut_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(InputError) as error:
        Folder().load(TEXT, tmp_path, "fail")
    assert "a.txt" in message(error) and "3 characters" in message(error)


# ------------------------------------------------------------ files and labels


def test_images_keep_their_pixels_and_take_their_folder_as_label(tmp_path):
    write_images(tmp_path / "cat", 6)
    write_images(tmp_path / "dog" / "deep", 6)
    splits = parts(Folder().load(LABELLED, tmp_path, "fail"))
    items = [item for part in splits for item in part]
    assert Counter(item["label"] for item in items) == {"cat": 6, "dog": 6}
    seen = {item["image"].tobytes() for item in items}
    assert len(seen) == 6 and all(item["image"].max() < 4 for item in items)


def test_without_a_label_modality_folders_are_only_folders(tmp_path):
    write_images(tmp_path / "cat", 4)
    splits = parts(Folder().load(IMAGE, tmp_path, "fail"))
    assert all(item.keys() == {"image"} for part in splits for item in part)


def test_endings_in_any_case_count_and_hidden_and_other_files_do_not(tmp_path):
    write_images(tmp_path, 5, ".PNG")
    write_images(tmp_path / ".cache", 3)
    write_images(tmp_path / "sub", 1)
    (tmp_path / "sub" / "000.png").rename(tmp_path / "sub" / ".hidden.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    splits = Folder().load(IMAGE, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [3, 1, 1]


def test_a_loop_of_links_ends_and_linked_folders_count_once(tmp_path):
    write_images(tmp_path / "data" / "real", 3)
    (tmp_path / "data" / "real" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    write_images(tmp_path / "elsewhere", 2)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    names = [path.relative_to(tmp_path / "data").as_posix() for path in list_files(tmp_path / "data", [".png"])]
    assert names == ["linked/000.png", "linked/001.png", "real/000.png", "real/001.png", "real/002.png"]


def test_files_beyond_the_memory_limit_are_read_again(tmp_path, monkeypatch):
    write_images(tmp_path, 10)
    kept = Folder().load(IMAGE, tmp_path, "fail")
    monkeypatch.setattr(files_module, "IN_MEMORY_BYTES", 8)
    reread = Folder().load(IMAGE, tmp_path, "fail")
    for a, b in zip(parts(kept), parts(reread), strict=True):
        np.testing.assert_array_equal([item["image"] for item in a], [item["image"] for item in b])
    assert isinstance(reread.train, FileItems) and len(reread.train.kept) == 2  # of 4 bytes each


class Counted(Image):
    """Counts how many files are read."""

    read: ClassVar[list[Path]] = []

    def load(self, path: Path) -> Any:
        self.read.append(path)
        return super().load(path)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 pictures in two folders, which are more than are read before training."""
    monkeypatch.setattr(files_module, "READ_FIRST", 30)
    monkeypatch.setattr(files_module, "SAMPLE", 4)
    Counted.read.clear()
    for kind in ("cat", "dog"):
        write_images(tmp_path / kind, 20)
    return tmp_path


def test_of_many_files_few_are_read_before_training(many, monkeypatch):
    """A folder of a million images would otherwise be decoded before the first step, labels and order included."""
    modalities = {"label": Label(), "image": Counted(size=(2, 2), levels=4)}
    data = DataModule(Folder(), str(many), batch_size=2, n_val=1)
    fitted = data.fit_modalities(modalities)
    assert fitted["label"].vocab == 2 and len(Counted.read) == 4  # those of the sample
    monkeypatch.setattr(data_module, "READ_FIRST", 1)
    data.attach(AutoregressiveModel(fitted, Transformer(width=8, n_layers=1, n_heads=1), ["label", "image"]).grammar)
    data.train_dataloader()
    assert len(Counted.read) == 4 + 3  # the first of each split
    assert sum(batch.n_rows for batch, _ in data.test_dataloader()) == 4


def test_many_files_give_the_items_that_few_give(many, monkeypatch):
    lazy = parts(Folder().load(LABELLED, many, "fail"))
    monkeypatch.setattr(files_module, "READ_FIRST", 1000)
    for a, b in zip(lazy, parts(Folder().load(LABELLED, many, "fail")), strict=True):
        assert [item["label"] for item in a] == [item["label"] for item in b]
        np.testing.assert_array_equal([item["image"] for item in a], [item["image"] for item in b])


def test_of_many_files_a_damaged_one_is_named_when_it_is_read_or_passed_over(many, capsys):
    for bad in (many / "cat").iterdir():
        bad.write_bytes(bad.read_bytes()[:40])
    items = Folder().load({"image": Image(size=(2, 2), levels=4)}, many, "skip").train
    assert all("image" in items.item(i, 0) for i in range(len(items)))
    assert "left out" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"cat/0\d\d\.png"):
        all_items(Folder().load(IMAGE, many, "fail").train)


def test_files_are_listed_in_little_memory():
    """A million paths would be half a gigabyte."""
    names = [f"class_{i % 10}/picture_{i:07d}.png" for i in range(20_000)]
    tracemalloc.start()
    found = FileList(Path("/data"), iter(names))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert [found[0], found[19_999], found[-1]] == [Path("/data") / names[i] for i in (0, 19_999, -1)]
    assert size < 60 * len(names) and list(found[3:5]) == [Path("/data") / name for name in names[3:5]]
    with pytest.raises(IndexError):
        found[20_000]


def test_a_plug_in_that_reads_files_works_with_folders(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.num").write_text(str(i))
    splits = parts(Folder().load({"number": Number()}, tmp_path, "fail"))
    assert sorted(item["number"] for part in splits for item in part) == [0, 1, 2, 3, 4]


# --------------------------------------------------------------------- splits


NAMES = [f"{kind}/{i}.wav" for kind in "ab" for i in range(50)]


def test_the_split_is_a_partition_that_knows_only_names_and_seed():
    train, val, test = split_by_hash(NAMES, 0.1, 0.2, seed=0)
    assert sorted(train + val + test) == list(range(100)) and [len(val), len(test)] == [10, 20]
    backwards = split_by_hash(NAMES[::-1], 0.1, 0.2, seed=0)
    assert {NAMES[::-1][i] for i in backwards[2]} == {NAMES[i] for i in test}
    assert split_by_hash(NAMES, 0.1, 0.2, seed=1)[2] != test


def test_the_split_is_pinned():
    """Another rule would compare new models with old ones on data that the old ones were trained on."""
    assert split_by_hash([f"{i}.png" for i in range(12)], 0.2, 0.2, seed=0)[1:] == ([7, 8], [1, 2])


def test_one_file_more_moves_few_others():
    before = {NAMES[i] for i in split_by_hash(NAMES, 0.1, 0.1, seed=0)[2]}
    names = [*NAMES, "c/0.wav"]
    after = {names[i] for i in split_by_hash(names, 0.1, 0.1, seed=0)[2]}
    assert len(before - after) <= 1


@pytest.mark.parametrize("val, test", [(0.1, 0.1), (0.9, 0.05), (0.05, 0.9), (0.49, 0.49)])
def test_no_split_is_ever_empty(val, test):
    for n in range(3, 40):
        sizes = [len(part) for part in split_by_hash(NAMES[:n], val, test, seed=n)]
        assert min(sizes) >= 1 and sum(sizes) == n


def test_every_label_has_a_training_file(tmp_path):
    for kind in "abcdefghij":
        write_images(tmp_path / kind, 2)
    for seed in range(5):
        train, val, test = parts(Folder(0.3, 0.3, seed).load(LABELLED, tmp_path, "fail"))
        assert {item["label"] for item in train} == set("abcdefghij") and val and test


# --------------------------------------------------------------------- errors


def test_an_empty_folder_names_itself_and_the_endings(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError) as error:
        Folder().load(IMAGE, tmp_path, "fail")
    assert str(tmp_path) in message(error) and ".png" in message(error) and ".jpg" in message(error)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError) as error:
        Folder().load(IMAGE, tmp_path / "nowhere", "fail")
    assert "nowhere" in message(error) and "no such file" in message(error)


def test_no_path_says_how_to_give_one():
    with pytest.raises(InputError, match=r"--data\.path PATH"):
        Folder().load(IMAGE, None, "fail")


def test_a_damaged_file_ends_the_run_or_is_counted(tmp_path):
    write_images(tmp_path, 4)
    bad = tmp_path / "bad.png"
    bad.write_bytes((tmp_path / "000.png").read_bytes()[:40])
    with pytest.raises(InputError) as error:
        Folder().load(IMAGE, tmp_path, "fail")
    assert "bad.png" in message(error) and "on_error skip" in message(error)
    splits = Folder().load(IMAGE, tmp_path, "skip")
    assert splits.skipped == (bad,)
    assert len(splits.train) + len(splits.val) + len(splits.test) == 4


def test_an_image_of_the_wrong_size_is_named(tmp_path):
    """Its own message comes from the array and cannot know the file."""
    write_images(tmp_path, 4)
    Image(size=(3, 3)).save(np.zeros((3, 3), dtype=np.uint8), tmp_path / "large.png")
    with pytest.raises(InputError) as error:
        Folder().load(IMAGE, tmp_path, "fail")
    assert "large.png" in message(error) and "3x3" in message(error)
    assert Folder().load(IMAGE, tmp_path, "skip").skipped == (tmp_path / "large.png",)


def test_nothing_but_damaged_files_is_an_error_even_when_skipping(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="none of 4 files can be used"):
        Folder().load({"audio": Audio()}, tmp_path, "skip")


def test_too_few_images_say_how_many_are_needed(tmp_path):
    write_images(tmp_path, 2)
    with pytest.raises(InputError, match=r"2 readable files .* at least 3 are needed"):
        Folder().load(IMAGE, tmp_path, "fail")
    with pytest.raises(InputError, match=r"1 readable file .* at least 3 are needed"):
        Folder().load(IMAGE, tmp_path / "000.png", "fail")


def test_too_few_images_for_their_labels(tmp_path):
    for kind in "abc":
        write_images(tmp_path / kind, 1)
    with pytest.raises(InputError, match="at least 5 are needed: one of each of 3 labels"):
        Folder().load(LABELLED, tmp_path, "fail")


def test_a_file_outside_the_label_folders_is_named(tmp_path):
    write_images(tmp_path / "cat", 4)
    write_images(tmp_path, 1)
    with pytest.raises(InputError, match=r"000\.png: has no label"):
        Folder().load(LABELLED, tmp_path, "fail")


@pytest.mark.parametrize(
    "val, test", [(0.0, 0.1), (0.1, 0.0), (-0.1, 0.1), (1.0, 0.1), (0.5, 0.5), (0.1, float("nan"))]
)
def test_impossible_shares_are_refused(tmp_path, val, test):
    write_images(tmp_path, 4)
    with pytest.raises(InputError, match=r"data\.source\."):
        Folder(val, test).load(IMAGE, tmp_path, "fail")


def test_a_model_that_reads_no_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="the model has: label"):
        Folder().load({"label": Label()}, tmp_path, "fail")
