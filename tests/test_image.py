"""Images: the order of symbols, sizes, and picture files of every kind, damaged ones too."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow

from armm.embedders import UnitEmbedder
from armm.errors import InputError
from armm.modalities import Image

GREY = Image(size=(4, 6))
RGB = Image(size=(4, 6), channels=3)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """An InputError of one line that says all of these."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def noise(*shape: int, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, levels, shape, dtype=np.uint8)


def as_file(picture: pillow.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


# ------------------------------------------------------------- symbols, units


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("block", [None, (1, 1), (1, 4), (2, 2), (3, 8), (6, 8)])
@pytest.mark.parametrize("size", [(6, 8), None])
def test_images_round_trip(channels: Any, levels: int, block: Any, size: tuple[int, int] | None) -> None:
    max_size = None if size else (12, 16)
    block = block if size else block or (1, 8)
    image = Image(size, max_size, channels=channels, levels=levels, block=block)
    raw = noise(6, 8, *([3] if channels == 3 else []), levels=levels)
    segment = image.encode(raw)
    decoded = image.decode(segment)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, raw)
    assert segment.n_units == image.n_units(segment.header)
    assert segment.symbols.shape[1] == image.unit_symbols == image.unit.symbols
    assert (image.n_bits_per(segment), image.n_nats_per(segment)) == (6 * 8 * channels, 1)


def test_symbols_run_row_by_row_with_the_channels_of_a_pixel_together() -> None:
    raw = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    symbols = Image(size=(4, 4), channels=3, block=(2, 2)).encode(raw).symbols
    assert symbols[0].tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert symbols[1].tolist() == [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]
    assert symbols[2, 0] == 24


