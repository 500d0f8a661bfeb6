"""A model of LLaMA's shape with 134M random weights, and the same weights in Hugging Face's `LlamaForCausalLM`.

LLaMA has no vector of ours to begin a document with. Its begin-of-sequence token takes that part: our `begin` is set to
that token's embedding, so both are the same function of `[BOS, *prompt]` and of `prompt`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from armm.backbones import Transformer
from armm.batching import collate
from armm.heads import Categorical, HeadConfig
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.prepacking import PrepackedLinear
from armm.sequence import Segment

BOS = 1
CONTEXT = 2048
BACKBONE = Transformer(width=768, n_layers=12, n_heads=12, norm_gain=True, mlp="swiglu", mlp_width=2048, qk_norm=False)


@dataclass(frozen=True)
class Tokens(Modality):
    """Text as token ids, without a tokenizer and without an end."""

    vocab: int = 32000
    head: HeadConfig | None = field(default_factory=partial(Categorical, bias=False))
    name: str = "text"

    def encode(self, raw: Sequence[int]) -> Segment:
        return Segment(self.name, torch.tensor(raw, dtype=torch.int64).view(-1, 1))

    def decode(self, segment: Segment) -> list[int]:
        return segment.flat().tolist()


def our_llama(backbone: Transformer = BACKBONE, vocab: int = 32000, seed: int = 0) -> AutoregressiveModel:
    """Ours, every weight random and of such a size that all of them matter: activations stay of order 1."""
    modality = Tokens(vocab)
    model = AutoregressiveModel({modality.name: modality}, backbone, layout=[modality.name])
    generator = torch.Generator().manual_seed(seed)
    table = model.embedders[modality.name].weight
    assert isinstance(table, nn.Parameter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.0 if parameter is table else parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        model.begin.copy_(table[BOS])
    return model.eval()


def repeating(model: AutoregressiveModel, period: int) -> AutoregressiveModel:
    """The model with an output matrix that makes it go round in cycles of `period` tokens, 0 to period - 1 first.

    Token t + 1's output row is token t's embedding, made so large that the residual stream still carries it at the end.
    """
    head, table = model.head("text"), model.embedders["text"].weight
    assert isinstance(table, Tensor) and isinstance(head.weight, Tensor)
    before = torch.arange(len(head.weight))
    before = before - before % period + (before - 1) % period
    with torch.no_grad():
        table.mul_(8)
        head.weight.copy_(0.02 * table[before.clamp(max=len(head.weight) - 1)])
    return model


def weights(model: AutoregressiveModel) -> Iterator[tuple[str, Tensor]]:
    """Our weights under Hugging Face's names."""
    config, c = model.backbone_config, model.state_dict()
    assert isinstance(config, Transformer)
    sizes = [config.width, config.kv_heads * config.head_width, config.kv_heads * config.head_width]
    yield "model.embed_tokens.weight", c["embedders.text.weight"][: model.modalities["text"].vocab]
    yield "lm_head.weight", c["heads.text.weight"]
    yield "model.norm.weight", c["backbone.norm.weight"]
    for i in range(config.n_layers):
        ours, theirs = f"backbone.blocks.{i}", f"model.layers.{i}"
        for name, matrix in zip("qkv", c[f"{ours}.attention.qkv.weight"].split(sizes), strict=True):
            yield f"{theirs}.self_attn.{name}_proj.weight", matrix
        yield f"{theirs}.self_attn.o_proj.weight", c[f"{ours}.attention.out.weight"]
        for name, matrix in zip(("gate", "up"), c[f"{ours}.mlp.enter.weight"].chunk(2), strict=True):
            yield f"{theirs}.mlp.{name}_proj.weight", matrix
        yield f"{theirs}.mlp.down_proj.weight", c[f"{ours}.mlp.out.weight"]
        yield f"{theirs}.input_layernorm.weight", c[f"{ours}.attention_norm.weight"]
        yield f"{theirs}.post_attention_layernorm.weight", c[f"{ours}.mlp_norm.weight"]


def hugging_face(model: AutoregressiveModel, dtype: torch.dtype = torch.float32) -> Any:
    """`LlamaForCausalLM` with the model's weights, on its device, to be generated from greedily.

    Raises ImportError: transformers is not installed.
    """
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.logging.set_verbosity_error()
    config = model.backbone_config
    assert isinstance(config, Transformer)
    theirs = transformers.LlamaConfig(
        vocab_size=model.modalities["text"].vocab,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=None,  # nothing ends it early
        pad_token_id=0,
    )
    llama: Any = transformers.LlamaForCausalLM(theirs)
    llama.load_state_dict(dict(weights(model)), strict=True)
    return llama.to(device=model.begin.device, dtype=dtype).eval()


def hugging_face_run(llama: Any, prompts: Sequence[Sequence[int]], n_new: int) -> list[list[int]]:
    """Greedy continuations of prompts of one length, each of `n_new` tokens."""
    ids = torch.tensor([[BOS, *prompt] for prompt in prompts], device=llama.device)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, do_sample=False, use_cache=True
        )
    return whole[:, ids.shape[1] :].tolist()


@torch.inference_mode()
def largest_difference(model: AutoregressiveModel, llama: Any, prompt: Sequence[int]) -> float:
    """Between our logits and theirs, of every token of a prompt.

    Raises RuntimeError: more than 1e-4, so that a comparison of speeds would compare different models.
    """
    batch = collate([[model.modalities["text"].encode(prompt)]], model.grammar).to(model.begin.device)
    segment = batch.segments["text"]
    ours = model.head("text").logits(model.contexts(batch), segment.symbols, segment.known, segment.header)[0, :, 0]
    theirs = llama(torch.tensor([[BOS, *prompt]], device=llama.device)).logits[0, :-1]
    difference = float((ours - theirs).abs().max())
    if not difference < 1e-4:
        raise RuntimeError(f"our logits and Hugging Face's differ by {difference:.2g}: not the same model")
    return difference


def bytes_read(model: AutoregressiveModel) -> int:
    """Of weights for each symbol of one row: everything but the embedding table, of which one row is read."""
    parts = [*model.backbone.modules(), *model.heads.modules()]
    tensors = {id(t): t for part in parts for t in [*part.parameters(False), *part.buffers(False)]}
    packed = sum(part.packed_bytes for part in parts if isinstance(part, PrepackedLinear))
    return packed + sum(t.numel() * t.element_size() for t in tensors.values())
