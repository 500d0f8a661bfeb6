"""What the demo trains and samples: one recipe per modality, and the options of every `armm generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """One call of `armm generate`.

    Attributes:
        name: of the folder it writes to, below `samples/`.
        title: of the samples, in the report.
        options: of the command, but for the prompt and `--out`.
        prompt: a text to begin with.
        item: the test item whose beginning is the prompt.
    """

    name: str
    title: str
    options: tuple[str, ...]
    prompt: str = ""
    item: int | None = None


@dataclass(frozen=True)
class Plan:
    """One modality of the demo.

    Attributes:
        name: of the modality in its recipe, and of the run's folder.
        recipe: its name.
        about: the data, in a sentence.
        quick: options of a training of seconds that shows nothing but that everything works.
        samplings: what is generated.
        quick_samplings: what is generated then.
        n_originals: how many test items stand beside the samples.
        beginning: share of a test item that is a prompt.
    """

    name: str
    recipe: str
    about: str
    quick: tuple[str, ...]
    samplings: tuple[Sampling, ...]
    quick_samplings: tuple[Sampling, ...]
    n_originals: int = 0
    beginning: float = 0.5


def _options(**values: Any) -> tuple[str, ...]:
    """`max_symbols=3` as `--max-symbols 3`."""
    pairs = ((f"--{key.replace('_', '-')}", str(value)) for key, value in values.items())
    return tuple(part for pair in pairs for part in pair)


QUICK = ("--trainer.max_steps=20", "--trainer.val_check_interval=10", "--data.n_val=2")

TEXT = Plan(
    name="text",
    recipe="text/stdlib",
    about="Source code of the Python standard library that runs the demo, as 2,048 byte-pair tokens.",
    quick=(*QUICK, "--data.source.max_bytes=1000000", "--data.batch_size=2", "--data.crop=64"),
    samplings=(
        Sampling("text-free", "Unprompted", _options(n=2, seed=0, temperature=0.8, max_symbols=220)),
        Sampling(
            "text-prompt", "Prompted", _options(n=2, seed=0, temperature=0.8, max_symbols=160), "    def __init__(self"
        ),
    ),
    quick_samplings=(
        Sampling("text-free", "Unprompted", _options(n=1, seed=0, max_symbols=20)),
        Sampling("text-prompt", "Prompted", _options(n=2, seed=0, max_symbols=20), "    def __init__(self"),
    ),
)

IMAGE = Plan(
    name="image",
    recipe="image/digits",
    about="The 1,797 handwritten digits that come with scikit-learn: 8 × 8 pixels, 17 levels of grey.",
    quick=QUICK,
    samplings=(
        Sampling("image-free", "Unprompted", _options(n=64, seed=0, batch_size=64)),
        *(
            Sampling(f"image-prompt-{item}", f"Completions of test digit {item}", _options(n=8, seed=0), item=item)
            for item in (0, 1, 2)
        ),
    ),
    quick_samplings=(
        Sampling("image-free", "Unprompted", _options(n=4, seed=0)),
        Sampling("image-prompt-0", "Completions of test digit 0", _options(n=2, seed=0), item=0),
    ),
    n_originals=64,
)

AUDIO = Plan(
    name="audio",
    recipe="audio/synth",
    about="Notes of six instruments and sung vowels from the library's own synthesiser: 8\u00a0kHz, 256 mu-law levels.",
    quick=(*QUICK, "--data.source.clips=30", "--data.batch_size=1"),
    samplings=(
        Sampling("audio-free", "Unprompted", _options(n=4, seed=0, max_symbols=8000)),
        Sampling("audio-prompt", "Prompted", _options(n=2, seed=0, max_symbols=6000), item=0),
    ),
    quick_samplings=(
        Sampling("audio-free", "Unprompted", _options(n=2, seed=0, max_symbols=600)),
        Sampling("audio-prompt", "Prompted", _options(n=1, seed=0, max_symbols=400), item=0),
    ),
    n_originals=4,
    beginning=0.25,
)

# the report shows samples, so none are logged on the way
TRAINING = ("--n_samples=0",)

PLANS = (TEXT, IMAGE, AUDIO)
