"""The same weights once more as a GGUF file, run by llama.cpp through `llama-cpp-python`.

llama.cpp rotates neighbouring channels of a query or key, Hugging Face's layout (and ours) the two halves, so the rows
of those two matrices are interleaved: the `permute` of llama.cpp's own converter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from armm.backbones import Transformer
from armm.model import AutoregressiveModel
from peers.llama import BOS, CONTEXT, weights

Kind = Literal["F32", "Q8_0", "Q4_0"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
N_CONTROL, N_BYTES = 3, 256  # unknown, begin, end; then a token for every byte, as every such vocabulary has


def interleaved(matrix: np.ndarray, n_heads: int) -> np.ndarray:
    """(heads * E, D) rows of a head from halves, a0 .. b0 .., to pairs, a0 b0 a1 b1 .."""
    return matrix.reshape(n_heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def gguf_name(name: str) -> str:
    """Hugging Face's name of a tensor as llama.cpp's."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        number, _, stem = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[stem]}.weight"
    return f"{NAMES[stem]}.weight"


def write(model: AutoregressiveModel, path: Path, kind: Kind) -> None:
    """Write a model as a GGUF file, all of its matrices in one format, norms in float32.

    Raises ImportError: the gguf package is not installed.
    """
    import gguf  # pyright: ignore[reportMissingImports]

    config, vocab = model.backbone_config, model.modalities["text"].vocab
    assert isinstance(config, Transformer)
    out = gguf.GGUFWriter(path, "llama")
    out.add_vocab_size(vocab)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(config.width)
    out.add_block_count(config.n_layers)
    out.add_feed_forward_length(config.hidden)
    out.add_head_count(config.n_heads)
    out.add_head_count_kv(config.kv_heads)
    out.add_rope_dimension_count(config.head_width)
    out.add_rope_freq_base(config.rope_base)
    out.add_layer_norm_rms_eps(config.norm_eps)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(N_BYTES))]
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * (N_CONTROL - 1), *[gguf.TokenType.BYTE] * N_BYTES]
    out.add_tokenizer_model("llama")  # nobody reads text with it, but a vocabulary there must be
    out.add_token_list(names + [f"token{i}" for i in range(len(names), vocab)])
    out.add_token_scores([0.0] * vocab)
    out.add_token_types([*types, *[gguf.TokenType.NORMAL] * (vocab - len(types))])
    out.add_bos_token_id(BOS)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}
    for name, tensor in weights(model):
        data = tensor.detach().cpu().float().numpy()
        n_heads = heads.get(name.split(".")[-2])
        data = np.ascontiguousarray(interleaved(data, n_heads) if n_heads else data)
        own = gguf.GGMLQuantizationType[kind if data.ndim > 1 else "F32"]
        out.add_tensor(gguf_name(name), gguf.quants.quantize(data, own), raw_dtype=own)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def llama_cpp(model: AutoregressiveModel, folder: Path, kind: Kind) -> Any:
    """llama.cpp with the model's weights in one format, as many threads as torch uses.

    Raises ImportError: llama-cpp-python or gguf is not installed.
    """
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    path = folder / f"{kind}.gguf"
    write(model, path, kind)
    n_threads = torch.get_num_threads()
    # float32 keys and values (ggml type 0) beside float32 weights, its default float16 otherwise
    cache = 0 if kind == "F32" else None
    return Llama(
        str(path),
        n_ctx=1024,
        n_batch=1024,
        n_ubatch=1024,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        type_k=cache,
        type_v=cache,
        verbose=False,
    )


def llama_cpp_run(llama: Any, prompt: Sequence[int], n_new: int) -> list[int]:
    """The greedy continuation of a prompt, `n_new` tokens."""
    llama.reset()  # or it would find its cache to begin with this prompt already
    return list(islice(llama.generate([BOS, *prompt], temp=0.0, repeat_penalty=1.0), n_new))


def llama_cpp_read(llama: Any, prompt: Sequence[int]) -> np.ndarray:
    """(V,) logits after a prompt, which is read anew."""
    import llama_cpp  # pyright: ignore[reportMissingImports]

    llama.reset()
    llama.eval([BOS, *prompt])
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits(llama.ctx), shape=(llama.n_vocab(),))
