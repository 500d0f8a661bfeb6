"""Training on many devices is training on one: the same losses, and checkpoints that either goes on with.

The ways are DDP, FSDP2 and tensor parallelism, by two processes of gloo on the CPU, with moving averages, accumulated
batches, and documents of different modalities and lengths.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from laws.many_ranks import ADAMW, MUON, N_STEPS, STOP, KillAt, Killed, curve
from laws.test_resume import free_port
from laws.tiny_runs import CASES, Given
from safetensors.torch import load_file
from torch import distributed

from armm import bundle
from armm.cli import main
from armm.errors import InputError
from armm.training import Checkpointing, Checkpoints, DataModule
from armm.training.bundling import model_of
from armm.training.checkpoints import DamagedError, Saved, check, newest

pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Path(__file__).parent
CLOSE = 1e-5  # of losses and norms


def ended(n: int, script: list[str], seconds: float = 200) -> list[subprocess.CompletedProcess[str]]:
    """n processes that train together, in the order of their ranks."""
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(n),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": ":".join([str(HERE.parent), *sys.path[1:]]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *script],
            env=environment | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(script, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def started(n: int, script: list[str]) -> list[str]:
    """What n processes that train together to the end print, in the order of their ranks."""
    found = ended(n, script)
    assert all(one.returncode == 0 for one in found), "\n".join(one.stderr[-3000:] for one in found)
    return [one.stdout for one in found]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A single process's runs; and the folder in which it left some in the middle."""
    folder = tmp_path_factory.mktemp("one")
    found: dict[str, Any] = {"folder": folder}
    for rule, optimization in (("adamw", ADAMW), ("muon", MUON)):
        found[rule] = curve(folder / rule, optimization, 1)
    with contextlib.suppress(Killed):
        curve(folder / "left", MUON, 1, callbacks=[KillAt()])
    return found