def test_pixels_of_a_place_stand_side_by_side_and_places_go_row_by_row() -> None:
    """For the head they are channels: it takes as many steps as there are places."""
    raw = np.arange(4 * 8, dtype=np.uint8).reshape(4, 8)
    image = Image(size=(4, 8), block=(4, 4), place=(2, 2))
    assert image.encode(raw).symbols[1].tolist() == [4, 5, 12, 13, 6, 7, 14, 15, 20, 21, 28, 29, 22, 23, 30, 31]
    assert (image.unit.symbols, image.unit.channels, image.unit.places) == (16, 4, 4)
    assert image.unit.block == (2, 2) and image.symbol_channels == 4
    colours = Image(size=(2, 2), channels=3, place=(1, 2))
    assert colours.encode(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).symbols[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert colours.unit.channels == 6


def test_the_default_unit_is_a_row() -> None:
    assert RGB.unit_symbols == 18
    assert RGB.symbol_channels == 3
    assert RGB.encode(noise(4, 6, 3)).header == (4, 1)
    pairs = Image(size=(4, 6), place=(2, 1))
    assert (pairs.unit_symbols, pairs.grid, pairs.unit.block) == (12, (2, 1), (1, 6))


@pytest.mark.parametrize(
    ("image", "whole"),
    [
        (GREY, True),
        (Image(size=(4, 6), block=(1, 6)), True),
        (Image(size=(4, 6), block=(1, 3)), False),
        (Image(size=(4, 6), block=(2, 6)), False),
        (Image(max_size=(4, 6), block=(1, 6)), False),
        (Image(size=(4, 6), place=(2, 2)), True),
        (Image(size=(4, 6), block=(4, 6), place=(2, 2)), False),
        (Image(size=(4, 6), block=(2, 2), place=(2, 2)), False),
    ],
)
def test_only_rows_of_one_width_are_whole(image: Image, whole: bool) -> None:
    """A head that takes all rows above as known must not get a strip that ends within a row."""
    assert image.unit.whole_rows is whole
    assert not image.unit.continuous


def test_the_head_is_told_what_levels_mean() -> None:
    values = Image(size=(2, 2), levels=5).unit.values
    assert values is not None
    assert values.tolist() == [[-1.0], [-0.5], [0.0], [0.5], [1.0]]


def test_a_size_that_never_changes_is_not_coded() -> None:
    assert GREY.header_sizes == ()
    assert GREY.header(()) == (4, 1)
    assert GREY.coded_header((4, 1)) == ()


def test_every_header_of_differing_sizes_is_coded_within_its_alphabet() -> None:
    image = Image(max_size=(8, 12), block=(2, 4))
    assert image.header_sizes == (4, 3)
    for rows in range(1, 5):
        for columns in range(1, 4):
            coded = image.coded_header(image.encode(noise(2 * rows, 4 * columns)).header)
            assert all(0 <= field < size for field, size in zip(coded, image.header_sizes, strict=True))
            assert image.header(coded) == (rows, columns)
            assert image.n_units(image.header(coded)) == rows * columns


@pytest.mark.parametrize("block", [(1, 1), (1, 6), (2, 3)])
def test_embedder_knows_where_a_unit_lies(block: tuple[int, int]) -> None:
    """Axial embeddings also for single pixels: equal units at different places differ."""
    image = Image(size=(4, 6), block=block)
    segment = image.encode(np.zeros((4, 6), dtype=np.uint8))
    n_units = segment.n_units
    header = torch.tensor([segment.header] * n_units)
    vectors = image.build_embedder(16)(segment.symbols, torch.arange(n_units), header)
    assert vectors.shape == (n_units, 16)
    assert len({tuple(vector) for vector in vectors.tolist()}) == n_units


@pytest.mark.parametrize(("channels", "block"), [(1, (1, 6)), (3, (1, 6)), (1, (2, 6)), (3, (2, 6))])
def test_pixel_features_move_with_the_pixels(channels: Any, block: tuple[int, int]) -> None:
    """What is learned at one place holds at all: a step to the right moves the features along; no channel is lost."""
    image = Image(size=(4, 6), channels=channels, levels=5, block=block, embedder_channels=7)
    embedder = image.build_embedder(16)
    assert isinstance(embedder, UnitEmbedder) and embedder.features
    pixels = torch.rand(2, *block, channels, 9)
    features = embedder.features(pixels.flatten(1, 3)).unflatten(1, (*block, 7))
    moved = embedder.features(pixels.roll(1, 2).flatten(1, 3)).unflatten(1, (*block, 7))
    inside = slice(2, block[1] - 3)  # as far from the edges as the convolution reaches
    torch.testing.assert_close(moved[:, :, inside.start + 1 : inside.stop + 1], features[:, :, inside])
    for channel in range(channels):
        other = pixels.clone()
        other[:, 0, 0, channel] += 1
        assert not torch.equal(embedder.features(other.flatten(1, 3)), embedder.features(pixels.flatten(1, 3)))


@pytest.mark.parametrize(("channels", "block"), [(1, None), (3, None), (1, (1, 1)), (3, (2, 2))])
def test_default_heads_take_the_units(channels: Any, block: tuple[int, int] | None) -> None:
    image = Image(size=(4, 6), channels=channels, levels=5, block=block)
    segment = image.encode(noise(4, 6, *([3] if channels == 3 else []), levels=5))
    symbols = segment.symbols[None]
    context = torch.zeros(1, segment.n_units, 16)
    header = torch.tensor([segment.header])
    log_prob = image.build_head(16).log_prob(context, symbols, torch.ones_like(symbols, dtype=torch.bool), header)
    assert log_prob.shape == symbols.shape
    assert (log_prob < 0).all()


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("image", "raw", "words"),
    [
        (GREY, noise(4, 6).astype(np.int64), ("int64", "uint8", "(H, W)")),
        (GREY, [[0]], ("list", "uint8")),
        (GREY, noise(4, 6, 3), ("(4, 6, 3)", "expected (H, W)", "channels")),
        (RGB, noise(4, 6), ("(4, 6)", "expected (H, W, 3)")),
        (RGB, noise(4, 6, 4), ("(4, 6, 4)",)),
        (GREY, noise(0, 6), ("(0, 6)",)),
        (Image(size=(1, 2), levels=17), np.array([[3, 17]], dtype=np.uint8), ("17", "levels below 17", "quantise")),
        (GREY, noise(6, 4), ("6x4", "4x6", "size: [6, 4]")),
        (Image(max_size=(8, 8), block=(2, 2)), noise(10, 8), ("10x8", "8x8", "max_size")),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image: Image, raw: Any, words: tuple[str, ...]) -> None:
    with refused("image", *words):
        image.encode(raw)


def test_sizes_that_the_unit_does_not_divide_name_the_nearest_that_fit() -> None:
    image = Image(max_size=(32, 32), block=(4, 4))
    with refused("30x29", "4x4", "28x28, 32x32"):
        image.encode(noise(30, 29))
    with refused("3x8", "nearest that fit: 4x8 "):
        image.encode(noise(3, 8))
    with refused("33x32", "nearest that fit: 32x32 "):
        image.encode(noise(33, 32))
    with refused("size is 30x32", "28x32"):
        Image(size=(30, 32), block=(4, 4))
    with refused("max_size is 30x32"):
        Image(max_size=(30, 32), block=(4, 4))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, ("size", "max_size")),
        ({"size": (4, 4), "max_size": (4, 4)}, ("either", "max_size")),
        ({"max_size": (4, 4)}, ("block", "one width")),
        ({"size": (4, 0)}, ("image.size", "[4, 0]", "[height, width]")),
        ({"size": (4, 4), "levels": 1}, ("levels", "2 to 256")),
        ({"size": (4, 4), "levels": 257}, ("levels", "2 to 256")),
        ({"size": (4, 4), "channels": 2}, ("channels", "1 (grey) or 3 (RGB)")),
        ({"size": (4, 4), "block": (1, 2, 3)}, ("block", "[1, 2, 3]")),
        ({"size": (4, 4), "place": (0, 2)}, ("image.place", "[0, 2]", "[height, width]")),
        ({"size": (4, 6), "place": (1, 4)}, ("image.place", "[1, 4]", "1x6 pixels", "divisor")),
        ({"size": (4, 6), "block": (2, 3), "place": (1, 2)}, ("image.place", "[1, 2]", "2x3 pixels")),
        ({"size": (5, 6), "place": (2, 2)}, ("size is 5x6", "4x6")),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(*words):
        Image(**keys)


