"""`armm reproduce`: what files say about themselves, and that it is enough to make them again."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import wave
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from own_files import Run, everything_in, png_bytes, wav_bytes
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from tiny_modalities import hash_parameters

from armm import bundle
from armm.backbones import Transformer
from armm.cli import main
from armm.commands import origin as origins
from armm.commands.origin import Origin, embedded, extracted, from_json, sidecar, to_json
from armm.commands.prompting import Given, Prompt
from armm.commands.reproduce import first_difference
from armm.commands.request import Request
from armm.errors import InputError
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.model import AutoregressiveModel

PIXELS = CausalConv(channels=4, dilations=(1, 2))
SMALL = Image(size=(4, 6), levels=4, head=PIXELS)
CLIP = Audio(frame=8, max_units=6, head=CausalConv(channels=4, dilations=(1, 4)))
MODELS: dict[str, dict[str, Modality]] = {
    "text": {"text": Text(kind="bytes")},
    "image": {"image": SMALL},
    "audio": {"audio": CLIP},
    "class": {"label": Label(names=("cats", "dogs")), "image": SMALL},
    "label": {"label": Label(n_classes=5)},
    "free": {"text": Text(kind="bytes", ended=True, max_units=4), "image": SMALL},
}


def save_model(name: str, folder: Path, seed: int = 0) -> None:
    layout = None if name == "free" else list(MODELS[name])
    model = AutoregressiveModel(MODELS[name], Transformer(width=16, n_layers=1, n_heads=2), layout)
    hash_parameters(model, 3.0, seed)
    bundle.save(model.eval(), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name in MODELS:
        save_model(name, place / name)
    return place


@pytest.fixture
def files(here: Path) -> Path:
    """What prompts name: a picture, its top, a mask, a clip."""
    given = SMALL.dequantise(np.random.default_rng(0).integers(0, 4, (4, 6)))
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[0], mask[2, 3:] = 255, 255
    for name, pixels in {"whole": given, "top": given[:2], "mask": mask}.items():
        (here / f"{name}.png").write_bytes(png_bytes(pixels))
    (here / "start.wav").write_bytes(wav_bytes(11))
    (here / "lines.txt").write_text("one\ntwo and a half\n", encoding="utf-8")
    return here


def origin_of(path: Path) -> Origin:
    found = origins.read(path)
    assert found is not None
    return found


def reproduce(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    """Exit code and lines of standard output."""
    capsys.readouterr()
    code = main(["reproduce", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert not err
    return code, out.splitlines()


# ------------------------------------------------------------------- made again


@pytest.mark.parametrize(
    ("model", "options", "name"),
    [
        ("text", ["--max-symbols", "30", "--prompt", "it is \udcff\u00fc\n"], "7-0001.txt"),
        ("text", ["--max-symbols", "30", "--prompts", "lines.txt"], "7-0001-0001.txt"),
        ("text", ["--max-symbols", "40", "--stop", "e", "--stop", "m"], "7-0001.txt"),
        ("text", ["--max-symbols", "20", "--weights", "int8", "--proposer", "ngram"], "7-0001.txt"),
        ("text", ["--max-symbols", "20", "--regex", "[a-f]+"], "7-0001.txt"),
        (
            "text",
            ["--max-symbols", "20", "--repetition-penalty", "1.3", "--presence-penalty", "1", "--ban", "text=0-31,7"],
            "7-0001.txt",
        ),
        (
            "text",
            ["--max-symbols", "20", "--best-of", "4", "--allow", "97-122", "--bias", "text=101:2.5"],
            "7-000*.txt",
        ),
        ("image", ["--temperature", "0.7", "--top-k", "3", "--top-p", "0.9", "--min-p", "0.01"], "7-0001.png"),
        ("image", ["--prompt", "top.png", "--typical", "0.9"], "7-0001.png"),
        ("image", ["--prompt", "whole.png", "--mask", "mask.png", "--proposer", "hold"], "7-0001.png"),
        ("class", ["--prompt", "label=dogs", "--guidance", "2", "--without", "label=cats"], "7-0001.png"),
        ("audio", ["--prompt", "start.wav", "--frequency-penalty", "0.5"], "7-0001.wav"),
        ("label", [], "7-0001.txt"),
        ("free", ["--plan", "text,image,image"], "7-0001-2-image.png"),
        ("free", ["--plan", "text,image", "--prompt", "text=ab", "--prompt-complete"], "7-0001-0-text.txt"),
    ],
    ids=lambda value: " ".join(value)[:40].encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_files_say_enough_to_make_them_again(
    model: str, options: list[str], name: str, models: Path, files: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sample out of several, whatever it was asked for with; and the same command writes the same bytes."""
    if "--regex" in options:
        pytest.importorskip("llguidance")
    for folder in ("samples", "again"):
        run("generate", models / model, "--n", "2", "--seed", "7", *options, "--out", folder)
    path = min((files / "samples").glob(name))
    assert reproduce(capsys, path) == (0, [f"{path}: identical"])
    made, again = (
        {path.name: path.read_bytes() for path in (files / folder).iterdir()} for folder in ("samples", "again")
    )
    assert made == again


