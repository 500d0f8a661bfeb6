"""Clips: frames come back from their rows and from files, heads see earlier frames only, and digits bounce."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from armm.datasets import MovingDigits, Splits
from armm.datasets.moving import MovingItems, bounce
from armm.errors import InputError
from armm.evaluation.score import Material
from armm.evaluation.video import VideoBits
from armm.generation import generate
from armm.heads import CausalConv, Unit
from armm.heads.halo import RowHalo
from armm.modalities import Video
from armm.testing import check_round_trip, run_checks, tiny_model

HEAD = CausalConv(channels=4, kernel=2, dilations=(1, 2), halo=2, halo_layers=1)
SMALL = Video(size=(4, 6), max_frames=5, levels=4, head=HEAD)


def clip(seed: int, n_frames: int = 5, video: Video = SMALL) -> np.ndarray:
    shape = (n_frames, *video.size)
    return np.random.default_rng(seed).integers(0, video.levels, shape, dtype=np.uint8)


def test_video_passes_every_law() -> None:
    assert [fault for _, fault in run_checks(Video(size=(2, 3), max_frames=3, levels=3, head=HEAD))] == [None] * 6


def test_clips_come_back_from_their_rows() -> None:
    check_round_trip(SMALL, [clip(0), clip(1, 1)])
    assert SMALL.encode(clip(0, 3)).header == (3,) and SMALL.encode(clip(0, 3)).n_units == 12
    assert Video(size=(4, 6), max_frames=1).header_sizes == ()


def test_clip_that_was_cut_short_is_decoded() -> None:
    segment = SMALL.encode(clip(0)).window(0, 7)
    assert np.array_equal(SMALL.decode(segment)[0], clip(0)[0])
    part, n_done = SMALL.decode_part(segment, 0)
    assert part is not None and part.shape == (1, 4, 6) and n_done == 24


WRONG = {
    "another size": (np.zeros((2, 6, 4), np.uint8), "frames are 6x4, expected 4x6"),
    "too many frames": (np.zeros((6, 4, 6), np.uint8), "6 frames, at most 5"),
    "no frames": (np.zeros((0, 4, 6), np.uint8), "no frames"),
    "a level too high": (np.full((1, 4, 6), 4, np.uint8), "level 4, expected 0 to 3"),
    "no array": ([[1]], "expected a .T, H, W. uint8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_clips_are_refused(name: str) -> None:
    raw, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        SMALL.encode(raw)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- files


def test_gif_round_trips(tmp_path: Path) -> None:
    """Exactly, and frames that are the same as the one before, which a GIF shows for longer, are there again."""
    still = np.concatenate([clip(0, 2), clip(0, 2)[1:], clip(0, 2)[1:], clip(3, 1)])
    for raw in (clip(0), still, clip(0, 1), np.zeros((3, 4, 6), np.uint8)):
        SMALL.save(raw, tmp_path / "a.gif")
        assert np.array_equal(SMALL.load(tmp_path / "a.gif"), raw)


def test_mp4_round_trips(tmp_path: Path) -> None:
    """Enlarged for people to see, and averaged down again; four levels are far enough apart for the codec."""
    pytest.importorskip("av")
    assert ".mp4" in SMALL.views
    SMALL.save(clip(0), tmp_path / "a.mp4")
    assert np.array_equal(SMALL.load(tmp_path / "a.mp4"), clip(0))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    colour = [Pillow.fromarray(np.full((4, 6, 3), (200, 0, 0), np.uint8)) for _ in range(2)]
    colour[0].save(tmp_path / "colour.gif", save_all=True, append_images=colour[1:])
    Video(size=(5, 6)).save(np.zeros((2, 5, 6), np.uint8), tmp_path / "size.gif")
    (tmp_path / "broken.gif").write_bytes((tmp_path / "size.gif").read_bytes()[:20])
    (tmp_path / "text.mp4").write_text("no film")
    wanted = {
        "colour.gif": "in colour",
        "size.gif": "5x6, expected 4x6",
        "broken.gif": "damaged",
        "text.mp4": "text.mp4",
    }
    for name, message in wanted.items():
        with pytest.raises(InputError, match=message) as refused:
            SMALL.load(tmp_path / name)
        assert name in str(refused.value) and "\n" not in str(refused.value)


def test_preview_is_a_sheet_of_frames() -> None:
    preview = SMALL.preview([clip(0), clip(1, 2)])
    assert preview.kind == "image" and preview.data.shape == (2 * (8 * 4 + 2), 5 * (8 * 6 + 2), 3)


# ---------------------------------------------------------------------- time in the head


def halo(n_layers: int = 2) -> RowHalo:
    torch.manual_seed(0)
    unit = Unit(4, 6, continuous=False, block=(1, 6), whole_rows=True, frame_rows=5)
    return RowHalo(unit, 7, 3, n_layers)


def test_halo_of_a_clip_sees_the_two_frames_before_and_nothing_later() -> None:
    """A row sees rows just above, and around its own place one and two frames earlier."""
    own = halo(n_layers=0)
    symbols = torch.randint(0, 4, (1, 20, 6), generator=torch.Generator().manual_seed(1))
    header = torch.zeros(1, 0, dtype=torch.int64)
    before = own(symbols, header)
    seen: dict[int, set[int]] = {row: set() for row in range(20)}
    for row in range(20):
        other = symbols.clone()
        other[:, row] = (other[:, row] + 1) % 4
        changed = (own(other, header) - before).abs().amax((0, 2, 3)) > 1e-6
        for later in changed.nonzero().flatten().tolist():
            seen[later].add(row)
    assert all(max(rows, default=-1) < row for row, rows in seen.items())
    # (rows of the conv above), then (two convs of 3 and one of 5) around the own row, 5 and 10 rows before
    assert seen[17] == {14, 15, 16} | set(range(8, 17)) | set(range(3, 12))


def test_halo_of_one_row_is_that_of_all() -> None:
    """What a sampler computes row by row is what training computes at once."""
    own, generator = halo(), torch.Generator().manual_seed(2)
    symbols = torch.randint(0, 4, (3, 20, 6), generator=generator)
    header = torch.zeros(3, 0, dtype=torch.int64)
    whole = own(symbols, header)
    for rows in ([0, 1, 2], [5, 11, 19], [17, 4, 9]):
        index = torch.tensor(rows)
        torch.testing.assert_close(own.at(symbols, index, header), whole[torch.arange(3), index], rtol=0, atol=1e-6)


def test_clips_of_a_frame_of_one_row_have_a_halo() -> None:
    """The rows around an earlier place that are not known yet must not be read."""
    model = tiny_model({"video": Video(size=(1, 3), max_frames=3, levels=2, head=HEAD)}, layout=["video"])
    [sample] = generate(model, seed=1)
    assert sample.document[0].n_units == sample.document[0].header[0]


def test_clip_is_continued() -> None:
    """The frames of the prompt stay, and the clip goes on to its full length."""
    model = tiny_model({"video": SMALL}, layout=["video"])
    for sample in generate(model, [[SMALL.encode_prompt(clip(0, 2))]], n=3, seed=1):
        assert sample.decoded[0].shape == (5, 4, 6) and np.array_equal(sample.decoded[0][:2], clip(0, 2))
    with pytest.raises(InputError, match="cut it to fewer"):
        SMALL.encode_prompt(clip(0))


# -------------------------------------------------------------------------- moving digits


def test_digits_move_straight_and_bounce() -> None:
    """A dot's path: one speed, both walls, never outside."""
    dot = np.full((1, 1, 1), 255, np.uint8)
    seen = set()
    for seed in range(20):
        frames = bounce(dot, (5, 7), 30, np.random.default_rng(seed))
        assert (frames.sum(axis=(1, 2)) == 255).all()
        places = np.argwhere(frames)[:, 1:]
        steps = np.abs(np.diff(places, axis=0))
        assert steps.max() <= 2 and (steps.sum(axis=1) > 0).any()
        for axis, most in ((0, 4), (1, 6)):
            assert places[:, axis].min() >= 0 and places[:, axis].max() <= most
            assert places[:, axis].min() <= 1 and places[:, axis].max() >= most - 1
        seen.add(tuple(map(tuple, steps[:3].tolist())))
    assert len(seen) > 4