# -------------------------------------------------------------------- prompts


@pytest.mark.parametrize(("block", "place"), [(None, (1, 1)), ((2, 2), (1, 1)), ((1, 1), (1, 1)), (None, (2, 2))])
def test_a_prompt_is_the_beginning_of_the_whole_image(block: tuple[int, int] | None, place: tuple[int, int]) -> None:
    image = Image(size=(6, 4), channels=3, block=block, place=place)
    raw = noise(6, 4, 3)
    whole, top = image.encode(raw), image.encode_prompt(raw[:2])
    assert top.header == whole.header
    assert top.symbols.equal(whole.symbols[: top.n_units])
    assert 0 < top.n_units < whole.n_units
    decoded = image.decode(top)
    np.testing.assert_array_equal(decoded[:2], raw[:2])
    assert decoded.shape == raw.shape
    assert (decoded[2:] == 0).all()


def test_an_image_cut_within_a_unit_is_black_from_there() -> None:
    segment = GREY.encode(np.full((4, 6), 9, dtype=np.uint8))
    cut = type(segment)(segment.modality, segment.symbols[:2], n_symbols=8, header=segment.header)
    assert GREY.decode(cut).sum() == 9 * 8


@pytest.mark.parametrize("shape", [(6, 4), (8, 4), (3, 4), (2, 5)])
def test_a_prompt_that_is_not_the_top_is_refused(shape: tuple[int, int]) -> None:
    image = Image(size=(6, 4), block=(2, 2))
    with refused(f"{shape[0]}x{shape[1]}", "6x4", "multiple of 2 to 4 rows"):
        image.encode_prompt(noise(*shape))


def test_a_prompt_needs_one_size() -> None:
    with refused("one size", "image.size"):
        Image(max_size=(4, 4), block=(2, 2)).encode_prompt(noise(2, 4))


# -------------------------------------------------------------- picture files


def test_levels_survive_eight_bits() -> None:
    for levels in range(2, 257):
        image = Image(size=(1, levels), levels=levels)
        all_levels = np.arange(levels, dtype=np.uint8)[None]
        np.testing.assert_array_equal(image.quantise(image.dequantise(all_levels)), all_levels)
        assert image.dequantise(all_levels)[0, [0, -1]].tolist() == [0, 255]


def test_quantising_rounds_to_the_nearest_level() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    for levels in (2, 3, 16, 17, 100):
        image = Image(size=(1, 1), levels=levels)
        found = image.quantise(pixels).astype(float) * 255 / (levels - 1)
        assert np.abs(found - pixels).max() <= 255 / (levels - 1) / 2


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 17), (1, 256), (3, 32), (3, 256)])
def test_saved_pictures_load_as_they_were(channels: Any, levels: int, tmp_path: Path) -> None:
    image = Image(size=(4, 6), channels=channels, levels=levels)
    raw = noise(4, 6, *([3] if channels == 3 else []), levels=levels)
    image.save(raw, tmp_path / "a.png")
    np.testing.assert_array_equal(image.load(tmp_path / "a.png"), raw)
    assert pillow.open(tmp_path / "a.png").format == "PNG"


def load(image: Image, content: bytes, tmp_path: Path, name: str = "a.png") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return image.load(tmp_path / name)


