"""One long text, and the standard library."""

from __future__ import annotations

import pytest

from armm.datasets import Corpus, StandardLibrary
from armm.datasets.texts import library_modules
from armm.errors import InputError
from armm.modalities import Image, Text

TEXT = {"text": Text(kind="bytes")}
LONG = "".join(chr(97 + i % 26) for i in range(1000))


def the_text(split) -> str:
    assert len(split) == 1
    return split.item(0, 0)["text"]


# --------------------------------------------------------------------- corpus


def test_the_last_tenth_is_validation_and_test(tmp_path):
    (tmp_path / "input.txt").write_text(LONG)
    splits = Corpus().load(TEXT, tmp_path, "fail")
    assert the_text(splits.train) == LONG[:900]
    assert the_text(splits.val) == the_text(splits.test) == LONG[900:]


def test_a_test_part_comes_last(tmp_path):
    (tmp_path / "some.txt").write_text(LONG)
    splits = Corpus(val=0.1, test=0.2).load(TEXT, tmp_path / "some.txt", "fail")
    parts = [the_text(split) for split in (splits.train, splits.val, splits.test)]
    assert parts == [LONG[:700], LONG[700:800], LONG[800:]]


def test_the_key_is_the_modalitys_name(tmp_path):
    (tmp_path / "input.txt").write_text(LONG)
    assert Corpus().load({"words": Text(kind="bytes")}, tmp_path, "fail").val.item(0, 0).keys() == {"words"}


def test_the_only_text_of_a_folder_is_the_corpus_and_input_txt_goes_before_others(tmp_path):
    (tmp_path / "novel.md").write_text(LONG)
    (tmp_path / "picture.png").write_bytes(b"no text")
    assert the_text(Corpus().load(TEXT, tmp_path, "fail").train) == LONG[:900]
    (tmp_path / "input.txt").write_text("z" * 100)
    assert the_text(Corpus().load(TEXT, tmp_path, "fail").train) == "z" * 90


def test_a_folder_of_several_texts_is_own_data(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 100)
    assert len(Corpus().load(TEXT, tmp_path, "fail").train) == 3


def test_without_a_path_it_says_where_to_put_the_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        Corpus().load(TEXT, None, "fail")
    assert str(tmp_path / "data/tinyshakespeare/input.txt") in str(error.value) and "karpathy" in str(error.value)
    (tmp_path / "data/tinyshakespeare").mkdir(parents=True)
    (tmp_path / "data/tinyshakespeare/input.txt").write_text(LONG)
    assert the_text(Corpus().load(TEXT, None, "fail").train) == LONG[:900]


def test_an_unreadable_or_tiny_text_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "input.txt").write_bytes(b"ab\xff" * 10)
    with pytest.raises(InputError, match=r"input\.txt is not UTF-8"):
        Corpus().load({"text": Text(kind="chars")}, tmp_path, "skip")
    (tmp_path / "input.txt").write_text("abc")
    with pytest.raises(InputError, match=r"input\.txt: 3 characters are too few"):
        Corpus(test=0.1).load(TEXT, tmp_path, "skip")


def test_a_folder_without_texts_names_the_endings(tmp_path):
    with pytest.raises(InputError, match=r"neither input\.txt nor a file that ends in \.txt"):
        Corpus().load(TEXT, tmp_path, "fail")


def test_a_model_without_text_is_refused(tmp_path):
    for source, path in ((Corpus(), tmp_path), (StandardLibrary(), None)):
        with pytest.raises(InputError, match=r"needs a modality that reads \.txt files; the model has: image"):
            source.load({"image": Image(size=(2, 2))}, path, "fail")


def test_tiny_shakespeare_is_cut_where_nanogpt_cuts_it(shared_data):
    splits = Corpus().load({"text": Text(kind="chars")}, shared_data / "tinyshakespeare", "fail")
    assert [len(the_text(splits.train)), len(the_text(splits.val))] == [1_003_854, 111_540]


# ----------------------------------------------------------- standard library


def library_texts(source: StandardLibrary) -> list[list[str]]:
    splits = source.load(TEXT, None, "fail")
    return [[split.item(i, 0)["text"] for i in range(len(split))] for split in (splits.train, splits.val, splits.test)]


def test_the_library_is_python_in_three_parts_of_the_right_size():
    train, val, test = library_texts(StandardLibrary())
    sizes = [sum(len(text.encode()) for text in part) for part in (train, val, test)]
    assert 1_500_000 < sum(sizes) <= 2_000_000
    assert min(sizes[1:]) > 0.02 * sum(sizes) and max(sizes[1:]) < 0.2 * sum(sizes)
    for text in train[:20] + val + test:
        compile(text, "module", "exec")


def test_the_library_is_the_same_every_time_and_in_no_two_splits():
    train, val, test = library_texts(StandardLibrary())
    assert [train, val, test] == library_texts(StandardLibrary())
    assert not (set(train) & set(val) | set(train) & set(test) | set(val) & set(test))


def test_more_of_the_library_moves_no_module_to_another_split():
    little, much = library_texts(StandardLibrary(1_000_000)), library_texts(StandardLibrary(3_000_000))
    for part, others in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        assert not any(set(little[part]) & set(much[other]) for other in others)


def test_of_the_library_only_what_people_wrote_is_taken(tmp_path):
    """The build's variables hold paths of the machine that Python was built on."""
    taken = ["abc.py", "json/decoder.py", "xml/dom/minidom.py"]
    left = ["test/test_abc.py", "unittest/test/case.py", "site-packages/numpy/core.py", "encodings/cp037.py"]
    left += ["_sysconfigdata__linux_x86_64.py", "json/notes.txt", "idlelib/run.py", "ensurepip/__init__.py"]
    for name in taken + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass")
    assert [path.relative_to(tmp_path).as_posix() for path in library_modules(tmp_path)] == taken


def test_too_little_of_the_library_is_refused():
    with pytest.raises(InputError, match="max_bytes 20000 is too few"):
        StandardLibrary(20_000).load(TEXT, None, "fail")


def test_a_path_instead_of_the_library_is_own_data(tmp_path):
    (tmp_path / "a.txt").write_text(LONG)
    assert the_text(StandardLibrary().load(TEXT, tmp_path, "fail").train) == LONG[:800]
