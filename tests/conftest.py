"""What every test shares: one thread per process, reproducible examples, and data that the repository does not hold."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Two workers on two cores: more threads than that only fight. Set before torch starts; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would the programs that tests stop by it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run and machine, however slow it is.
settings.register_profile("armm", derandomize=True, deadline=None, database=None)
settings.load_profile("armm")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the checkout, or in the folder that ARMM_TEST_DATA names; skips where there are none."""
    folder = Path(os.environ.get("ARMM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no ../shared/data and no ARMM_TEST_DATA: real data sets are not here")
    return folder
