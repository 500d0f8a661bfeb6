"""One dial for the size of a model: depth, width, heads, learning rate and batch from a recipe's own.

Width is 64 to a layer, as in GPT-2 and nanochat (github.com/karpathy/nanochat, scripts/base_train.py), a head is 64
wide. AdamW's rates fall with the square root of the width (there too), Muon's stay: its updates have the same spectral
norm at every width (Bernstein, jeremybernste.in/writing/deriving-muon). The batch grows with the data that a model
deserves, itself in proportion to its weights, to the power of 0.383 (Bergsma et al., arXiv:2505.13738).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from armm.backbones import Transformer
from armm.errors import InputError, nearest
from armm.training.optim import Optimization

SIZES = {"nano": 2, "tiny": 4, "small": 6, "medium": 8, "base": 12, "large": 16, "xl": 24}
HEAD_WIDTH = 64
RATES = ("lr", "embedding_lr", "head_lr", "scalar_lr")
SHAPE = ("width", "n_layers", "n_heads", "n_kv_heads", "mlp", "mlp_width")
BACKBONE = "model.backbone.init_args"


def n_layers_of(size: str | int) -> int:
    """Raises InputError: no such size."""
    text = str(size)
    if text in SIZES:
        return SIZES[text]
    if text.isdigit() and int(text) >= 1:
        return int(text)
    names = ", ".join(f"{name} ({n})" for name, n in SIZES.items())
    raise InputError(f"size is {text!r}{nearest(text, SIZES)}: name one of {names}, or a number of layers")


def derived(size: str | int, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a size means for a recipe, by key.

    Raises InputError: no such size, or a recipe without a transformer.
    """
    n_layers = n_layers_of(size)
    model = recipe.get("model") or {}
    backbone: Any = model.get("backbone") or {}
    backbone = {"class_path": backbone} if isinstance(backbone, str) else backbone
    path = str(backbone.get("class_path", "Transformer"))
    if path.rpartition(".")[2] != "Transformer":
        raise InputError(f"size sets a Transformer, the recipe's backbone is {path}; leave size out")
    own: Any = backbone.get("init_args") or {}
    before = Transformer(**{key: own[key] for key in SHAPE if key in own})
    after = grown(before, n_layers)
    values: dict[str, Any] = {
        f"{BACKBONE}.{key}": getattr(after, key)
        for key in ("width", "n_layers", "n_heads", "n_kv_heads", "mlp_width")
        if getattr(after, key) is not None
    }
    rates = model.get("optimization") or {}
    for key in RATES:
        rate = rates.get(key, getattr(Optimization(), key))
        if rate is not None:
            values[f"model.optimization.{key}"] = rounded(float(rate) * (after.width / before.width) ** -0.5)
    batch = (recipe.get("data") or {}).get("batch_size", 32)
    wanted = batch * (n_weights(after) / n_weights(before)) ** 0.383
    values["data.batch_size"] = max(1, round(wanted))
    return values


def grown(before: Transformer, n_layers: int) -> Transformer:
    """The same kind of blocks, so many of them; heads that share keys and values go on sharing them."""
    width, mlp_width, n_kv_heads = HEAD_WIDTH * n_layers, before.mlp_width, before.n_kv_heads
    if mlp_width is not None:
        mlp_width = 8 * max(1, round(mlp_width * width / before.width / 8))
    if n_kv_heads is not None:
        most = max(1, n_layers * n_kv_heads // before.n_heads)
        n_kv_heads = max(n for n in range(1, most + 1) if n_layers % n == 0)
    return Transformer(width, n_layers, n_layers, n_kv_heads, mlp=before.mlp, mlp_width=mlp_width)


def n_weights(config: Transformer) -> int:
    """In the blocks' matrices."""
    attention = config.width * (2 * config.width + 2 * config.kv_heads * config.head_width)
    return config.n_layers * (attention + (3 if config.mlp == "swiglu" else 2) * config.width * config.hidden)


def rounded(x: float) -> float:
    """To two digits: nobody can tune more."""
    return float(f"{x:.2g}")


def with_size(arguments: list[str], recipe: Mapping[str, Any]) -> list[str]:
    """A command line on which what a size means stands written out, before the user's own keys.

    A size in the recipe leaves alone what the recipe says itself; one on the command line does not.

    Raises InputError: no such size.
    """
    given, rest = _taken(arguments)
    size = recipe.get("size") if given is None else given
    if size is None:
        return arguments
    values = derived(size, recipe)
    if given is None:
        values = {key: value for key, value in values.items() if not _names(recipe, key)}
    said = [f"--{key}={value}" for key, value in values.items()]
    return [f"--size={size}", *said, *rest]


def _taken(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The last size on a command line, and the rest of it."""
    size, rest, waiting = None, [], False
    for argument in arguments:
        if waiting:
            size, waiting = argument, False
        elif argument == "--size":
            waiting = True
        elif argument.startswith("--size="):
            size = argument.removeprefix("--size=")
        else:
            rest.append(argument)
    if waiting:
        raise InputError(f"--size lacks its value: one of {', '.join(SIZES)}, or a number of layers")
    return size, rest


def _names(recipe: Mapping[str, Any], key: str) -> bool:
    """Whether a recipe says something for a dotted key itself."""
    place: Any = recipe
    for word in key.split("."):
        if not isinstance(place, Mapping) or word not in place:
            return False
        place = place[word]
    return True
