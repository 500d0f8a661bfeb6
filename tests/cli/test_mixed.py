"""Mixed documents by the commands: a manifest trained, prompts and what follows, bits, scores of a recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from own_files import Run, digit, everything_in, png_bytes, wav_bytes

from armm import bundle
from armm.cli import main
from armm.commands.score import score_document
from armm.datasets import Manifest

pytestmark = pytest.mark.filterwarnings("ignore")

RECIPE = {
    "seed_everything": 0,
    "model": {
        "modalities": {
            "text": {"class_path": "armm.modalities.Text", "init_args": {"kind": "bytes", "ended": True}},
            "image": {"class_path": "armm.modalities.Image", "init_args": {"size": [8, 8], "levels": 17}},
            "audio": {"class_path": "armm.modalities.Audio", "init_args": {"frame": 16, "max_units": 40}},
            "speaker": {"class_path": "armm.modalities.Label", "init_args": {"names": ["ann", "bob"]}},
        },
        "backbone": {"class_path": "armm.backbones.Transformer", "init_args": {"width": 16, "n_layers": 1}},
        "context": 200,
    },
    "data": {"source": "armm.datasets.Manifest"},
    "trainer": {"max_steps": 2},
    "scores": [
        {
            "class_path": "armm.evaluation.exact_match.ExactMatch",
            "init_args": {"given": ["image"], "target": "text", "name": "spelled"},
        }
    ],
}


def write_documents(folder: Path, n: int = 16) -> Path:
    """Words, a picture and a clip, in two orders."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(n):
        (folder / f"{number}.png").write_bytes(png_bytes(digit(number)))
        (folder / f"{number}.wav").write_bytes(wav_bytes(200 + 10 * number))
        text, image, audio = {"text": f"no {number}"}, {"image": f"{number}.png"}, {"audio": f"{number}.wav"}
        speaker = {"label": "ann" if number % 2 else "bob", "name": "speaker", "loss": False}
        lines.append([speaker, image, text, audio] if number % 3 else [{**text, "loss": False}, audio, image, text])
    path = folder / "documents.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained for seconds; its documents are beside it."""
    place = tmp_path_factory.mktemp("mixed")
    path = write_documents(place / "data")
    (place / "mixed.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    arguments = ["train", str(place / "mixed.yaml"), "--debug", f"--data.path={path}", f"--run_dir={place / 'run'}"]
    assert main(arguments) == 0
    return place


def test_training_logs_bits_of_every_modality_and_of_structure_apart(mixed: Path) -> None:
    metrics = json.loads((mixed / "run/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["val"]) == {"text", "image", "audio", "structure"}
    assert metrics["val"]["structure"]["bits_per_document"] > 0
    found = metrics["diagnostics"]
    assert set(found) == {"text", "image", "audio"}  # a speaker is only ever given
    assert len(found["image"]["bits_by_slot"]) == 8 and len(found["audio"]["bits_by_slot"]) == 16
    assert all(math.isfinite(own["backbone"]) and math.isfinite(own["condition"]) for own in found.values())
    assert metrics["scores"] == {"spelled": {"value": 0.0, "n_trials": 2}}


ANN, CAT = '{"label": "ann", "name": "speaker"}', '{"image": "data/3.png"}'


@pytest.mark.parametrize(
    ("prompt", "then", "made"),
    [
        ('[{"text": "seven"}]', "audio", {"0-0000-0-text.txt", "0-0000-1-audio.wav"}),
        (f"[{ANN}, {CAT}]", "text", {"0-0000-1-image.png", "0-0000-2-text.txt"}),
        (f"[{CAT}]", "speaker", {"0-0000-0-image.png", "0-0000-1-speaker.txt"}),
        ("text=seven", "image,audio", {"0-0000-0-text.txt", "0-0000-1-image.png", "0-0000-2-audio.wav"}),
    ],
)  # fmt: skip
def test_what_follows_a_prompt_is_what_was_asked_for(
    prompt: str, then: str, made: set[str], mixed: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is whole, only the modalities of --then come after it, and what was made has files."""
    monkeypatch.chdir(mixed)
    run("generate", "run", "--prompt", prompt, "--then", then, "--out", tmp_path)
    assert {name for name in everything_in(tmp_path) if not name.endswith(".json")} == made
    for name in made:
        assert "identical" in run("reproduce", tmp_path / name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", '[{"text": "a"}]', "--then", "adio"], ["--then", "'adio'", "did you mean 'audio'"]),
        (["--prompt", '[{"txt": "a"}]', "--then", "audio"], ["--prompt", "segment 1", "did you mean 'text'"]),
        (["--prompt", '[{"text": "a"}', "--then", "audio"], ["--prompt", "not JSON"]),
        (["--prompt", '[{"image": "data/99.png"}]', "--then", "text"], ["data/99.png", "no such file"]),
        (["--prompt", "text=a", "--then", "audio", "--plan", "text,audio"], ["--then", "--plan"]),
    ],
)
def test_prompts_that_are_not_right(
    options: list[str], words: list[str], mixed: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mixed)
    refused(["generate", "run", *options], *words)


def test_a_layout_says_what_may_follow(runs: Path, here: Path, run: Run, refused: Run) -> None:
    run("generate", runs / "class", "--prompt", '[{"label": "cats"}]', "--then", "image", "--out", here / "samples")
    assert (here / "samples/0-0000.png").is_file()
    refused(["generate", runs / "class", "--then", "label"], "this model's documents are label, image")


def test_texts_that_look_like_json_stay_texts(runs: Path, here: Path, run: Run, refused: Run) -> None:
    """Of a model with text alone only its own name makes a document of a prompt."""
    refused(["generate", runs / "text", "--prompt", '[{"cat": 1}]'], "the character")  # a text, of letters it lacks
    run("generate", runs / "text", "--prompt", '[{"text": "the cat"}]', "--max-symbols", "5")
    assert (here / "samples/0-0000.txt").read_text(encoding="utf-8").startswith("the cat")


def test_score_of_a_manifest_is_the_models_own(mixed: Path, run: Run, refused: Run) -> None:
    """Bits by modality and of the structure, which add up to the joint bits of what is not given."""
    path = mixed / "data" / "documents.jsonl"
    out = run("score", mixed / "run", "--manifest", path, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 16 and found[3]["document"] == f"{path} line 4"
    model = bundle.load(mixed / "run")
    for own in found[:3]:
        parts = sum(part["bits"] for part in own["modalities"].values())
        assert own["bits"] == pytest.approx(parts + own["structure_bits"])
    splits = Manifest().load(model.modalities, path, "fail")
    parts = splits.train.parts(1, 0, None)
    document = [model.modalities[part.name].encode(part.raw) for part in parts]
    whole = score_document(model, document)["bits"] * math.log(2)
    assert whole == pytest.approx(-float(model.stream_log_prob(document).detach().sum()), rel=1e-5)
    assert "structure" in run("score", mixed / "run", "--manifest", path)
    refused(["score", mixed / "run"], "name each FILE to score")
    refused(["score", mixed / "run", "--manifest", path, "--given", "speaker=ann"], "--given")


def test_evaluate_computes_the_scores_again(mixed: Path, run: Run, refused: Run) -> None:
    """From the run's folder alone; they take the place of those that are there, and nothing else changes."""
    path = mixed / "run" / "metrics.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    found = json.loads(run("evaluate", mixed / "run", "--json"))
    n_trials = found["spelled"]["n_trials"]
    assert n_trials == 2  # a tenth of sixteen documents: those of the test
    assert json.loads(path.read_text(encoding="utf-8")) == {**before, "scores": found}
    assert "(1 trials)" in run("evaluate", mixed / "run", "--trials", "1")
    refused(["evaluate", mixed / "run", "--data-path", "nowhere"], "nowhere")
    refused(["evaluate", mixed / "run" / "model" / "config.json"], "config.json")


def test_a_score_that_cannot_be_is_refused_before_training(mixed: Path, here: Path, refused: Run) -> None:
    recipe = yaml.safe_load((mixed / "mixed.yaml").read_text(encoding="utf-8"))
    recipe["scores"][0]["init_args"]["target"] = "txet"
    (here / "bad.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    data = f"--data.path={mixed / 'data' / 'documents.jsonl'}"
    refused(["train", "bad.yaml", "--debug", data], "'txet'", "did you mean 'text'")
    assert everything_in(here) == {"bad.yaml"}