def test_what_a_file_says(models: Path, files: Path, run: Run) -> None:
    run("generate", models / "image", "--seed", "5", "--n", "2", "--prompt", "top.png", "--top-k", "3")
    run("generate", models / "text", "--seed", "5", "--max-symbols", "9", "--prompts", "lines.txt")
    image, text = origin_of(files / "samples/5-0001.png"), origin_of(files / "samples/5-0001-0000.txt")
    (given,) = image.prompt.given
    assert (image.seed, image.index, image.prompt_number, image.request.top_k) == (5, 1, 0, 3)
    assert (given.name, given.value, len(given.sha256)) == ("image", "top.png", 64)
    assert image.model.hash == bundle.content_hash(models / "image") and image.model.path == str(models / "image")
    assert (image.stop, image.exact, image.modality, image.files) == ("end", True, "image", ("5-0001.png",))
    assert image.machine.versions.torch == torch.__version__ and image.machine.threads == torch.get_num_threads()
    assert (text.prompt_number, text.prompt.given) == (1, (Given("text", "two and a half"),))
    assert (text.stop, text.request.max_symbols) == ("length", 9)


def test_other_programs_read_the_files(models: Path, here: Path, run: Run) -> None:
    """Pillow and soundfile see the same pixels and samples, and the text; so does the standard library."""
    run("generate", models / "image")
    run("generate", models / "audio")
    with Pillow.open(here / "samples/0-0000.png") as picture:
        picture.load()
        assert isinstance(picture, Pillow.Image) and picture.size == (6, 4)
        assert from_json(picture.info["armm"]) == origin_of(here / "samples/0-0000.png")
    path = here / "samples/0-0000.wav"
    content = path.read_bytes()
    assert struct.unpack_from("<I", content, 4)[0] == len(content) - 8
    clip = CLIP.load(path)  # which checks every chunk against the length of the file
    np.testing.assert_array_equal(clip, soundfile.read(path, dtype="float32")[0])
    with wave.open(str(path)) as file, soundfile.SoundFile(path) as other:
        assert file.getnframes() == len(clip) > 0
        assert from_json(other.comment) == origin_of(path)


def test_another_process_makes_the_same(models: Path, files: Path, run: Run) -> None:
    """With another number of threads to begin with: it takes as many as the file says."""
    run("generate", models / "image", "--prompt", "top.png")
    command = [sys.executable, "-m", "armm.cli", "reproduce", "samples/0-0000.png"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "samples/0-0000.png: identical\n", "")


# ------------------------------------------------------------------- differences


