"""`armm demo`: its page stands alone and tells the truth, and its folder takes nothing of anyone else's."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import wave
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image as Picture

from armm.cli import COMMANDS
from armm.commands import generate
from armm.datasets import ListOfItems, Splits
from armm.demo import command
from armm.demo.charts import Line, line_chart, smooth, ticks
from armm.demo.measure import baselines, read_curves, read_metrics
from armm.demo.media import spectrogram
from armm.demo.plan import IMAGE, PLANS, Plan
from armm.demo.report import printable
from armm.errors import InputError
from armm.modalities import Image, Text
from armm.training.command import find_recipe

# ---------------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a page refers to, says and shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.commands: list[str] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.append((tag, given))
        self.addresses += [given[key] for key in ("src", "href", "srcset", "poster", "data", "action") if key in given]
        if tag == "code":
            self.commands.append("")
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._inside.pop()

    def handle_data(self, data: str) -> None:
        if "code" in self._inside:
            self.commands[-1] += data
        if "style" not in self._inside:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.tags if name == tag]


def content(address: str, kind: str) -> bytes:
    head, _, body = address.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(body, validate=True)


def test_quick_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole demo in seconds: one page without requests, with every section, true numbers, and commands that run."""
    monkeypatch.chdir(tmp_path)
    assert command.run(["--quick"]) == 0
    out = Path("runs/demo")
    html = (out / "report.html").read_text(encoding="utf-8")
    page = Page(html)

    # nothing is fetched: every address is inside the page, and the browser is told to refuse any other
    assert [address[:40] for address in page.addresses if not address.startswith(("data:", "#"))] == []
    assert "@import" not in html and not re.search(r"url\((?!data:)", html)
    assert any("default-src 'none'" in given.get("content", "") for given in page.all("meta"))
    assert "<script" not in html

    # every part is there, and links lead somewhere
    ids = {given["id"] for _, given in page.tags if "id" in given}
    assert {"text", "image", "audio", "conditions"} <= ids
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= ids
    headings = "".join(page.text)
    for heading in ("Text", "Images", "Audio", "Unprompted", "Prompted", "Test data, for comparison", "Conditions"):
        assert heading in headings
    assert "quick run" in headings, "models of 20 steps must not pass for trained ones"

    # charts are well-formed, pictures and sounds are what they say, and each has words
    charts = re.findall(r'<svg class="chart" .*?</svg></svg>', html)
    assert len(charts) == len(PLANS)
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-label")
        assert len(root.findall(".//polyline")) >= 3
    assert len(page.all("img")) >= 9
    for given in page.all("img"):
        assert given["alt"]
        Picture.open(io.BytesIO(content(given["src"], "image/png"))).load()
    assert len(page.all("audio")) >= 5
    for given in page.all("audio"):
        assert given["aria-label"] and "controls" in given
        with wave.open(io.BytesIO(content(given["src"], "audio/wav"))) as file:
            assert file.getframerate() == 8000 and file.getnframes() > 100

    # numbers are those of the runs
    for plan in PLANS:
        metrics = json.loads((out / plan.name / "metrics.json").read_text(encoding="utf-8"))
        [bits] = [value for key, value in metrics["test"][plan.name].items() if key.startswith("bits")]
        assert f"<strong>{bits:.3f}</strong>" in html
        assert f"{metrics['n_parameters']:,} parameters" in html
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["complete"]

    # commands name what exists; the last of the images makes the same files again
    commands = [shlex.split(line) for line in page.commands if " --" in line]
    done = [words[words.index("-m") + 2 :] if "-m" in words else words[1:] for words in commands]
    assert {words[0] for words in done} == {"train", "generate", "demo"} <= set(COMMANDS)
    for words in done:
        if words[0] == "train":
            assert find_recipe(words[1]).is_file()
        elif words[0] == "generate":
            options = generate.parser().parse_args(words[1:])
            assert Path(options.run).is_dir() and options.out.is_dir()
    [words] = [words for words in done if str(out / "samples" / "image-prompt-0") in words]
    assert generate.run([*words[1:-1], "again"]) == 0
    made = {path.name: path.read_bytes() for path in Path("again").iterdir()}
    assert made and made == {path.name: path.read_bytes() for path in (out / "samples" / "image-prompt-0").iterdir()}


def test_text_of_a_sample_cannot_break_the_page() -> None:
    """Markup, stray bytes, half surrogates of a byte-level model and control characters all come out as text."""
    assert printable("<b>&\n\t") == "&lt;b&gt;&amp;\n\t"
    assert printable("a\udcffb") == "a\ufffdb"
    assert printable("\x00\x1b[0m\x7f") == "\u2400\u241b[0m\u2421"


# ------------------------------------------------------------------- the folder


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """A mistyped --out must not cost anyone a file, even where something is called demo.json or text."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "thesis.txt").write_text("mine")
    for marker in (None, "not json", "[1]", '{"made_by": "me"}'):
        if marker is not None:
            (tmp_path / "demo.json").write_text(marker)
        with pytest.raises(InputError, match="not an earlier demo"):
            command.prepare(tmp_path)
    assert (tmp_path / "text" / "thesis.txt").read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        command.prepare(tmp_path / "demo.json")


def test_earlier_demo_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    """A second demo starts anew, but someone's note beside the first one stays, and so does what links lead to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("mine")
    out = tmp_path / "demo"
    command.prepare(out)
    (out / "text" / "model").mkdir(parents=True)
    (out / "samples").symlink_to(elsewhere, target_is_directory=True)
    for name in ("report.html", "note.txt", "text/model/weights"):
        (out / name).write_text("old")
    command.prepare(out)
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "note.txt"]
    assert (elsewhere / "keep").read_text() == "mine"
    assert not json.loads((out / "demo.json").read_text())["complete"]


