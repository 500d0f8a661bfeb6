"""The benchmarks' frame: turns, medians, ratios, the table and its last line; and that peers compute the same as ours.

Nothing here is timed: the contenders of these works move a clock of their own.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from armm import bundle
from armm.backbones import NoBackbone, Transformer
from armm.batching import collate
from armm.generation.proposers import UnitPace
from armm.heads import CausalConv, LogisticMixture
from armm.modalities import Audio, Image
from armm.model import AutoregressiveModel

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
KEYS = ["work", "ours", "unit", "peer", "peer_name", "ratio", "exact"]


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    """Benchmarks are scripts: what they import stands beside them."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def contest(on_path: None) -> Any:
    return importlib.import_module("peers.contest")


class Clock:
    """Seconds that pass only when somebody works, and who worked."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float, mark: str = "") -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            self.log += mark

        return run


@pytest.fixture
def clock(contest: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(contest, "perf_counter", own)
    monkeypatch.setattr(contest.machine, "read_bandwidth", lambda device: 2e9)
    monkeypatch.setattr(contest.gc, "collect", lambda: 0)  # a tenth of a second each
    return own


def rate(contest: Any, clock: Clock) -> Any:
    """100 tokens in 2 s; the peers' in 8 s and in 4 s."""
    return contest.Contest(
        unit="tok/s",
        ours=contest.Contender("ours", clock.taking(2), 100),
        exact=True,
        peers=[contest.Contender("slow", clock.taking(8), 100), contest.Contender("quick", clock.taking(4), 100)],
    )


def duration(contest: Any, clock: Clock) -> Any:
    """2 s; the peers' 12 s, of which a quarter is measured, and 6 s."""
    return contest.Contest(
        unit="s",
        ours=contest.Contender("ours", clock.taking(2)),
        exact=False,
        peers=[contest.Contender("slow", clock.taking(3), 4), contest.Contender("quick", clock.taking(6))],
    )


def results(contest: Any, capsys: pytest.CaptureFixture[str], works: dict[str, Any], *argv: str) -> dict[str, Any]:
    """What the last line says."""
    contest.main(list(argv), {name: (lambda setting, made=made: made) for name, made in works.items()})
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# ------------------------------------------------------------------- the frame