@pytest.fixture(scope="module")
def two(one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What each of two processes found, and where."""
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("two")
    for name in ("fsdp", "tensor"):
        shutil.copytree(one["folder"] / "left", folder / "one" / name)
    started(2, [str(HERE / "many_ranks.py"), str(folder)])
    return [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in range(2)], folder


def assert_same(own: dict[str, Any], expected: dict[str, Any]) -> None:
    """The steps that both took, the validations, and the weights at the end."""
    n = min(len(own["steps"]), len(expected["steps"]))
    assert n >= N_STEPS - STOP
    torch.testing.assert_close(own["steps"][-n:], expected["steps"][-n:], rtol=CLOSE, atol=CLOSE)
    for step, bits in own["validations"].items():
        assert bits == pytest.approx(expected["validations"][step], rel=CLOSE)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(own["weights"][name], weight, rtol=0.0, atol=10 * CLOSE)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensor"])
def test_two_processes_learn_what_one_does(
    way: str, rule: str, one: dict[str, Any], two: tuple[list[dict[str, Any]], Path]
) -> None:
    """To 1e-5: documents are not of one length or modality, so means of means, a gradient that a process lacks, or
    heads' weights in another order would show; as would a Muon that orthogonalises parts of matrices."""
    assert_same(two[0][0][f"{way} {rule}"], one[rule])
    assert len({step[0] for step in one[rule]["steps"]}) == N_STEPS


def test_parts_are_resumed_exactly(two: tuple[list[dict[str, Any]], Path]) -> None:
    """Law 8 for FSDP2: bitwise, every process's part of weights, moments and average."""
    resumed, never_stopped = ([found[name]["digest"] for found in two[0]] for name in ("resumed", "fsdp muon"))
    assert resumed == never_stopped and resumed[0] != resumed[1]


def test_one_process_goes_on_where_two_stopped(
    one: dict[str, Any], two: tuple[list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    shutil.copytree(two[1] / "left", tmp_path / "left")
    saved = newest(tmp_path / "left")
    assert saved is not None and saved.path.is_dir() and saved.step == STOP
    resumed = curve(tmp_path / "left", MUON, 1)
    assert len(resumed["steps"]) == N_STEPS - STOP
    assert_same(resumed, one["muon"])


@pytest.mark.parametrize("way", ["fsdp", "tensor"])
def test_two_processes_go_on_where_one_stopped(
    way: str, one: dict[str, Any], two: tuple[list[dict[str, Any]], Path]
) -> None:
    resumed = two[0][0][f"one, then {way}"]
    assert len(resumed["steps"]) == N_STEPS - STOP
    assert_same(resumed, one["muon"])


@pytest.mark.parametrize("way", ["fsdp", "tensor"])
def test_a_bundle_of_parts_has_the_bits_of_the_whole(way: str, two: tuple[list[dict[str, Any]], Path]) -> None:
    """What a checkpoint of parts says of its model is all that is needed; of its weights it has the average."""
    saved = newest(two[1] / way / "adamw")
    assert saved is not None and saved.step == N_STEPS
    model, kind = model_of(saved.path)
    assert kind == "the average of the weights"
    items, options = CASES["mixed"][2], CASES["mixed"][3]
    data = DataModule(Given(items), **options)
    data.fit_modalities(model.modalities)
    data.attach(model.grammar)
    nats = sum(sum(float(part) for part in model.log_prob(b).scored(b)) for b, _ in data.val_dataloader())
    expected = two[0][0][f"{way} adamw"]["validations"][N_STEPS]
    assert nats / torch.log(torch.tensor(2.0)).item() == pytest.approx(expected, rel=1e-6)


def test_damage_to_a_part_is_seen(two: tuple[list[dict[str, Any]], Path], tmp_path: Path) -> None:
    saved = newest(two[1] / "fsdp" / "muon")
    assert saved is not None
    parts = sorted(path.name for path in saved.path.glob("*.distcp"))
    assert len(parts) == 2
    for name in (parts[1], "meta.pt", ".metadata"):
        copy = tmp_path / name.lstrip(".")
        shutil.copytree(saved.path, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
            check(copy)


def test_processes_that_would_go_on_differently_say_so(tmp_path: Path) -> None:
    """Only the first reads all of a checkpoint of parts, and may find it damaged; the others would wait for it."""
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda own: (own[0], "step-2.ckpt")))
    module: Any = None
    first, other = (Saved(tmp_path / f"step-{step}.ckpt", step, 0, 0.0) for step in (2, 4))
    for own in (other, None):
        with pytest.raises(InputError, match=r"step-2\.ckpt, this one"):
            Checkpoints(tmp_path, Checkpointing(), own).setup(trainer, module, "fit")
    Checkpoints(tmp_path, Checkpointing(), first).setup(trainer, module, "fit")


SMALL = (
    "--model.modalities.image.init_args.head.init_args.channels=4",
    "--model.backbone.init_args={width: 16, n_layers: 1, n_heads: 2}",
    "--model.activation_checkpointing=true",
    "--data.n_val=4",
    "--trainer.limit_test_batches=2",
    "--trainer.val_check_interval=2",
    "--trainer.accelerator=cpu",
    "--trainer.precision=bf16-mixed",
    "--n_samples=0",
)


def test_a_run_goes_on_with_two_processes_from_the_command_line(tmp_path: Path) -> None:
    """By recipe keys. What it leaves is a run like any other; its checkpoint of parts becomes a bundle here."""
    run = tmp_path / "run"
    assert (
        main(["train", "image/digits", *SMALL, "--data.batch_size=8", "--trainer.max_steps=2", f"--run_dir={run}"]) == 0
    )
    two = ["--trainer.strategy=sharded", "--trainer.devices=2", "--data.batch_size=4", "--trainer.max_steps=4"]
    output = started(2, ["-m", "armm.cli", "train", "--resume", str(run), *two])[0]
    assert "step 2" in output
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert scores["steps"] == 4 and scores["test"]["image"]["bits_per_dim"] > 0 and scores["speed"]["tflops"] > 0
    saved = newest(run)
    assert saved is not None and saved.path.is_dir() and saved.step == 4
    assert main(["consolidate", str(run), f"--out={tmp_path / 'bundle'}"]) == 0
    own, written = (load_file(place / "weights.safetensors") for place in (tmp_path / "bundle", run / "model"))
    assert own.keys() == written.keys() and all(torch.equal(own[name], written[name]) for name in own)
    assert bundle.load(tmp_path / "bundle").n_parameters == scores["n_parameters"]


KILLED = """
import os, signal, sys
from armm.cli import main
from armm.training import GenerativeModule

real = GenerativeModule.training_step

def step(self, data, index):
    if os.environ["LOCAL_RANK"] == "1" and self.trainer.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, data, index)

GenerativeModule.training_step = step
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_process_ends_the_others_with_a_line(tmp_path: Path) -> None:
    """Which neither waits for it nor shows what gloo throws; and the run goes on from its last checkpoint."""
    run = tmp_path / "run"
    keys = ["--data.batch_size=4", "--trainer.max_steps=5", "--checkpoints.minutes=0", f"--run_dir={run}"]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    first, second = ended(2, ["-c", KILLED, "train", "image/digits", *SMALL, *keys, *two])
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == 2, first.stderr
    assert "Traceback" not in first.stderr
    assert first.stderr.splitlines()[-1].startswith("armm train: another process of the training has ended")
    assert f"go on: armm train --resume {run}" in first.stderr
    assert "goes on with checkpoints/step-000000003" in started(2, ["-m", "armm.cli", "train", "--resume", str(run)])[0]
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["steps"] == 5


def test_a_mistake_says_which_process_found_it(tmp_path: Path) -> None:
    for number, one in enumerate(ended(2, ["-m", "armm.cli", "train", "image/digits", "--data.batch_size=0"])):
        assert one.returncode == 2 and len(one.stderr.splitlines()) == 1
        assert one.stderr.strip().endswith("(process 1)") == (number == 1), one.stderr