def test_palettes_are_resolved(tmp_path: Path) -> None:
    colours = noise(4, 6, 3) // 128 * 255
    palette = pillow.fromarray(colours).quantize(8, dither=pillow.Dither.NONE)
    assert palette.mode == "P"
    np.testing.assert_array_equal(load(RGB, as_file(palette), tmp_path), colours)


def test_sixteen_bits_keep_their_upper_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFEFF, 0xFFFF]], dtype=np.uint16)
    expected = [[0, 0, 1, 0x12, 0xFE, 0xFF]]
    assert load(GREY, as_file(pillow.fromarray(values)), tmp_path).tolist() == expected
    pgm = b"P5 6 1 65535\n" + values.astype(">u2").tobytes()
    assert load(GREY, pgm, tmp_path, "a.pgm").tolist() == expected
    assert load(RGB, as_file(pillow.fromarray(values)), tmp_path)[..., 1].tolist() == expected


def test_grey_is_repeated_but_colour_is_not_thrown_away(tmp_path: Path) -> None:
    grey = noise(4, 6)
    same = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load(RGB, as_file(pillow.fromarray(grey)), tmp_path), same)
    np.testing.assert_array_equal(load(GREY, as_file(pillow.fromarray(same)), tmp_path), grey)
    same[3, 5, 2] ^= 1
    with refused("a.png", "colour", "channels: 3"):
        load(GREY, as_file(pillow.fromarray(same)), tmp_path)


def test_black_and_white_is_grey(tmp_path: Path) -> None:
    bits = noise(4, 6, levels=2) * 255
    np.testing.assert_array_equal(load(GREY, as_file(pillow.fromarray(bits).convert("1")), tmp_path), bits)


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = noise(4, 6, 4)
    rgba[..., 3] = 255
    np.testing.assert_array_equal(load(RGB, as_file(pillow.fromarray(rgba)), tmp_path), rgba[..., :3])


def test_transparency_is_refused_unless_the_recipe_names_a_background(tmp_path: Path) -> None:
    rgba = np.full((4, 6, 4), 255, dtype=np.uint8)
    rgba[0, 0] = (200, 100, 0, 0)
    rgba[0, 1] = (200, 100, 0, 51)
    content = as_file(pillow.fromarray(rgba))
    with refused("a.png", "transparent", "background: black or white"):
        load(RGB, content, tmp_path)
    for image, base in ((replace(RGB, background="black"), 0), (replace(RGB, background="white"), 255)):
        pixels = load(image, content, tmp_path)
        assert pixels[0, 0].tolist() == [base] * 3
        expected = 0.2 * np.array([200, 100, 0]) + 0.8 * base
        assert np.abs(pixels[0, 1] - expected).max() <= 1
        assert (pixels[1:] == 255).all()


def test_a_transparent_palette_entry_is_transparency(tmp_path: Path) -> None:
    palette = pillow.fromarray(noise(4, 6, levels=2) * 255).convert("RGB").quantize(2)
    content = as_file(palette, transparency=0)
    with refused("a.png", "transparent"):
        load(RGB, content, tmp_path)


def test_cameras_rotation_is_obeyed(tmp_path: Path) -> None:
    grey = noise(4, 6)
    exif = pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    found = load(GREY, as_file(pillow.fromarray(grey), exif=exif), tmp_path)
    np.testing.assert_array_equal(found, np.rot90(grey, -1))


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    content = as_file(pillow.fromarray(np.full((4, 6), 77, dtype=np.uint8)), "JPEG")
    assert (load(GREY, content, tmp_path, "really_a_jpeg.png") == 77).all()


