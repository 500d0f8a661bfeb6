"""From a source's raw items to batches: encode, crop, put in a reproducible order, collate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from armm.datasets import Items, Source, Splits
from armm.datasets.documents import Documents
from armm.datasets.source import spread
from armm.errors import InputError, nearest
from armm.grammar import Grammar
from armm.modality import Modality
from armm.sequence import Document
from armm.training.loading import (
    Collate,
    CollateDealt,
    CollateToSend,
    DealtBatches,
    TrainingLoader,
    TrainingSet,
    Windows,
    crop,
    leave_signals_to_the_training,
)
from armm.training.order import Drawn, Slots, StatelessBatches
from armm.training.position import Position
from armm.training.ranks import DataRank, data_rank
from armm.windows import windows

READ_FIRST = 4096  # documents of validation and of test that are read and checked before training
SHOWN = 100  # names of what was left out
SAMPLE = 64  # documents that are read to tell lengths from sizes


def _sizes(items: Items, block: int) -> np.ndarray:
    sizes = items.sizes(block)
    assert sizes is not None, "sizes are known of all blocks or of none"
    return sizes


def checksum(document: Document) -> str:
    """Of its modalities and symbols."""
    hashing = hashlib.sha256()
    for segment in document:
        hashing.update(f"{segment.modality} {segment.n_units} ".encode())
        hashing.update(segment.flat().numpy().tobytes())
    return hashing.hexdigest()[:12]


class DataModule(L.LightningDataModule):
    """Batches for training, validation and test.

    Args:
        source: where the data comes from.
        path: your own file or folder, or where a downloaded set lies; the source's own place by default.
        batch_size: documents per step.
        crop: units of a training window of long texts and clips; as many as the context has room for by default.
        eval_window: units of a window when scoring long texts and clips; twice `crop` by default.
        eval_batch_size: documents side by side when scoring.
        conditions: modalities that are given, not scored: a label in `[label, image]`.
        drop_conditions: share of the training documents that are seen without the conditions they begin with; 0.1 for
            classifier-free guidance (arXiv:2207.12598).
        too_long: a document that is longer than the model's context is cut into windows (`split`), or ends the run with
            its name (`refuse`).
        n_val: score at most so many documents or windows at each validation; all by default. The test is always whole.
        on_error: an unreadable file ends the run (`fail`), or is left out and counted (`skip`).
        num_workers: processes that load data; 0 loads in the main one.
        seed: of the order, the crops and the augmentation.
    """

    def __init__(
        self,
        source: Source,
        path: str | None = None,
        batch_size: int = 32,
        crop: int | None = None,
        eval_window: int | None = None,
        eval_batch_size: int = 64,
        conditions: list[str] | None = None,
        drop_conditions: float = 0.0,
        n_val: int | None = None,
        too_long: Literal["split", "refuse"] = "split",
        on_error: Literal["fail", "skip"] = "fail",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("crop", crop, 1),
            ("eval_window", eval_window, 2),
            ("n_val", n_val, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"data.{key} is {value}, it must be at least {least}")
        if not 0 <= drop_conditions < 1:
            raise InputError(f"data.drop_conditions is {drop_conditions}, it must be at least 0 and less than 1")
        if drop_conditions and not conditions and not source.marks_conditions:
            raise InputError("data.drop_conditions drops what data.conditions names, which is nothing; name some there")
        self.drop_conditions = drop_conditions
        self.source, self.path = source, Path(path) if path is not None else None
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.crop = crop
        self.eval_window = 2 * crop if eval_window is None and crop is not None else eval_window
        self.conditions, self.n_val = conditions or [], n_val
        self.on_error: Literal["fail", "skip"] = on_error
        self.num_workers, self.seed, self.too_long = num_workers, seed, too_long
        self.splits: Splits | None = None
        self.grammar: Grammar | None = None
        self.n_left_out = 0
        """Files and documents that cannot be used, with `on_error` "skip"."""
        self._checksum = ""  # of the first training document, by which a run that goes on knows its data again
        self._position: Position | None = None  # where the next training loader begins
        self._order: Callable[[int, int], StatelessBatches] | None = None

    # ------------------------------------------------------------ preparation

    def fit_modalities(self, modalities: Mapping[str, Modality]) -> dict[str, Modality]:
        """Load the data, and let the modalities learn their vocabularies from its training part.

        Raises InputError: no data, or data that does not fit.
        """
        if self.splits is None:
            self.splits = self.source.load(modalities, self.path, self.on_error)
            skipped = self.splits.skipped
            self.n_left_out = len(skipped)
            for name in skipped[:SHOWN]:
                print(f"left out {name}")
            if len(skipped) > 1:
                print(f"left out {len(skipped)} in all")
        train, fitted = self.splits.train, dict(self.splits.fitted)
        for name, modality in modalities.items():
            if name not in fitted:
                learns = type(modality).fit is not Modality.fit
                fitted[name] = modality.fit(train.values(name)) if learns else modality
        return {name: fitted[name] for name in modalities}

    def attach(self, grammar: Grammar) -> None:
        """Encode for models of this grammar from now on.

        Raises InputError: conditions that do not fit the model, or data that does not.
        """
        for name in self.conditions:
            if name not in grammar.modalities:
                known = ", ".join(grammar.names)
                raise InputError(
                    f"data.conditions names {name!r}; the modalities are {known}{nearest(name, grammar.names)}"
                )
        if set(self.conditions) >= set(grammar.layout or grammar.names):
            raise InputError(f"data.conditions names {', '.join(self.conditions)}, so nothing is left to learn")
        self.grammar = grammar
        self.train = Documents(self._split("train"), grammar, self.conditions, self.too_long == "refuse")
        self.val = Documents(self._split("val"), grammar, self.conditions, self.too_long == "refuse")
        self.test = Documents(self._split("test"), grammar, self.conditions, self.too_long == "refuse")
        # what does not fit shows now, before a run has a folder
        first = self.train.document(0, 0)
        grammar.check(crop(first, grammar, self.crop, 0))
        self._checksum = checksum(first)
        self._pieces: dict[str, Sequence[Document]] = {}
        for split, documents, at_most in (("val", self.val, self.n_val), ("test", self.test, None)):
            if documents.items.encoded or len(spread(len(documents), at_most)) > READ_FIRST:
                grammar.check(windows(documents.document(0, 0), grammar, self.eval_window)[0])
            else:
                self._pieces[split] = self._windows(documents, at_most)

    def _split(self, name: Literal["train", "val", "test"]) -> Items:
        assert self.splits is not None, "fit_modalities comes first"
        items: Items = getattr(self.splits, name)
        if not len(items):
            raise InputError(f"the {name} split of the data is empty; give more data or another split")
        return items

    def unigram(self, name: str, n_items: int = 200) -> torch.Tensor:
        """(V,) log-frequency, with one added to each count, of a modality's symbols in some of the training data."""
        assert self.grammar is not None, "attach comes first"
        vocab = self.grammar.modalities[name].vocab
        counts = torch.ones(vocab)
        for index in spread(len(self.train), n_items):
            for segment in self.train.document(index, index):
                if segment.modality == name:
                    counts += torch.bincount(segment.flat(), minlength=vocab)
        return (counts / counts.sum()).log()

    # ---------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.grammar is not None, "attach comes first"
        rank, n_ranks = self._rank()
        self._order = partial(StatelessBatches, self._slots(), self.batch_size, self.seed)
        (epoch, batch), self._position = self._position or Position(0, 0), None
        order = self._order(rank, n_ranks)
        order.begin(epoch, batch)  # what comes before is not loaded
        collate = Collate(self.grammar)
        return TrainingLoader(
            TrainingSet(self.train, self.crop, self.drop_conditions),
            batch_sampler=order,
            collate_fn=CollateToSend(collate) if self.num_workers else collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=leave_signals_to_the_training,
        )

    def items_of(self, epoch: int, batches: Iterable[int]) -> list[dict[str, Any]]:
        """What some batches of an epoch consist of, on all ranks: items by number, draws, and files where there are."""
        assert self._order is not None, "train_dataloader comes first"
        n_ranks = self._rank().n_ranks
        keys = []
        for rank in range(n_ranks):
            order = self._order(rank, n_ranks)
            order.begin(epoch, 0)
            for batch in batches:
                keys += order.batch(batch)
        names = {i: self.train.items.where(i) for i, _ in keys}
        return [{"item": i, "draw": draw, **({"file": names[i]} if names[i] else {})} for i, draw in keys]

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data, and what must be as it was for the same batches to follow."""
        loop = self.trainer.fit_loop if self.trainer else None
        per_epoch = loop.max_batches if loop else math.inf
        if loop is None or not math.isfinite(per_epoch):
            return {}
        epoch, batch = divmod(loop.total_batch_idx + 1, int(per_epoch))
        return {"epoch": epoch, "batch": batch, "conditions": self._same_order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there.

        Raises InputError: other batches would follow.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        for what, now in self._same_order().items():
            if now != (before := state["conditions"].get(what, now)):
                raise InputError(
                    f"the run cannot go on with the same batches: {what} was {before}, now it is {now}; make it as it "
                    "was, or begin a new run"
                )
        self._position = Position(state["epoch"], state["batch"])

    def _same_order(self) -> dict[str, Any]:
        n_ranks = self._rank().n_ranks
        return {
            "the number of training documents": len(self.train),
            "the checksum of the first of them": self._checksum,
            "data.crop": self.crop,
            "data.batch_size times the number of ranks": self.batch_size * n_ranks,
            "data.seed": self.seed,
        }

    def _rank(self) -> DataRank:
        return data_rank(self.trainer)

    def _slots(self) -> Slots:
        """What an epoch visits: every document, a long one as many times as it takes crops to cover it."""
        items = self.train.items
        known = items.sizes(0) is not None
        # what lies elsewhere is not read for its lengths
        if items.varies or not self._is_ragged() or (items.encoded and not known):
            return Slots(items.blocks())
        measured = [self._lengths(index) for index in (spread(len(items), SAMPLE) if known else range(len(items)))]
        whole, kept = (np.array(lengths, dtype=float) for lengths in zip(*measured, strict=True))
        if not known:
            return Slots.of(np.maximum(np.rint(whole / np.maximum(kept, 1)), 1).astype(int), kept)
        # lengths without reading: some documents tell the units per size, and the longest crop
        starts = np.concatenate([[0], np.cumsum(items.blocks())])
        at = np.array(spread(len(items), SAMPLE))
        blocks = np.searchsorted(starts, at, "right") - 1
        total = sum(_sizes(items, b)[at[blocks == b] - starts[b]].sum() for b in np.unique(blocks).tolist())
        units = whole.sum() / max(total, 1)
        limit = kept.max() if (kept < whole).any() else np.inf

        def drawn(block: int) -> Drawn:
            lengths = _sizes(items, block) * units
            crops = np.minimum(lengths, limit)
            return np.maximum(np.rint(lengths / np.maximum(crops, 1)), 1).astype(np.int64), crops

        return Slots(items.blocks(), drawn, ragged=True)

    def _lengths(self, index: int) -> tuple[int, int]:
        """Units of the longest segment of a training document, whole and cropped."""
        assert self.grammar is not None
        document = self.train.document(index, index)
        cropped = crop(document, self.grammar, self.crop, 0)
        return max(segment.n_units for segment in document), max(segment.n_units for segment in cropped)

    def _is_ragged(self) -> bool:
        """Whether documents differ in length."""
        assert self.grammar is not None
        modalities = self.grammar.modalities.values()
        return self.grammar.layout is None or any(
            m.ended or m.header_sizes or m.n_units(m.header(())) is None for m in modalities
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._scored("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._scored("test")

    def _scored(self, split: Literal["val", "test"]) -> DataLoader[Any]:
        assert self.grammar is not None, "attach comes first"
        batches = DealtBatches(self._scored_pieces(split), self.eval_batch_size, self._rank())
        collate = CollateDealt(Collate(self.grammar, counted=True))  # a whole batch, where the types say a list
        return DataLoader(batches, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def _scored_pieces(self, split: Literal["val", "test"]) -> Sequence[Document]:
        if split not in self._pieces:  # too many to read before they are needed
            documents, at_most = (self.val, self.n_val) if split == "val" else (self.test, None)
            self._pieces[split] = Windows(documents, self.eval_window, at_most, self._is_ragged())
        return self._pieces[split]

    def validation_documents(self, n: int) -> list[Document]:
        """Some of what validation scores, evenly spread."""
        assert self.grammar is not None, "attach comes first"
        pieces = self._scored_pieces("val")
        return [pieces[i] for i in spread(len(pieces), n)]

    def _windows(self, documents: Documents, at_most: int | None) -> list[Document]:
        """Every unit once, or some windows; documents of like length together."""
        grammar = documents.grammar
        pieces = [
            piece
            for index in spread(len(documents), at_most)
            for piece in windows(documents.document(index, index), grammar, self.eval_window)
        ]
        for piece in pieces:
            grammar.check(piece)
        return sorted(
            (pieces[i] for i in spread(len(pieces), at_most)),
            key=lambda piece: sum(segment.n_units for segment in piece),
        )