def test_last_line_is_json(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the result reads the last line alone; people read the table before it."""
    works = {"first": rate(contest, clock), "second": duration(contest, clock)}
    assert contest.main([], {name: (lambda setting, made=made: made) for name, made in works.items()}) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [list(result) for result in found["results"]] == [KEYS, KEYS]
    assert [result["work"] for result in found["results"]] == ["first", "second"]
    assert [result["exact"] for result in found["results"]] == [True, False]
    assert found["skipped"] == found["failed"] == {}
    assert any(re.match(r"first +ours +50 +50 to 50 +tok/s$", line) for line in table)
    assert any(re.match(r" +quick +25 +25 to 25 +tok/s +ours is 2\.00 x$", line) for line in table)


def test_greater_ratio_is_faster_for_rates(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours over the peer's, the fastest of them."""
    (found,) = results(contest, capsys, {"work": rate(contest, clock)})["results"]
    assert found == dict(zip(KEYS, ["work", 50.0, "tok/s", 25.0, "quick", 2.0, True], strict=True))


def test_greater_ratio_is_faster_for_seconds(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The peer's over ours, and what is measured in part is multiplied."""
    told = results(contest, capsys, {"work": duration(contest, clock)})
    assert told["results"] == [dict(zip(KEYS, ["work", 2.0, "s", 6.0, "quick", 3.0, False], strict=True))]
    assert told["details"]["work"]["slow"] == 12.0


def test_given_peer_is_not_measured(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Real time is a number."""
    made = replace(rate(contest, clock), peers=(), given=("real time", 40.0))
    (found,) = results(contest, capsys, {"work": made})["results"]
    assert (found["peer"], found["peer_name"], found["ratio"]) == (40.0, "real time", 1.25)


def test_without_peers_there_is_no_ratio(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = results(contest, capsys, {"work": replace(rate(contest, clock), peers=())})["results"]
    assert (found["ours"], found["peer"], found["peer_name"], found["ratio"]) == (50.0, None, None, None)


def test_numbers_are_medians(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """One repetition that something disturbed changes nothing."""
    seconds = iter([1.0, 2.0, 100.0, 2.0])  # the first is the warm-up
    ours = contest.Contender("ours", lambda: clock.taking(next(seconds))(), 100)
    made = replace(rate(contest, clock), ours=ours, peers=())
    (found,) = results(contest, capsys, {"work": made}, "--seconds", "1")["results"]
    assert found["ours"] == 50.0


def test_contenders_take_turns(contest: Any, clock: Clock) -> None:
    """A slow spell of the machine meets all of them, and none is always the first after it."""
    a, b = (contest.Contender(name, clock.taking(1, name)) for name in "ab")
    times = contest.measure([a, b], seconds=1.0)
    assert clock.log == "ab" + "ab" + "ba" + "ab"  # warm-ups, then three rounds
    assert times == [[1.0] * 3] * 2


def test_warm_up_is_not_measured(contest: Any, clock: Clock) -> None:
    made = contest.Contender("a", clock.taking(1, "r"), warm=clock.taking(50, "w"))
    assert contest.measure([made], seconds=1.0) == [[1.0] * 3]
    assert clock.log == "wrrr"


@pytest.mark.parametrize(("seconds", "repetitions"), [(1.0, 3), (5.5, 5), (1000.0, 9)])
def test_seconds_bound_the_repetitions(contest: Any, clock: Clock, seconds: float, repetitions: int) -> None:
    """Never fewer than three, never endless."""
    (times,) = contest.measure([contest.Contender("a", clock.taking(1))], seconds)
    assert len(times) == repetitions


def test_what_stands_beside(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The cost of exactness, the first symbol, memory and bandwidth are told and printed."""
    made = replace(
        rate(contest, clock),
        exact_mode=contest.Contender("exact", clock.taking(1.25)),
        other_mode=contest.Contender("approximate", clock.taking(1)),
        first_symbol=contest.Contender("first", clock.taking(0.125)),
        peak_memory=3 << 29,
        bytes_read=10_000_000,
    )
    contest.main([], {"work": lambda setting: made})
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])["details"]["work"]
    assert told["exact_costs"] == pytest.approx(0.25)
    assert told["first_symbol_s"] == 0.125
    assert told["peak_memory_bytes"] == 3 << 29
    assert told["of_bandwidth"] == pytest.approx(10e6 * 50 / 2e9)
    for said in ("exact=True costs +25%", "125 ms", "1.50 GiB", "25% of memory bandwidth"):
        assert said in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "text_b2"], r"no work is called 'text_b2'; there are text_b1, images; did you mean 'text_b1'\?"),
        (["--only", "images", "--seconds", "0"], r"--seconds is 0, it must be greater than 0"),
    ],
)
def test_a_mistake_is_one_line(
    contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    """Exit code 2, one line that names the thing, and nothing has been measured."""
    works = {name: lambda setting: rate(contest, clock) for name in ("text_b1", "images")}
    assert contest.main(argv, works) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf".*: {said}\n", err)
    assert clock.now == 0


