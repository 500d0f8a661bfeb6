"""Running a command as a user does, and small runs that it trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ended_runs import new, weights
from own_files import SMALL_BACKBONE, Run, write_clips, write_images, write_texts

from armm.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that succeeds; what it prints."""

    def call(*arguments: str | Path) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must refuse: one line that names the command and every given word, exit code 2."""

    def call(arguments: list[str | Path], *words: str) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert code == 2, (code, err)
        assert len(lines) == 1 and lines[0].startswith(f"armm {arguments[0]}: "), err
        assert "Traceback" not in err and all(str(word) in err for word in words), (err, words)
        return out

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, where runs/ and samples/ would appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small trained runs, made by `armm train` on files of the user's own: texts, images in two folders, clips."""
    place = tmp_path_factory.mktemp("trained")
    data = {
        "text": (write_texts(place / "texts"), "text/shakespeare_char", *SMALL_BACKBONE, "--model.context=64"),
        "image": (write_images(place / "images"), "image/digits"),
        "class": (place / "images", "image/digits_class"),
        "audio": (write_clips(place / "clips"), "audio/fsdd", *SMALL_BACKBONE),
    }
    for name, (folder, recipe, *options) in data.items():
        arguments = [f"--data.path={folder}", f"--run_dir={place / name}", "--data.crop=32", "--n_samples=0"]
        if name in ("image", "class"):
            arguments.remove("--data.crop=32")
        assert main(["train", recipe, "--debug", *options, *arguments]) == 0
    return place


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(new(folder)) == 0
    return weights(folder)
