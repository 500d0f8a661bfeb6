"""The demo's page: one HTML file that asks for nothing outside itself, also by its own content security policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from armm.demo.charts import Line, legend, line_chart, smooth
from armm.demo.measure import Measurement, machine
from armm.demo.media import picture_uri, sound_uri, spectrogram
from armm.demo.plan import Plan, Sampling
from armm.errors import InputError
from armm.modality import Modality

PLAIN = {"dim": "pixel"}  # units that have a plainer name
TITLES = {"text": "Text", "image": "Images", "audio": "Audio"}


@dataclass(frozen=True)
class Original:
    """A test item as files: whole, and the beginning that is a prompt."""

    whole: Path
    beginning: Path


@dataclass(frozen=True)
class Samples:
    """What one `armm generate` wrote.

    Attributes:
        sampling: how it was called.
        command: the whole command line.
        files: in the order of their numbers.
        original: the test item that was continued.
    """

    sampling: Sampling
    command: str
    files: list[Path]
    original: Original | None


@dataclass(frozen=True)
class Chapter:
    """One modality of the report.

    Attributes:
        command: the command line that trains its model again.
        seconds: of the training's process, start and test included.
        sampling_seconds: of all its samples.
        originals: a few test items to compare with.
    """

    plan: Plan
    modality: Modality
    measurement: Measurement
    command: str
    seconds: float
    sampling_seconds: float
    samples: list[Samples]
    originals: list[Original]


def write_report(path: Path, chapters: Sequence[Chapter], command: str, seconds: float, quick: bool) -> Path:
    """Write the page.

    Args:
        command: the command line of the demo.
        seconds: of the whole demo.
        quick: whether the models were hardly trained, which the page then says.

    Raises InputError: the file cannot be written.
    """
    style = files("armm.demo").joinpath("style.css").read_text(encoding="utf-8")
    body = [
        _opening(chapters, seconds, quick),
        *(_chapter(chapter) for chapter in chapters),
        _conditions(chapters, command, seconds),
    ]
    page = "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
            "style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>ARMM demo</title><link rel="icon" href="data:,"><style>{style}</style></head><body><main>',
            *body,
            "</main></body></html>\n",
        ]
    )
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write the report: {error.strerror}; check the place and its space") from error
    return path


def printable(text: str) -> str:
    """Text for a page: bytes that are no characters as U+FFFD, control characters as their pictures."""
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    pictures = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
    return escape(whole.translate(pictures))


# --------------------------------------------------------------------- opening


def _opening(chapters: Sequence[Chapter], seconds: float, quick: bool) -> str:
    names = _listed([TITLES[chapter.plan.name].lower() for chapter in chapters])
    parts = [
        '<header><h1>ARMM <span>demo report</span></h1><p class="lead">',
        f"{_number_word(len(chapters))} small autoregressive models, of {names}, trained from scratch on this machine "
        f"in {_minutes(seconds)}, measured in bits on data that they had not seen, and sampled.</p>",
    ]
    if quick:
        parts.append(
            '<p class="note" role="note">This was a quick run of a few steps that shows that everything works. '
            "The models have learned next to nothing; <code>armm demo</code> trains them.</p>"
        )
    head = ("Modality", "Test bits", "Best baseline", "Against it", "Parameters", "Training")
    parts.append('</header><table class="summary"><caption>Results on the test data; fewer bits are better</caption>')
    parts.append("<thead><tr>" + "".join(f'<th scope="col">{name}</th>' for name in head) + "</tr></thead><tbody>")
    for chapter in chapters:
        m, name = chapter.measurement, chapter.plan.name
        cells = (
            f"<strong>{m.bits:.3f}</strong> bits/{m.unit}",
            f"{m.best.bits:.3f} ({escape(m.best.name)})",
            f"{(m.bits / m.best.bits - 1) * 100:+.0f} %".replace("-", "\u2212"),
            f"{m.metrics['n_parameters']:,}",
            f"{m.metrics['training_seconds']:.0f} s",
        )
        row = "".join(
            f'<td data-label="{label}"><span>{cell}</span></td>' for label, cell in zip(head[1:], cells, strict=True)
        )
        parts.append(f'<tr><th scope="row"><a href="#{name}">{TITLES[name]}</a></th>{row}</tr>')
    parts.append("</tbody></table>")
    return "".join(parts)


# -------------------------------------------------------------------- chapters


def _chapter(chapter: Chapter) -> str:
    plan, m = chapter.plan, chapter.measurement
    title = TITLES[plan.name]
    things = {"text": "modules", "image": "images", "audio": "clips"}[plan.name]
    counts = ", ".join(
        f"{m.n_items[split]:,} {words}"
        for split, words in (("train", f"{things} to train on"), ("val", "to validate"), ("test", "to test"))
    )
    facts = (
        f"{m.metrics['n_parameters']:,} parameters",
        f"{m.metrics['steps']:,} steps",
        f"{m.metrics['symbols_seen']:,} symbols seen",
        f"{m.metrics['training_seconds']:.0f} s of training ({chapter.seconds:.0f} s with start and test)",
        f"{_seconds(chapter.sampling_seconds)} of sampling",
        f"seed {m.metrics['seed']}",
    )
    parts = [
        f'<section id="{plan.name}" aria-labelledby="{plan.name}-title"><h2 id="{plan.name}-title">{title}</h2>',
        f"<p>{escape(plan.about)} {counts}: {m.n_test:,} {PLAIN.get(m.unit, m.unit)}s.</p>",
        f'<p class="facts">{" · ".join(facts)}</p>',
        f'<div class="pair"><figure>{_curve(chapter)}</figure>',
        f"{_bits_table(m)}</div>",
        _command("Train this model", chapter.command),
        {"text": _texts, "image": _images, "audio": _sounds}[plan.name](chapter),
        "</section>",
    ]
    return "".join(parts)


def _curve(chapter: Chapter) -> str:
    m, title = chapter.measurement, TITLES[chapter.plan.name]
    trained, best = smooth(m.train), m.best
    late = [bits for step, bits in trained if step >= 0.08 * m.metrics["steps"]]
    shown = [*late, *(bits for _, bits in m.val), best.bits, m.bits]
    margin = 0.08 * (max(shown) - min(shown)) or 0.1
    end = max(step for curve in (m.train, m.val) for step, _ in curve)
    lines = [
        Line("", m.train, "batch"),
        Line("training", trained, "training"),
        Line("validation", m.val, "validation", dots=True),
        Line(f"{best.name} (test)", [(0, best.bits), (end, best.bits)], "reference"),
    ]
    last = f"ends at {m.val[-1][1]:.3f}" if m.val else "was not measured"
    about = (
        f"{title}: bits per {m.unit} over {m.metrics['steps']} training steps. Validation {last}; "
        f"the best baseline, {best.name}, is at {best.bits:.3f}."
    )
    y_range = (min(shown) - margin, max(shown) + margin)
    caption = "Training is the loss of single batches"
    if chapter.plan.name == "text":
        caption += ", from tokens to bytes by the average of the test data"
    chart = line_chart(f"bits/{m.unit}", lines, "step", y_range, about)
    return f'{chart}<div class="keys">{legend(lines)}</div><figcaption>{caption}.</figcaption>'


def _bits_table(m: Measurement) -> str:
    rows = sorted(((b.bits, b.name, b.about, "") for b in m.baselines), reverse=True)
    rows.append((m.bits, "ARMM", "this model", ' class="ours"'))
    longest = max(bits for bits, *_ in rows)
    unit = f"{m.unit} ({PLAIN[m.unit]})" if m.unit in PLAIN else m.unit
    parts = [
        f'<div><table class="bits"><caption>Bits per {unit} of the test data</caption><thead><tr>',
        '<th scope="col">Model</th><th scope="col">Bits</th><th scope="col"><span class="hidden">Bar</span></th>',
        "</tr></thead><tbody>",
    ]
    for bits, name, about, style in rows:
        parts.append(
            f'<tr{style}><th scope="row">{escape(name)}<small>{escape(about)}</small></th><td>{bits:.3f}</td>'
            f'<td class="bar"><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{100 * bits / longest:.2f}" height="10"/></svg></td></tr>'
        )
    parts.append("</tbody></table>")
    if "structure" in m.metrics["test"]:
        ends = m.metrics["test"]["structure"]["bits_per_document"]
        parts.append(f'<p class="small">Where a clip ends costs ARMM {ends:.1f} more bits a clip.</p>')
    return "".join(parts) + "</div>"


# --------------------------------------------------------------------- samples


def _texts(chapter: Chapter) -> str:
    parts = []
    for samples in chapter.samples:
        prompt = samples.sampling.prompt
        parts.append(f"<h3>{escape(samples.sampling.title)}</h3>")
        if prompt:
            parts.append('<p class="small">The prompt is in <b class="prompt">blue</b>.</p>')
        parts.append('<div class="texts">')
        for number, path in enumerate(samples.files):
            text = chapter.modality.load(path)
            given = prompt if text.startswith(prompt) else ""
            start = f'<b class="prompt">{printable(given)}</b>' if given else ""
            parts.append(
                f'<pre class="sample" tabindex="0" aria-label="Text sample {number + 1}">'
                f"{start}{printable(text[len(given) :])}</pre>"
            )
        parts += ["</div>", _command("Sample this", samples.command)]
    return "".join(parts)


def _images(chapter: Chapter) -> str:
    modality, parts = chapter.modality, []
    free = [samples for samples in chapter.samples if samples.original is None]
    for samples in free:
        n = len(samples.files)
        grid = modality.preview([modality.load(path) for path in samples.files]).data
        real = modality.preview([modality.load(original.whole) for original in chapter.originals[:n]]).data
        parts += [
            f"<h3>{escape(samples.sampling.title)}</h3>",
            '<div class="pair">',
            _picture(grid, f"Grid of {n} generated images", f"{n} samples"),
            _picture(
                real, "Grid of images from the test data", f"{len(chapter.originals[:n])} test images, for comparison"
            ),
            "</div>",
            _command("Sample this", samples.command),
        ]
    continued = [samples for samples in chapter.samples if samples.original is not None]
    if continued:
        parts.append(
            '<h3>Prompted</h3><p class="small">The upper half of a test image, its continuations, the original.</p>'
        )
    for samples in continued:
        assert samples.original is not None
        shown = [
            (samples.original.beginning, "given", "Upper half of a test image"),
            *((path, "", f"Continuation {number + 1}") for number, path in enumerate(samples.files)),
            (samples.original.whole, "original", "The test image itself"),
        ]
        pictures = "".join(_picture(_alone(modality, path), alt, caption) for path, caption, alt in shown)
        parts += [f'<div class="strip">{pictures}</div>', _command("Sample this", samples.command)]
    return "".join(parts)


def _alone(modality: Modality, path: Path) -> Any:
    return modality.preview([modality.load(path)]).data


def _picture(pixels: Any, alt: str, caption: str) -> str:
    height, width = pixels.shape[:2]
    image = f'<img class="pixels" src="{picture_uri(pixels)}" width="{width}" height="{height}" alt="{escape(alt)}">'
    return f"<figure>{image}" + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "") + "</figure>"


def _sounds(chapter: Chapter) -> str:
    modality, parts = chapter.modality, []
    groups: list[tuple[str, list[tuple[Path, str]], str]] = []
    for samples in chapter.samples:
        clips = [(path, f"Sample {number + 1}") for number, path in enumerate(samples.files)]
        if samples.original is not None:
            clips = [(samples.original.beginning, "Given"), *clips, (samples.original.whole, "Original")]
        groups.append((samples.sampling.title, clips, _command("Sample this", samples.command)))
    originals = [(original.whole, f"Test clip {number + 1}") for number, original in enumerate(chapter.originals)]
    groups.append(("Test data, for comparison", originals, ""))
    waveforms = {path: modality.preview([modality.load(path)]) for _, clips, _ in groups for path, _ in clips}
    longest = max(len(sound.data) for sound in waveforms.values())
    for title, clips, command in groups:
        parts.append(f'<h3>{escape(title)}</h3><div class="sounds">')
        for path, name in clips:
            sound = waveforms[path]
            seconds = len(sound.data) / sound.sample_rate
            picture = picture_uri(spectrogram(sound.data, sound.sample_rate))
            parts.append(
                f'<figure><div class="track"><img src="{picture}" style="width:{100 * len(sound.data) / longest:.1f}%" '
                f'alt="Spectrogram of {name.lower()}, {seconds:.2f} seconds, 0 to {sound.sample_rate / 2000:g} kHz">'
                f'</div><audio controls preload="metadata" aria-label="{name}" src="{sound_uri(path)}"></audio>'
                f"<figcaption>{name}, {seconds:.2f} s</figcaption></figure>"
            )
        parts += ["</div>", command]
    parts.append(
        '<p class="small">Spectrograms: time to the right, all at one scale; 0 Hz at the bottom, half the sample rate '
        "at the top; 70 dB from dark to bright.</p>"
    )
    return "".join(parts)


# -------------------------------------------------------------------- conditions


def _conditions(chapters: Sequence[Chapter], command: str, seconds: float) -> str:
    versions = chapters[0].measurement.metrics["versions"]
    facts = {
        **machine(),
        "Versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "Seeds": ", ".join(f"{chapter.plan.recipe} {chapter.measurement.metrics['seed']}" for chapter in chapters)
        + "; of samples, in their commands",
        "Time": f"{seconds:.0f} s in all: "
        + ", ".join(f"{c.plan.name} {c.seconds:.0f} + {c.sampling_seconds:.0f}" for c in chapters)
        + " (training + sampling)",
        "Written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    return (
        '<section id="conditions" aria-labelledby="conditions-title"><h2 id="conditions-title">Conditions</h2>'
        f"<dl>{rows}</dl>{_command('Make this report', command)}"
        '<p class="small">Bits are exact: minus the base-2 logarithm of the probability that a model gives the test '
        "data, which is also the size to which it could compress them. Baselines count symbols of the training data, "
        "with one added to each count; their code lengths are of the same test data. Scores are read from the run's "
        "<code>metrics.json</code>, curves from its <code>metrics.csv</code>. Commands run in the folder in which the "
        "demo ran; training takes a new run folder below <code>runs/</code>. The same command, on the same machine "
        "with the same number of threads, gives the same numbers.</p></section>"
    )


def _command(label: str, command: str) -> str:
    return f'<div class="command"><span>{label}</span><pre tabindex="0"><code>{escape(command)}</code></pre></div>'


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number_word(n: int) -> str:
    return {1: "One", 2: "Two", 3: "Three"}.get(n, str(n))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"
