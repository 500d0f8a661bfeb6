"""Checkpoints of which every process writes its part, to be read by any number of processes.

A folder as torch.distributed.checkpoint writes it, one file per process, and beside it `meta.pt`: everything else,
with gaps where the tensors belong. What it holds is named, shaped and ordered as in the checkpoint of a single
process, whatever it was written by.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from armm.errors import InputError
from armm.training.digest import digest_of
from armm.training.layout import local

META = "meta.pt"

Place = tuple[str | int, ...]
"""Where in nested dictionaries and lists something stands."""


def is_sharded_checkpoint(path: Path) -> bool:
    return (path / META).is_file()


def write(tree: dict[str, Any], folder: Path) -> dict[str, tuple[int, str]]:
    """Write this process's part of a checkpoint, whose shared tensors are DTensors. All processes take part.

    Returns: size and checksum of every file, by name; for the first process, {} for the others.

    Raises OSError: some process could not write; of all of them.
    """
    places = {key(place): place for place, tensor in tensors_of(tree) if tensor.dim()}
    tensors = {key(place): tensor.detach() for place, tensor in tensors_of(tree) if tensor.dim()}
    rank = distributed.get_rank()
    try:
        save(tensors, storage_writer=FileSystemWriter(str(folder), sync_files=True, thread_count=1))
    except CheckpointException as error:
        raise as_os_error(error, folder) from error
    own = {path.name: digest_of(path) for path in folder.glob(f"__{rank}_*")}
    all_files: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(all_files, own)
    if rank:
        return {}
    without = with_tensors(tree, lambda place, tensor: None if tensor.dim() else tensor)
    torch.save({"tree": without, "places": places}, folder / META)
    rest = {path.name: digest_of(path) for path in (folder / META, folder / ".metadata")}
    return {name: about for files in [*all_files, rest] for name, about in files.items()}


def everything(place: Place) -> bool:
    return True


def read(
    folder: Path, like: Callable[[Place], Tensor | None], only: Callable[[Place], bool] = everything
) -> dict[str, Any]:
    """A checkpoint with this process's part of each tensor.

    Args:
        like: a tensor of the layout that the one at a place shall have; None to have all of it.
        only: says of a place whether what is there is wanted; None stands there if not.

    Raises InputError: it cannot be read.
    """
    try:
        about = torch.load(folder / META, map_location="cpu", weights_only=True)
        reader = PlainReader(str(folder))
        stored = reader.read_metadata().state_dict_metadata
        wanted: dict[str, Tensor] = {}
        places = {name: tuple(place) for name, place in about["places"].items() if only(tuple(place))}
        for name, place in places.items():
            kind = stored[name]
            assert isinstance(kind, TensorStorageMetadata)
            layout = like(place)
            if layout is not None and layout.shape != kind.size:
                raise InputError(
                    f"{folder}: {name} is {tuple(kind.size)} there, the model's is {tuple(layout.shape)}; go on with "
                    "the configuration that it was trained with"
                )
            like_it = torch.empty(kind.size) if layout is None else layout
            wanted[name] = torch.empty_like(like_it, dtype=kind.properties.dtype, requires_grad=False)
        load(wanted, storage_reader=reader, no_dist=not distributed.is_initialized())
    except CheckpointException as error:
        raise InputError(f"{folder} cannot be read: {as_os_error(error, folder)}; name another checkpoint") from error
    except (OSError, pickle.UnpicklingError) as error:
        raise InputError(f"{folder} cannot be read: {error}; name another checkpoint") from error
    tree = about["tree"]
    for name, place in places.items():
        *way, last = place
        at = tree
        for step in way:
            at = at[step]
        at[last] = local(wanted[name])
    return tree


def as_os_error(error: CheckpointException, folder: Path) -> OSError:
    """What failed first, in any process."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    if isinstance(cause, OSError):
        return OSError(cause.errno, f"{cause.strerror or cause} (process {rank})", str(folder))
    return OSError(f"{cause} (process {rank})")


def tensors_of(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """All tensors in nested dictionaries and lists, and where they stand."""
    if isinstance(tree, Tensor):
        yield place, tree
    elif isinstance(tree, dict):
        for name, part in tree.items():
            yield from tensors_of(part, (*place, name))
    elif isinstance(tree, list | tuple):
        for number, part in enumerate(tree):
            yield from tensors_of(part, (*place, number))


def with_tensors(tree: Any, change: Callable[[Place, Tensor], Any], place: Place = ()) -> Any:
    """A copy of nested dictionaries and lists with other tensors, or what takes their places."""
    if isinstance(tree, Tensor):
        return change(place, tree)
    if isinstance(tree, dict):
        return {name: with_tensors(part, change, (*place, name)) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [with_tensors(part, change, (*place, number)) for number, part in enumerate(tree)]
        # a tuple with tensors in it comes back as a list: what was left out of it is put in again
        return parts if any(True for _ in tensors_of(tree)) or isinstance(tree, list) else tuple(parts)
    return tree


def key(place: Place) -> str:
    return "/".join(map(str, place))


# ------------------------------------------------------------------------------- without pickle


class PlainReader(FileSystemReader):
    """Reads where tensors are stored, and builds nothing but descriptions of tensors from it: torch's own would run
    any code that a file asks for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = Descriptions(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class Descriptions(pickle.Unpickler):
    """Raises pickle.UnpicklingError: a file holds something else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in FUNCTIONS or module == Metadata.__module__:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := super().find_class(module, name), torch.dtype):
            return found
        if module.partition(".")[0] == "pathlib" and name.endswith("Path"):
            return PurePosixPath  # where the folder was when it was written
        raise pickle.UnpicklingError(f"{module}.{name} describes no tensor")


FUNCTIONS = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}
