"""Configured objects as plain data and back, and the mistakes that a damaged or mistyped spec can hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from armm.backbones import NoBackbone, Transformer
from armm.backbones.backbone import BackboneConfig
from armm.errors import InputError
from armm.heads import Categorical, CausalConv, HeadConfig, JointSoftmax, LogisticMixture, Softmax
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.spec import from_spec, import_class, to_spec

OBJECTS = [
    Transformer(width=32, n_heads=2, window=7, attention_softcap=30.0, value_embeddings=True),
    NoBackbone(width=8),
    Categorical(tied=True),
    CausalConv(channels=8, dilations=(1, 2, 4), distribution=LogisticMixture(n_components=3)),
    CausalConv(distribution=Softmax()),
    CausalConv(distribution=JointSoftmax()),
    Text(kind="bytes", unit_symbols=4),
    Image(size=(8, 8), levels=17, head=CausalConv(channels=4, dropout=0.25)),
    Image(max_size=(8, 12), block=(2, 2), channels=3, background="white"),
    Audio(sample_rate=16000, frame=64, max_units=10, normalise="peak"),
    Label(names=("cat", "dog")),
]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_spec_round_trip(value: Any) -> None:
    """Through JSON and back, the same object: tuples, nested heads and distributions included."""
    kind = next(kind for kind in (Modality, BackboneConfig, HeadConfig) if isinstance(value, kind))
    plain = json.loads(json.dumps(to_spec(value)))
    again = from_spec(plain, kind)
    assert again == value and type(again) is type(value)


def test_what_was_learned_stays_out_of_the_spec() -> None:
    """An alphabet or merges are a file of the bundle; in the config they would be there twice."""
    fitted = Text(kind="chars").fit(["hello"])
    assert fitted.vocab == 4
    assert from_spec(to_spec(fitted), Modality) == Text(kind="chars")


SPEC = {"class_path": "armm.modalities.Image", "init_args": {"size": [8, 8]}}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (None, "expected a class_path"),
        ("armm.modalities.Image", "expected a class_path"),
        ([], "expected a class_path"),
        ({}, "expected a class_path"),
        ({"class_path": 7}, "expected a class_path"),
        ({**SPEC, "class_path": "Image"}, "not a class path"),
        ({**SPEC, "class_path": ".Image"}, "not a class path"),
        ({**SPEC, "class_path": "armm..Image"}, "not a class path"),
        ({**SPEC, "class_path": ""}, "not a class path"),
        ({**SPEC, "class_path": "no_such_package.Image"}, "no_such_package"),
        ({**SPEC, "class_path": "armm.modalities.Imgae"}, "has no 'Imgae'; did you mean 'Image'"),
        ({**SPEC, "class_path": "armm.heads.CausalConv"}, "not a Modality"),
        ({**SPEC, "class_path": "armm.modality.discover"}, "not a Modality"),
        ({**SPEC, "init_args": {"siez": [8, 8]}}, "takes no 'siez'; did you mean 'size'"),
        ({**SPEC, "init_args": [8, 8]}, "init_args by name"),
        ({**SPEC, "init_args": {"size": 8}}, "cannot be made"),
        ({**SPEC, "init_args": {"size": [8, 8], "levels": "many"}}, "cannot be made"),
        ({"class_path": "armm.modalities.Text"}, "cannot be made.*kind"),
        ({**SPEC, "init_args": {"size": [8, 8], "levels": 1}}, "levels is 1"),
        ({**SPEC, "init_args": {"size": [8, 8], "head": {"class_path": "os.Nothing"}}}, "os has no 'Nothing'"),
        ({**SPEC, "init_args": {"size": [8, 8], "head": {"class_path": "subprocess.Popen"}}}, "expected a dataclass"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
def test_a_wrong_spec_is_one_line(spec: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        from_spec(spec, Modality)
    assert "\n" not in str(error.value)


def test_only_configured_objects_are_made() -> None:
    """A bundle is data: a class that is not a configuration is not called, whatever it would do without arguments."""
    with pytest.raises(InputError, match="expected a dataclass"):
        from_spec({"class_path": "threading.Thread"}, object)


def test_broken_module_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in that imports something it lacks: one line with both names."""
    (tmp_path / "armm_broken_plugin.py").write_text("from os import nothing_like_that\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"armm_broken_plugin.*nothing_like_that"):
        import_class("armm_broken_plugin.Thing", Modality)