def test_moving_digits_vary_in_training_only() -> None:
    items = MovingItems(SMALL, np.full((3, 2, 2), 255, np.uint8), 4, 0, varies=True, stills=0.5)
    drawn = [items.item(0, draw)["video"] for draw in range(40)]
    assert {len(raw) for raw in drawn} == {1, 5}
    assert np.array_equal(items.item(0, 7)["video"], items.item(0, 7)["video"])
    held = MovingItems(SMALL, np.full((3, 2, 2), 255, np.uint8), 4, 2)
    assert all(np.array_equal(held.item(1, draw)["video"], held.item(1, 0)["video"]) for draw in range(5))


def test_small_digits_take_the_place_of_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    video = Video(size=(16, 16), max_frames=4, levels=4)
    splits = MovingDigits().load({"video": video}, None, "fail")
    assert "scikit-learn's digits" in capsys.readouterr().err
    assert video.encode(splits.test.item(0, 0)["video"]).n_units == 64
    with pytest.raises(InputError, match="digits are 8x8"):
        MovingDigits().load({"video": SMALL}, None, "fail")


def test_scores_of_clips_and_of_their_frames() -> None:
    """All pixels count once, in clips and one frame at a time; an untrained model's bits are the alphabet's."""
    digits = np.random.default_rng(0).integers(0, 256, (4, 2, 2), dtype=np.uint8)
    items = MovingItems(SMALL, digits, 4, 2)
    model = tiny_model({"video": SMALL}, layout=["video"])
    found = VideoBits().evaluate(model, Material(Splits(items, items, items), at_most=2))
    assert found["bits_per_dim"].n_trials == found["bits_per_dim_without_time"].n_trials == 2 * 5 * 24
    assert found["bits_per_dim"].value != found["bits_per_dim_without_time"].value
    assert found["bits_per_dim"].value == pytest.approx(2, abs=1)