def test_only_chooses(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the command line; works that were not asked for are not even made ready."""

    def unwanted(setting: Any) -> Any:
        raise AssertionError("made ready")

    works = {"a": lambda setting: rate(contest, clock), "b": unwanted, "c": lambda setting: duration(contest, clock)}
    assert contest.main(["--only", "c", "a"], works) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["work"] for result in found["results"]] == ["c", "a"]


def test_missing_package_skips_its_work(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are measured, and the reason is told."""

    def lacking(setting: Any) -> Any:
        raise ImportError("No module named 'numba'")

    assert contest.main([], {"fast": lacking, "work": lambda setting: rate(contest, clock)}) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["skipped"] == {"fast": "No module named 'numba'"}
    assert [result["work"] for result in found["results"]] == ["work"]


def test_broken_work_is_told(contest: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 with the traceback, but what others measured is not lost."""

    def broken(setting: Any) -> Any:
        raise RuntimeError("not the same model")

    assert contest.main([], {"bad": broken, "work": lambda setting: rate(contest, clock)}) == 1
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert found["failed"] == {"bad": "RuntimeError: not the same model"}
    assert [result["work"] for result in found["results"]] == ["work"]
    assert "Traceback" in err


def test_setting_reaches_the_works(contest: Any, clock: Clock) -> None:
    seen = []

    def prepare(setting: Any) -> Any:
        seen.append((setting.device, setting.seconds, setting.bandwidth))
        return rate(contest, clock)

    contest.main(["--seconds", "3"], {"work": prepare})
    assert seen == [("cpu", 3.0, 2e9)]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's")
def test_peak_memory_is_that_of_the_run() -> None:
    """Not that of what ran before in the same process."""
    machine = importlib.import_module("armm.commands.machine")
    cpu = torch.device("cpu")

    def fill() -> None:
        with mmap(-1, 128 << 20) as block:  # malloc may have been told to keep what is freed
            block.write(b"x" * len(block))

    large = machine.peak_memory(fill, cpu)
    small = machine.peak_memory(lambda: None, cpu)
    assert large - small > 100 << 20


# ------------------------------------------------------------------- the works


def test_works_are_documented() -> None:
    """The README's table has every work, and no other."""
    generation, training = (importlib.import_module(name) for name in ("generation", "training"))
    works = [*generation.WORKS, *training.works(Path())]
    documented = re.findall(r"^\| `(\w+)` \|", (BENCHMARKS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert documented == works
    assert len(works) == 16


def test_no_text_to_learn_from_is_one_line(contest: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, words in ((b"", "has 0 characters"), (b"\xff\xfe\x00x" * 9999, "no UTF-8 text"), (None, "no file")):
        path = tmp_path / "input.txt"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        assert contest.main(["--data", str(path)], {}, learns=True) == 2
        error = capsys.readouterr().err
        assert str(path) in error and words in error and error.count("\n") == 1


# ------------------------------------------------------------------- the peers


def test_nanogpt_is_as_its_readme_says() -> None:
    """The model for tiny Shakespeare has 10.65M parameters there, positions not counted; and it learns by its rates."""
    nanogpt = importlib.import_module("peers.nanogpt")
    model = nanogpt.GPT(nanogpt.NanoGPT(65, context=256, n_layers=6, n_heads=6, width=384))
    counted = sum(p.numel() for p in model.parameters()) - model.wpe.weight.numel()
    assert f"{counted / 1e6:.2f}M" == "10.65M"
    config = nanogpt.NanoGPT(5, context=8, batch_size=4, n_layers=2, n_heads=2, width=16)
    assert config.rate(99) == pytest.approx(1e-3, rel=0.02) and config.rate(100) == 1e-3
    assert config.rate(1050) == pytest.approx(5.5e-4) and config.rate(2001) == 1e-4
    training = nanogpt.Training(config, np.arange(1000) % 5)
    tokens = torch.arange(9)[None] % 5
    before = torch.nn.functional.cross_entropy(training.model(tokens[:, :-1])[0], tokens[0, 1:])
    for _ in range(30):
        training.step(1e-2)
    after = torch.nn.functional.cross_entropy(training.model(tokens[:, :-1])[0], tokens[0, 1:])
    assert after < 0.5 * before, "what follows is certain"
    changed = tokens.clone()
    changed[0, 5] = 1
    first, other = (training.model(t[:, :-1])[0] for t in (tokens, changed))
    assert torch.equal(first[:5], other[:5]) and not torch.equal(first[5], other[5]), "causal"


def build(modality: Any, backbone: Any) -> AutoregressiveModel:
    """Random weights everywhere, so that a term that a peer leaves out is missed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoregressiveModel({modality.name: modality}, backbone, layout=[modality.name])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def random_symbols(shape: tuple[int, ...], vocab: int) -> torch.Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(0))


def small_wavenet() -> Any:
    head = CausalConv(kernel=2, channels=6, skip=10, dilations=(1, 2, 4, 1, 2, 4), hidden_layers=2)
    return build(Audio(frame=8, levels=16, head=head), NoBackbone()).head("audio")


def test_ring_buffers_are_the_same_wavenet() -> None:
    """Over more samples than the longest ring holds, and a frame's border."""
    wavenet, head = importlib.import_module("peers.wavenet"), small_wavenet()
    assert wavenet.largest_difference(head, random_symbols((4, 8), 16)) < 1e-5
    drawn = wavenet.generate(head, 20, torch.Generator().manual_seed(0))
    assert len(drawn) == 20 and set(drawn) <= set(range(16))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: net.bias.zero_(),
        lambda net: net.skip_bias.add_(1),
        lambda net: setattr(net, "dilations", (1, 2, 4, 1, 2, 3)),
    ],
)
def test_another_wavenet_is_refused(spoil: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is timed: a peer without biases, or with a shorter memory, would be another network."""
    wavenet, head = importlib.import_module("peers.wavenet"), small_wavenet()
    init = wavenet.WaveNet.__init__

    def spoilt(self: Any, head: Any) -> None:
        init(self, head)
        self.skip_bias = self.skip_bias.clone()
        spoil(self)

    monkeypatch.setattr(wavenet.WaveNet, "__init__", spoilt)
    with pytest.raises(RuntimeError, match="not the same network"):
        wavenet.largest_difference(head, random_symbols((4, 8), 16))


@pytest.mark.parametrize(
    "modality",
    [
        Image(size=(4, 6), levels=2, head=CausalConv(channels=6)),
        Image(size=(3, 4), channels=3, levels=8, head=CausalConv(channels=6, distribution=LogisticMixture(2))),
    ],
)
def test_naive_sampler_is_the_same_model(modality: Image) -> None:
    """Its distributions are those of the likelihood, for every channel; one level changed before, and it is seen."""
    naive = importlib.import_module("peers.naive")
    model = build(modality, Transformer(width=16, n_layers=2, n_heads=2))
    sampler = naive.NaiveSampler(model, 2)
    symbols = random_symbols((2, modality.size[0] * modality.unit_symbols), modality.levels)  # type: ignore[index]
    sampler.canvas.copy_(symbols.view(sampler.canvas.shape))
    with torch.no_grad():
        nats = model.log_prob(sampler.batch).payload[modality.name].flatten(1)
    assert sampler.largest_difference(symbols, nats, symbols.shape[1]) < 1e-4
    other = symbols.clone()
    other[:, 0] = (other[:, 0] + 1) % modality.levels
    with pytest.raises(RuntimeError, match="not the same model"):
        sampler.largest_difference(other, nats, symbols.shape[1])


def test_naive_sampler_draws_where_it_should() -> None:
    naive = importlib.import_module("peers.naive")
    model = build(Image(size=(4, 6), levels=256, head=CausalConv(channels=6)), Transformer(width=16, n_heads=2))
    sampler = naive.NaiveSampler(model, 2)
    sampler.draw(5, 3, torch.Generator().manual_seed(0))
    drawn = sampler.canvas.flatten(1)
    assert (drawn[:, 5:8] > 0).all()
    drawn[:, 5:8] = 0
    assert not drawn.any()


def rotated(x: np.ndarray, position: int, pairs: bool) -> np.ndarray:
    """(H, E) rotated as llama.cpp does it, neighbours paired, or by halves; by the formula."""
    n = x.shape[1] // 2
    angle = position * 10000.0 ** (-np.arange(n) / n)
    a, b = (x[:, ::2], x[:, 1::2]) if pairs else (x[:, :n], x[:, n:])
    whole = np.stack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1 if pairs else 1)
    return whole.reshape(x.shape)


def test_gguf_rows_suit_the_other_rotation() -> None:
    """Attention scores are the same numbers; without interleaving they are not."""
    interleaved = importlib.import_module("peers.llama_gguf").interleaved
    generator = np.random.default_rng(0)
    x, matrices = generator.normal(size=(2, 24)), generator.normal(size=(2, 3 * 8, 24))

    def scores(matrices: list[np.ndarray], pairs: bool) -> np.ndarray:
        q, k = ((m @ own).reshape(3, 8) for m, own in zip(matrices, x, strict=True))
        return (rotated(q, 5, pairs) * rotated(k, 2, pairs)).sum(1)

    expected = scores(list(matrices), pairs=False)
    assert np.allclose(scores([interleaved(m, 3) for m in matrices], pairs=True), expected)
    assert not np.allclose(scores(list(matrices), pairs=True), expected, atol=0.1)


def test_gguf_names() -> None:
    gguf_name = importlib.import_module("peers.llama_gguf").gguf_name
    assert gguf_name("model.layers.11.mlp.down_proj.weight") == "blk.11.ffn_down.weight"
    assert gguf_name("model.norm.weight") == "output_norm.weight"
    assert gguf_name("lm_head.weight") == "output.weight"


def test_hugging_face_has_our_weights() -> None:
    """The same logits; a model that rotates otherwise is refused before anything is timed."""
    pytest.importorskip("transformers", reason="the peer needs transformers: pip install armm[bench]")
    llama = importlib.import_module("peers.llama")
    small = replace(llama.BACKBONE, width=64, n_layers=2, n_heads=4, mlp_width=96)
    model = llama.our_llama(small, vocab=512)
    theirs, prompt = llama.hugging_face(model), list(range(3, 40))
    assert llama.largest_difference(model, theirs, prompt) < 1e-5
    assert [len(own) for own in llama.hugging_face_run(theirs, [prompt, prompt], 5)] == [5, 5]
    other = llama.our_llama(replace(small, rope_base=500.0), vocab=512)
    with pytest.raises(RuntimeError, match="not the same model"):
        llama.largest_difference(other, theirs, prompt)


def test_repeating_model_goes_round() -> None:
    """Greedily it goes on with the cycle that its prompt goes round in."""
    llama = importlib.import_module("peers.llama")
    small = replace(llama.BACKBONE, width=64, n_layers=2, n_heads=4, mlp_width=96)
    model = llama.repeating(llama.our_llama(small, vocab=512), period=16)
    batch = collate([[model.modalities["text"].encode([*range(16), *range(16)])]], model.grammar)
    with torch.no_grad():
        segment, contexts = batch.segments["text"], model.contexts(batch)
        best = model.head("text").logits(contexts, segment.symbols, segment.known, segment.header).argmax(-1)
    assert best[0, 1:, 0].tolist() == [*range(1, 16), *range(16)]


def test_bytes_read_leave_the_embedding_out() -> None:
    """Of the embedding table a step reads one row."""
    llama = importlib.import_module("peers.llama")
    model = llama.our_llama(replace(llama.BACKBONE, width=64, n_layers=2, n_heads=4, mlp_width=96), vocab=512)
    n_block = 64 * 192 + 64 * 64 + 64 * 192 + 96 * 64 + 2 * 64
    assert llama.bytes_read(model) == 4 * (2 * n_block + 64 + 512 * 64)


def _run(folder: Path, steps: int, scores: dict[str, float]) -> Path:
    """A run's numbers, as training writes them."""
    bits = {"audio": {"bits_per_sample": 5 - steps / 1000}, "structure": {"bits_per_document": 1.0}}
    metrics = {
        "steps": steps,
        "training_seconds": 0.06 * steps,
        "test": bits,
        "history": [{"step": steps, "val": bits}],
        "scores": {name: {"value": value, "n_trials": 8} for name, value in scores.items()},
    }
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_scores_by_length_of_training_are_put_in_order(tmp_path, capsys):
    more_training = importlib.import_module("more_training")
    runs = [
        _run(tmp_path / name, n, {"agreement": n / 4000, "judge": 1.0}) for name, n in (("long", 2000), ("short", 1000))
    ]
    assert more_training.main([*map(str, runs), "--score", "agreement", "--out", str(tmp_path / "out.png")]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["| 1,000", "1.0", "4.000", "25.0 % |"], ["| 2,000", "2.0", "3.000", "50.0 % |"]]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_different_recipes_have_no_common_scores(tmp_path, capsys):
    more_training = importlib.import_module("more_training")
    runs = [_run(tmp_path / name, 9, {name: 1.0}) for name in ("agreement", "exact")]
    with pytest.raises(SystemExit):
        more_training.main([str(run) for run in runs])
    assert "give runs of one recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        more_training.main([str(runs[0]), "--score", "judge"])
    assert "--score judge: the runs have agreement" in capsys.readouterr().err


def test_passes_of_the_fixed_point_are_counted(tmp_path, capsys, monkeypatch):
    """A row of n pixels takes at most n passes and one to see that nothing changes, and at least that one."""
    monkeypatch.setattr("armm.generation.units.UnitPace", UnitPace)  # put back afterwards
    image = Image(size=(4, 6), levels=2, head=CausalConv(channels=4, dilations=(1, 2), halo=1))
    bundle.save(AutoregressiveModel({"image": image}, Transformer(width=8, n_layers=1, n_heads=2), ["image"]), tmp_path)
    assert importlib.import_module("fixed_point").main([str(tmp_path), "--n", "1,2"]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(int(n), who.strip()) for n, who, *_ in lines] == [
        (n, who) for n in (1, 2) for who in ("FixedPoint", "UnitAbove", "Hold")
    ]
    assert all(1 <= float(mean) <= int(most) <= 7 for _, _, mean, most, _ in lines)
