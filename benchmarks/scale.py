"""What a training on many GPUs takes, by arithmetic: `python benchmarks/scale.py`. docs/scale.md explains the lines.

Nothing is measured here. What is assumed of the machines stands in `Machines`, and is an argument to change.
"""

from __future__ import annotations

from dataclasses import dataclass

from armm.backbones import Transformer

GB = 1e9
FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Machines:
    """Attributes:
    per_node: GPUs of a machine. peak: bfloat16 operations per second of a GPU. memory: bytes of a GPU.
    network: bytes per second that each GPU sends to other machines.
    storage: bytes per second that all machines together read, or write.
    hashing: bytes per second that a core takes a SHA-256 of.
    share: of the peak that training reaches.
    """

    n_gpus: int = 64
    per_node: int = 8
    peak: float = 989e12
    memory: float = 80e9
    network: float = 50e9
    storage: float = 10e9
    hashing: float = 0.5e9
    share: float = 0.36


MACHINES = Machines()
LLAMA_7B = Transformer(width=4096, n_layers=32, n_heads=32, mlp="swiglu", mlp_width=11008, norm_gain=True)


@dataclass(frozen=True)
class Plan:
    """Attributes:
    vocab: of the tokens. context: of a window. windows: a GPU takes at once. accumulate: of those in a step.
    data: bytes of tokens. shard_tokens: of a shard, 4 bytes of text each, by `armm prepare --shard-mb 2048`.
    minutes: between two checkpoints.
    """

    backbone: Transformer = LLAMA_7B
    vocab: int = 65_536
    context: int = 4096
    windows: int = 4
    accumulate: int = 4
    data: float = 10e12
    shard_tokens: float = 2**31 / 4
    minutes: float = 15
    machines: Machines = MACHINES

    # ------------------------------------------------------------------------ the model

    @property
    def block(self) -> int:
        """Weights of one block's matrices."""
        b = self.backbone
        wide = 2 * b.hidden if b.mlp == "swiglu" else b.hidden
        return b.width * (2 * b.width + 2 * b.kv_heads * b.head_width) + b.width * (wide + b.hidden)

    @property
    def matrices(self) -> int:
        return self.backbone.n_layers * self.block

    @property
    def tables(self) -> int:
        """Weights of the embedding and of the output."""
        return 2 * self.vocab * self.backbone.width

    @property
    def parameters(self) -> int:
        """But for a few thousand gains and the like."""
        return self.matrices + self.tables

    # --------------------------------------------------------------------- a GPU's memory

    @property
    def tokens_at_once(self) -> int:
        return self.windows * self.context

    def memory(self) -> dict[str, float]:
        """Bytes of a GPU, by what they are for, at the end of the forward pass, where most is needed."""
        b, n, tokens = self.backbone, self.machines.n_gpus, self.tokens_at_once
        inside = 3 * b.width + 2 * b.width + 4 * b.hidden + 2 * b.width  # heads, attention, MLP, norms
        return {
            "weights, gradients and Muon's moment, a part": 3 * FLOAT * self.matrices / n,
            "the same of embedding and output, with AdamW's two moments": 4 * FLOAT * self.tables / n,
            "embedding and output whole, and their gradient": 2 * FLOAT * self.tables,
            "two blocks whole in bfloat16, and one's gradient": 2 * HALF * self.block + FLOAT * self.block,
            "inputs of all blocks, kept": FLOAT * tokens * b.width * b.n_layers,
            "one block computed anew": HALF * tokens * inside,
            "logits, their logarithm and gradient, float32": 3 * FLOAT * tokens * self.vocab,
        }

    # ------------------------------------------------------------------------- a step

    @property
    def flops_per_token(self) -> float:
        """Of a training step, without what is computed anew: products with weights, and causal attention."""
        b = self.backbone
        return 6 * (self.matrices + self.tables / 2) + 6 * b.n_layers * b.width * self.context

    @property
    def tokens_per_step(self) -> int:
        return self.tokens_at_once * self.machines.n_gpus * self.accumulate

    @property
    def seconds_per_step(self) -> float:
        m = self.machines
        return self.tokens_per_step * self.flops_per_token / (m.n_gpus * m.peak * m.share)

    def sent(self) -> dict[str, float]:
        """Bytes that a GPU sends, and receives, in a step."""
        n = self.machines.n_gpus
        others = (n - 1) / n
        return {
            "blocks gathered for the forward pass, bfloat16": self.accumulate * others * HALF * self.matrices,
            "and again for the backward pass": self.accumulate * others * HALF * self.matrices,
            "their gradients added up, float32": self.accumulate * others * FLOAT * self.matrices,
            "embedding and output gathered, and their gradients": self.accumulate * 2 * others * FLOAT * self.tables,
            "Muon: rows of matrices there and back, bfloat16": 2 * others * HALF * self.matrices / n,
        }

    @property
    def muon_flops(self) -> float:
        """Of all matrices of a step: five iterations of two products with the matrix and one of its square."""
        b = self.backbone
        wide = 2 * b.hidden if b.mlp == "swiglu" else b.hidden
        size = 2 * b.kv_heads * b.head_width
        total = 0.0
        for rows, columns in ((b.width + size, b.width), (b.width, b.width), (wide, b.width), (b.width, b.hidden)):
            small, large = sorted((rows, columns))
            total += 5 * (4 * small**2 * large + 2 * small**3)
        return b.n_layers * total

    # -------------------------------------------------------------------- data and restarts

    @property
    def symbol_bytes(self) -> int:
        return 2 if self.vocab <= 65_536 else 4

    @property
    def tokens(self) -> float:
        return self.data / self.symbol_bytes

    @property
    def checkpoint(self) -> float:
        """Bytes: weights, Muon's moment of the matrices, AdamW's two of the rest."""
        return FLOAT * (2 * self.matrices + 3 * self.tables)

    def restart(self) -> dict[str, float]:
        """Seconds from the end of one process to the first new step, by what they go to."""
        m = self.machines
        return {
            "work since the latest checkpoint, on average": 30 * self.minutes,
            "the job is queued again, Python and torch start": 60,
            "random weights, in every process's main memory": self.parameters / 1e8,
            "weights of the first process sent to all": FLOAT * self.parameters / m.network,
            "checksums of all files, by one process": self.checkpoint / (8 * m.hashing),
            "every process reads its part": self.checkpoint / m.storage,
        }