def changed_png(path: Path, y: int, x: int, value: int) -> None:
    with Pillow.open(path) as picture:
        pixels, text = np.array(picture), picture.info["armm"]
    pixels[y, x] = value
    info = PngInfo()
    info.add_text("armm", text)
    Pillow.fromarray(pixels).save(path, pnginfo=info)


def test_a_changed_pixel_is_named(models: Path, here: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """One level of 256, less than a level of the model's four."""
    run("generate", models / "image")
    path = here / "samples/0-0000.png"
    was = int(np.asarray(Pillow.open(path))[2, 5])
    changed_png(path, 2, 5, was ^ 1)
    expected = f"{path}: pixel (2, 5): expected {was}, found {was ^ 1}; 1 of 24 pixels differ"
    assert reproduce(capsys, path) == (1, [expected])


def test_a_changed_audio_sample_is_named(
    models: Path, here: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("generate", models / "audio", "--prompt", str(write(here / "start.wav", wav_bytes(20))))
    path = here / "samples/0-0000.wav"
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 8 + 2 * 13
    was = struct.unpack_from("<h", content, place)[0]
    struct.pack_into("<h", content, place, was + 3)
    path.write_bytes(content)
    assert reproduce(capsys, path) == (1, [f"{path}: audio sample 13: expected {was}, found {was + 3}"])


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda text: text.replace("d", "D"), "character 5: expected 'd', found 'D'"),
        (lambda text: text[:8], "character 8: expected 'ü', found the end"),
        (lambda text: text + "!", "character 10: expected the end, found '!'"),
        (lambda text: "", "character 0: expected 'a', found the end"),
    ],
)
def test_a_changed_text_is_named(
    edit: Callable[[str], str], says: str, models: Path, here: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """By characters, not bytes."""
    run("generate", models / "text", "--max-symbols", "1", "--ban", "0-64,91-255", "--prompt", "a word sü")
    path = here / "samples/0-0000.txt"
    path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert reproduce(capsys, path) == (1, [f"{path}: {says}"])


def test_comparing() -> None:
    """Sizes, rates and kinds that differ are told apart from contents; another encoding of the same is the same."""
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    png, wav = png_bytes(pixels), wav_bytes(9)
    as_rgb = io.BytesIO()
    Pillow.fromarray(pixels).convert("RGB").save(as_rgb, format="PNG", compress_level=0)
    assert first_difference(png, as_rgb.getvalue()) is None and first_difference(wav, wav) is None
    assert first_difference(png, png_bytes(pixels[:3])) == "height x width: expected 4x6, found 3x6"
    assert first_difference(wav, wav_bytes(8)) == "audio sample 8: expected 7788, found the end"
    assert first_difference(wav, wav_bytes(9, rate=11025)) == "expected 1 x 8000 Hz, found 1 x 11025 Hz"
    assert "damaged" in str(first_difference(png, wav)) and "damaged" in str(first_difference(wav, png))
    assert first_difference(b"", b"") is None and first_difference(b"a\xff", b"a\xff") is None


# ------------------------------------------------------------- what is no longer there


def test_another_model_is_refused(
    models: Path, here: Path, run: Run, refused: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless it is wanted anyway; a model that has moved is named, and one that is gone missed."""
    save_model("image", here / "model")
    run("generate", "model", "--out", "samples")
    path = "samples/0-0000.png"
    shutil.move(here / "model", here / "moved")
    refused(["reproduce", path], path, "model", "not here", "--run")
    assert reproduce(capsys, path, "--run", "moved") == (0, [f"{path}: identical"])
    save_model("image", here / "model", seed=1)
    hashes = [bundle.content_hash(here / name) for name in ("moved", "model")]
    refused(["reproduce", path], path, *hashes, "--run", "--anyway")
    code, lines = reproduce(capsys, path, "--anyway")
    assert code == 1 and len(lines) == 2 and all(own in lines[0] for own in hashes) and "pixel (" in lines[1]
    refused(["reproduce", path, "--run", models / "text", "--anyway"], path, "image", "text")


def test_a_changed_prompt_file_is_named(
    models: Path, files: Path, run: Run, refused: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("generate", models / "image", "--prompt", "whole.png", "--mask", "mask.png")
    path = Path("samples/0-0000.png")
    mask = np.asarray(Pillow.open("mask.png")).copy()
    mask[0, 0] = 254  # says the same, and is another file
    (files / "mask.png").write_bytes(png_bytes(mask))
    code, lines = reproduce(capsys, path)
    assert code == 0 and lines == [f"{path}: the prompt file mask.png has changed since", f"{path}: identical"]
    (files / "whole.png").unlink()
    refused(["reproduce", path], str(path), "whole.png", "no such file")


def test_other_versions_are_named(models: Path, here: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, and the comparison goes on."""
    run("generate", models / "text", "--max-symbols", "5")
    path = here / "samples/0-0000.txt"
    origin = origin_of(path)
    versions = replace(origin.machine.versions, torch="2.11.0", python="3.12.1")
    sidecar(path).write_text(to_json(replace(origin, machine=replace(origin.machine, versions=versions))))
    code, lines = reproduce(capsys, path)
    assert code == 0 and len(lines) == 2 and lines[1] == f"{path}: identical"
    assert (
        "torch 2.11.0, now torch" in lines[0]
        and "Python 3.12.1, now Python" in lines[0]
        and "armm" not in lines[0].replace(str(path), "")
    )


def test_a_number_of_threads_is_given_back(models: Path, here: Path, run: Run) -> None:
    run("generate", models / "text", "--max-symbols", "5")
    path = here / "samples/0-0000.txt"
    origin = origin_of(path)
    before = torch.get_num_threads()
    sidecar(path).write_text(to_json(replace(origin, machine=replace(origin.machine, threads=before + 1))))
    run("reproduce", path)
    assert torch.get_num_threads() == before


# ------------------------------------------------------------------ no or damaged origin


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png_bytes(np.zeros((4, 6), dtype=np.uint8))),
        ("a.wav", wav_bytes(9)),
        ("a.txt", b"hello"),
        ("empty.png", b""),
        ("cut.png", png_bytes(np.zeros((4, 6), dtype=np.uint8))[:20]),
        ("cut.wav", wav_bytes(9)[:10]),
    ],
)
def test_files_that_say_nothing_are_refused(name: str, content: bytes, here: Path, refused: Run) -> None:
    (here / name).write_bytes(content)
    refused(["reproduce", name], name, "does not say where it came from")