@pytest.mark.parametrize("format", ["JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_other_formats_load(format: str, tmp_path: Path) -> None:
    flat = np.full((4, 6), 128, dtype=np.uint8)
    content = as_file(pillow.fromarray(flat), format, **({"lossless": True} if format == "WEBP" else {}))
    np.testing.assert_array_equal(load(GREY, content, tmp_path, f"a.{format.lower()}"), flat)


# ------------------------------------------------------------- damaged files


def test_text_named_as_a_picture_is_refused(tmp_path: Path) -> None:
    with refused("a.png", "damaged or not a picture", "PNG, JPEG"):
        load(GREY, b"just some text\n" * 10, tmp_path)


def test_a_png_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = as_file(pillow.fromarray(noise(4, 6)))
    load(GREY, content, tmp_path)
    for length in range(len(content)):
        with refused("a.png"):
            load(GREY, content[:length], tmp_path)


@pytest.mark.parametrize("format", ["JPEG", "BMP", "GIF", "WEBP"])
def test_other_formats_cut_in_the_middle_are_refused(format: str, tmp_path: Path) -> None:
    content = as_file(pillow.fromarray(noise(16, 16, 3)), format)
    for share in (0.5, 0.8, 0.95):
        with refused("a.jpg", "damaged"):
            load(RGB, content[: int(len(content) * share)], tmp_path, "a.jpg")


@pytest.mark.parametrize("compress_level", [0, 6])
def test_a_png_with_one_wrong_byte_of_pixels_is_refused(compress_level: int, tmp_path: Path) -> None:
    """Uncompressed, nothing but the checksum tells a wrong pixel from a right one."""
    content = bytearray(as_file(pillow.fromarray(noise(4, 6)), compress_level=compress_level))
    content[content.index(b"IDAT") + 20] ^= 1
    with refused("a.png", "damaged"):
        load(GREY, bytes(content), tmp_path)


def test_a_picture_of_too_many_pixels_is_refused_unread(tmp_path: Path) -> None:
    """A few bytes can promise gigabytes; and no warning of Pillow's may stand beside the one line."""
    for side in (10_000, 100_000):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with refused("a.png", "more than 67,108,864"):
                load(GREY, b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\x10\0IDAT" + bytes(99), tmp_path)
        assert not warned


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [pillow.fromarray(noise(4, 6) // (i + 1)) for i in range(3)]
    with refused("a.gif", "3 frames", "one picture"):
        load(GREY, as_file(frames[0], "GIF", save_all=True, append_images=frames[1:]), tmp_path, "a.gif")


def test_pixels_that_are_not_eight_bits_are_refused(tmp_path: Path) -> None:
    for values in (np.ones((4, 6), dtype=np.float32), np.ones((4, 6), dtype=np.int32)):
        with refused("a.tif", "convert it to 8-bit PNG"):
            load(GREY, as_file(pillow.fromarray(values), "TIFF"), tmp_path, "a.tif")


def test_real_pictures_round_trip(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "sprites").glob("*/*.png"))[::50]
    if not paths:
        pytest.skip("the sprites are not here")
    image = Image(size=(32, 32), channels=3, block=(4, 4))
    for path in paths:
        raw = image.load(path)
        np.testing.assert_array_equal(raw, np.asarray(pillow.open(path).convert("RGB")))
        image.save(image.decode(image.encode(raw)), tmp_path / "a.png")
        np.testing.assert_array_equal(image.load(tmp_path / "a.png"), raw)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with refused("none.png", "no such file"):
        GREY.load(tmp_path / "none.png")
    with refused("a.png", "empty"):
        load(GREY, b"", tmp_path)
    with refused(tmp_path.name, "folder"):
        GREY.load(tmp_path)


# ---------------------------------------------------------------------- parts unknown


@pytest.mark.parametrize(("block", "place"), [(None, (1, 1)), ((1, 1), (1, 1)), ((2, 2), (1, 1)), (None, (1, 2))])
@pytest.mark.parametrize("channels", [1, 3])
def test_unknown_pixels_are_outside_the_alphabet(
    channels: Any, block: tuple[int, int] | None, place: tuple[int, int]
) -> None:
    """In the order of `encode`, all channels of a pixel alike, and nothing else changes."""
    image = Image(size=(4, 6), channels=channels, levels=8, block=block, place=place)
    given = noise(4, 6, *([3] if channels == 3 else []), levels=8)
    keep = np.random.default_rng(1).random((4, 6)) < 0.5
    places = np.stack([keep] * 3, axis=-1) if channels == 3 else keep
    known = image.encode(places.astype(np.uint8)).symbols == 1
    masked, whole = image.encode_masked(given, keep), image.encode(given)
    assert torch.equal(masked.symbols, torch.where(known, whole.symbols, image.vocab)) and masked.header == whole.header
    assert 0 < int(known.sum()) < known.numel()


def test_masks_that_do_not_fit_are_refused() -> None:
    image, given = Image(size=(4, 6), levels=8), noise(4, 6, levels=8)
    with refused("mask is 4x5", "image 4x6"):
        image.encode_masked(given, np.ones((4, 5), dtype=bool))
    with refused("mask is 4x6x1", "image 4x6"):
        image.encode_masked(given, np.ones((4, 6, 1), dtype=bool))
    with refused("bool"):
        image.encode_masked(given, np.ones((4, 6)))
    with refused("3x6", "4x6"):
        image.encode_masked(given[:3], np.ones((3, 6), dtype=bool))