def lines(plan: Plan) -> list[str]:
    """The plan as text."""
    m = plan.machines
    said = [
        f"{plan.parameters / 1e9:.2f}B parameters ({plan.matrices / 1e9:.2f}B in blocks), {m.n_gpus} GPUs",
        f"{plan.tokens / 1e12:.1f}T tokens of {plan.symbol_bytes} bytes, {plan.tokens / plan.shard_tokens:,.0f} shards "
        f"of {plan.shard_tokens * plan.symbol_bytes / GB:.2f} GB",
        "",
        "memory of a GPU, GB",
    ]
    memory, sent, restart = plan.memory(), plan.sent(), plan.restart()
    said += [f"  {bytes_ / GB:6.2f}  {name}" for name, bytes_ in memory.items()]
    said += [f"  {sum(memory.values()) / GB:6.2f}  of {m.memory / GB:.0f}", "", "sent by a GPU in a step, GB"]
    said += [f"  {bytes_ / GB:6.2f}  {name}" for name, bytes_ in sent.items()]
    moving = sum(sent.values()) / m.network
    said += [
        f"  {sum(sent.values()) / GB:6.2f}  {moving:.1f} s at {m.network / GB:.0f} GB/s, beside the arithmetic",
        "",
        f"a step: {plan.tokens_per_step / 1e6:.2f}M tokens, {plan.flops_per_token / 1e9:.1f} GFLOP a token, "
        f"{plan.seconds_per_step:.1f} s at {m.share:.0%} of the peak",
        f"  of it Muon {plan.muon_flops / m.n_gpus / (m.peak * m.share):.2f} s, each GPU its share of the matrices",
        f"all tokens once: {plan.tokens / plan.tokens_per_step:,.0f} steps, "
        f"{plan.tokens / plan.tokens_per_step * plan.seconds_per_step / 86400:.0f} days",
        f"reading tokens: {plan.tokens_per_step / plan.seconds_per_step * plan.symbol_bytes / 1e6:.1f} MB/s in all",
        "",
        f"a checkpoint: {plan.checkpoint / GB:.0f} GB in {m.n_gpus} files of {plan.checkpoint / m.n_gpus / GB:.2f} GB, "
        f"{plan.checkpoint / m.storage:.0f} s to write, every {plan.minutes:.0f} minutes",
        f"main memory of a machine while models are built: {m.per_node * FLOAT * plan.parameters / GB:.0f} GB",
        "",
        "a restart, seconds",
    ]
    said += [f"  {seconds:6.0f}  {name}" for name, seconds in restart.items()]
    return [*said, f"  {sum(restart.values()):6.0f}  in all"]


if __name__ == "__main__":
    print("\n".join(lines(Plan())))