def test_the_grid_says_nothing(models: Path, here: Path, run: Run, refused: Run) -> None:
    run("generate", models / "image", "--n", "2")
    refused(["reproduce", "samples/image-grid.png"], "does not say where it came from")
    refused(["reproduce", "samples/none.png"], "samples/none.png", "No such file")
    refused(["reproduce", "samples"], "samples", "directory")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: "{",
        lambda data: "[]",
        lambda data: "[" * 100_000,
        lambda data: json.dumps({}),
        lambda data: json.dumps({**data, "armm_origin": 99}),
        lambda data: json.dumps({**data, "seed": "0"}),
        lambda data: json.dumps({**data, "index": True}),
        lambda data: json.dumps({**data, "index": -1}),
        lambda data: json.dumps({**data, "segment": 7}),
        lambda data: json.dumps({**data, "extra": 1}),
        lambda data: json.dumps({key: value for key, value in data.items() if key != "request"}),
        lambda data: json.dumps({**data, "request": {**data["request"], "temperature": "hot"}}),
        lambda data: json.dumps({**data, "request": {**data["request"], "ban": "1"}}),
        lambda data: json.dumps({**data, "request": {**data["request"], "weights": "int2"}}),
        lambda data: json.dumps({**data, "prompt": {"given": [{"name": "text"}], "mask": None}}),
        lambda data: json.dumps(
            {**data, "prompt": {"given": [{"name": "image", "value": "a", "sha256": ""}], "mask": None}}
        ),
        lambda data: json.dumps({**data, "machine": {**data["machine"], "threads": 0}}),
        lambda data: json.dumps({**data, "machine": {**data["machine"], "threads": 10**9}}),
        lambda data: json.dumps({**data, "machine": {**data["machine"], "device": "abacus"}}),
    ],
)
def test_damaged_origins_are_one_line(damage, models: Path, here: Path, run: Run, refused: Run) -> None:
    run("generate", models / "text", "--max-symbols", "5")
    path = here / "samples/0-0000.txt"
    data = json.loads(sidecar(path).read_text(encoding="utf-8"))
    sidecar(path).write_text(damage(data), encoding="utf-8")
    before = everything_in(here)
    refused(["reproduce", "samples/0-0000.txt"], "samples/0-0000.txt")
    assert everything_in(here) == before


