"""Compiled code that is kept on disk: by what it was made of, and by one process at a time."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

PART = """
from armm.compiled import inner


@inner
def part(x):
    return x + {}
"""
LOOP = """
from armm.compiled import kept
from part_of_loop import part


@kept
def fill(out):
    out[0] = part(out[0])
"""
CALL = """
import numpy as np
from own_loop import fill

out = np.zeros(1)
fill(out)
print(int(out[0]), sum(fill.stats.cache_hits.values()))
"""


def test_code_is_made_anew_when_a_file_that_it_was_made_of_changes(tmp_path: Path) -> None:
    """Numba looks at the age of the function's own file alone, and would go on with what another file said once."""
    (tmp_path / "own_loop.py").write_text(LOOP, encoding="utf-8")
    for addend, n_kept in ((1, 0), (1, 1), (2, 0)):
        (tmp_path / "part_of_loop.py").write_text(PART.format(addend), encoding="utf-8")
        command = [sys.executable, "-B", "-c", CALL]  # no bytecode: both versions may be of one second
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == [str(addend), str(n_kept)], done.stderr


def test_one_process_compiles_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that add to numba's index at once may leave the code of one signature under another."""
    from filelock import FileLock

    (tmp_path / "own_loop.py").write_text(LOOP, encoding="utf-8")
    (tmp_path / "part_of_loop.py").write_text(PART.format(1), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    fill, out = importlib.import_module("own_loop").fill, np.zeros(1)
    fill(np.zeros(1, np.float32))  # what takes a second the first time alone
    waiting = threading.Thread(target=fill, args=(out,))
    with FileLock(Path(fill.stats.cache_path) / "compiling.lock"):  # as another process holds it
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive() and not out[0]
    waiting.join(60)
    assert out[0] == 1