# ------------------------------------------------------- failures and interruptions


def test_failed_training_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that fails is an error of one line, not a report with holes."""
    popen = subprocess.Popen
    failing = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: popen(failing, **options))
    with pytest.raises(InputError, match="exit code 2"):
        command.run(["--out", str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def test_interrupted_demo_writes_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in a training: exit code 130, a message, and no numbers that nobody measured."""

    def interrupt(plan: Plan, out: Path, quick: bool) -> tuple[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "train", interrupt)
    assert command.run(["--out", str(tmp_path)]) == 130
    assert not (tmp_path / "report.html").exists()
    assert "stopped while training text/stdlib; no report was written" in capsys.readouterr().err
    command.prepare(tmp_path)  # and the next demo may use the folder


@pytest.mark.parametrize(
    ("on_interrupt", "expected"), [("sys.exit(130)", 130), ("signal.signal(2, signal.SIG_IGN)", -signal.SIGKILL)]
)
def test_training_is_not_left_behind(on_interrupt: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches a training that the terminal did not tell, waits until it has saved, and ends one that hangs."""
    monkeypatch.setattr(command, "PATIENCE_SECONDS", 1.0)
    code = (
        f"import sys, signal, time\nprint(1, flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: {on_interrupt}"
    )
    process = subprocess.Popen([sys.executable, "-c", f"{code}\ntime.sleep(60)"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), command.interruptible(process):
        raise KeyboardInterrupt
    process.stdout.close()
    assert process.returncode == expected
    assert time.monotonic() - began < 30


def test_run_without_test_scores_is_refused(tmp_path: Path) -> None:
    """A run that stopped early has no test numbers, and none are made up."""
    (tmp_path / "metrics.json").write_text('{"test": {}, "val": {"text": {"bits_per_byte": 2.0}}}')
    with pytest.raises(InputError, match="no test scores"):
        read_metrics(tmp_path)


# --------------------------------------------------------------------- numbers


def test_curves_are_read_by_steps_made(tmp_path: Path) -> None:
    """Rows count steps from 0, and the validation after the training repeats the last one."""
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,test/x,train/nats,val/x/bits\n"
        "0,9,,2.5,\n0,9,,,4.0\n0,19,,2.0,\n0,19,,,3.0\n1,20,,,3.0\n1,20,2.9,,\n",
        encoding="utf-8",
    )
    assert read_curves(path, "val/x/bits", 20) == ([(10, 2.5), (20, 2.0)], [(10, 4.0), (20, 3.0)])


def test_text_baselines_are_per_byte() -> None:
    """A tokenised model's bits are per byte, so every baseline is of the bytes, and of the test text alone."""
    train, test = "abab" * 300, "abba" * 100
    text = Text(kind="bpe", vocab_size=260).fit([train])
    kept, held_out = (ListOfItems([{"text": raw}]) for raw in (train, test))
    splits = Splits(kept, kept, held_out)
    found = {baseline.name: baseline.bits for baseline in baselines(text, splits)}
    assert found["uniform"] == 8
    assert found["unigram"] == pytest.approx(-np.log2(601 / (1200 + 256)))
    assert found["gzip"] == 8 * len(gzip.compress(test.encode(), 9)) / len(test)
    assert set(found) == {"uniform", "unigram", "bigram", "gzip", "xz", "xz, primed"}


def test_image_baselines_know_places() -> None:
    """Images whose pixels never change cost little by place, and a bit a pixel by frequency."""
    image = Image(size=(2, 2), levels=2)
    raw = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    kept, held_out = (ListOfItems([{"image": raw}] * n) for n in (500, 20))
    splits = Splits(kept, kept, held_out)
    found = {baseline.name: baseline.bits for baseline in baselines(image, splits)}
    assert found["uniform"] == 1 and found["unigram"] == pytest.approx(1)
    assert found["marginal"] < 0.01


# -------------------------------------------------------------- charts and sounds


def test_smoothing_is_not_pulled_to_zero() -> None:
    """A moving average that starts at zero would show a curve that rises where nothing does."""
    assert smooth([(1, 2.0), (2, 2.0), (3, 2.0)]) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert 1 < smooth([(1, 2.0), (2, 1.0)])[1][1] < 2


@pytest.mark.parametrize(("low", "high"), [(0, 440), (1.62, 2.9), (0, 1), (-0.3, 0.2), (3, 3.001)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    """Neither a crowded axis nor an empty one, nor ticks outside the plot."""
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_chart_escapes_its_labels() -> None:
    """A label is data: it must not be able to end the attribute or the element it stands in."""
    chart = line_chart('a"<', [Line("", [(0, 1), (10, 2)], "training")], "step", (0, 3), 'about "<&')
    assert ElementTree.fromstring(chart).get("aria-label") == 'about "<&'


def test_spectrogram_shows_a_tone_at_its_height() -> None:
    """Frequencies grow upwards, and the brightest row is the tone's."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000).astype(np.float32)
    brightness = spectrogram(tone, 8000).astype(float).sum(axis=2)
    row = int(brightness[:, 100].argmax())
    height = brightness.shape[0] - 1
    assert (height - row) / height * 4000 == pytest.approx(1000, abs=32)
    assert spectrogram(np.zeros(5, dtype=np.float32), 8000).shape[0] == 129, "even of a clip shorter than its window"


def test_prompts_leave_something_to_continue() -> None:
    """A prompt as large as its image would leave nothing to sample."""
    assert all(0 < plan.beginning < 1 for plan in PLANS)
    assert all(sampling.item is None or sampling.item < IMAGE.n_originals for sampling in IMAGE.samplings)