def test_a_wrong_byte_in_a_pngs_origin_is_found(models: Path, here: Path, run: Run, refused: Run) -> None:
    run("generate", models / "image")
    path = here / "samples/0-0000.png"
    content = bytearray(path.read_bytes())
    content[content.index(b'"seed": 0') + 8] = ord("1")
    path.write_bytes(content)
    refused(["reproduce", path], str(path), "damaged", "checksum")


# ------------------------------------------------------------------------- the format


def some_origin() -> Origin:
    prompt = Prompt((Given("text", "a\n\udcff\u20ac"), Given("image", "top.png", "0" * 64)), Given("", "m.png"))
    request = Request(
        temperature=0.1 + 0.2, temperature_of=("a=1",), ban=("1", "2-3"), plan=("text",), without=(Given("label", "3"),)
    )
    machine = origins.Machine(origins.Versions("1", "2", "3"), "cpu", 2)
    return Origin(
        2**70, 3, 1, prompt, request, origins.Model("a/b", "0f"), machine, False, "end", 1, "text", ("a", "b")
    )


def test_an_option_that_came_later_has_its_default_in_older_files() -> None:
    origin = replace(some_origin(), request=Request(temperature=0.5))
    data = json.loads(to_json(origin))
    del data["request"]["temperature_of"]
    assert from_json(json.dumps(data)) == origin
    del data["request"]["ban"], data["seed"]
    with pytest.raises(InputError, match="'seed'"):
        from_json(json.dumps(data))


def test_json_keeps_everything() -> None:
    """Every field, floats to the last bit, stray bytes of a prompt, in plain ASCII."""
    origin = some_origin()
    assert from_json(to_json(origin)) == origin and to_json(origin).isascii()


def test_png_and_wav_keep_a_text_and_all_they_held() -> None:
    png, wav, text = png_bytes(np.arange(24, dtype=np.uint8).reshape(4, 6)), wav_bytes(9), to_json(some_origin())
    for content in (png, wav, wav + b"LIST" + struct.pack("<I", 11) + b"INFOxyz1234"):
        whole = embedded(content, text)
        assert whole is not None and extracted(content) is None and extracted(whole) == text
    whole = embedded(png, text)
    assert whole is not None and whole[:33] == png[:33] and whole.endswith(png[33:])
    assert whole[33:41] == struct.pack(">I", len(text) + 5) + b"tEXt"
    assert struct.unpack(">I", whole[-len(png[33:]) - 4 : -len(png[33:])])[0] == zlib.crc32(
        b"tEXtarmm\0" + text.encode()
    )
    for content in (b"", b"hello", b"RIFX" + wav[4:], b"\x89PNG", b"fLaC" + bytes(40)):
        assert embedded(content, text) is None and extracted(content) is None


def test_unknown_keys_of_an_origin_are_refused_by_name() -> None:
    data = json.loads(to_json(some_origin()))
    data["request"]["top_kk"] = data["request"].pop("top_k")
    with pytest.raises(InputError, match="top_k"):
        from_json(json.dumps(data))
