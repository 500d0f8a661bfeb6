"""The model: embed past units, run the backbone, let each modality's head code its own units.

Everything downstream uses two views of it only: `log_prob(batch)`, nats per symbol, and `state(n_rows)`, the same
distribution symbol by symbol.
Axes: B rows, N positions, S segments, U units, K symbols, D width, V alphabet of a symbol, F header fields,
M listed units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.backbones import BackboneConfig, Transformer
from armm.batching import collate
from armm.embedders import TokenEmbedder
from armm.errors import InputError
from armm.grammar import Grammar, Slot, Stage
from armm.heads import CategoricalHead, Head
from armm.modality import Modality
from armm.sequence import Batch, Document
from armm.state import State


@dataclass
class LogProbs:
    """Nats of every symbol of a batch, by what the symbol is.

    Attributes:
        payload: (S, U, K) by modality. decisions: (S, U) by modality whose length is coded.
        headers: (S, F) by modality whose header is coded. control: (M,), in the order of the batch's control units.
        normalisers: (S, U, K) by modality, the log of the sum that normalises each payload symbol's distribution, where
            they were asked for.
    """

    payload: dict[str, Tensor]
    decisions: dict[str, Tensor]
    headers: dict[str, Tensor]
    control: Tensor
    normalisers: dict[str, Tensor] = field(default_factory=dict)

    def scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums over what is not given: nats of payload and nats of structure, both negative log-probabilities."""
        payload = structure = torch.zeros((), device=batch.lengths.device)
        for name, segment in batch.segments.items():
            payload = payload - (self.payload[name] * segment.weights[..., None]).sum()
            if name in self.decisions:
                structure = structure - (self.decisions[name] * segment.weights).sum()
            if name in self.headers:
                structure = structure - (self.headers[name] * segment.weights[:, :1]).sum()
        return payload, structure - self.control.sum()


class AutoregressiveModel(nn.Module):
    """p(document) as a product over its symbols.

    Args:
        modalities: by name. Their order numbers the control symbols; a new one goes to the end.
        backbone: which backbone; a small transformer by default.
        layout: the modalities of every document, in order (`["label", "image"]`); None for free documents, whose
            structure is coded too.
        context: at most so many units in a document; None for no limit.

    Raises InputError: parts that do not fit together.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        backbone: BackboneConfig | None = None,
        layout: Sequence[str] | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        backbone = backbone or Transformer()
        backbone.check_context(context)
        self.modalities = {name: modality.named(name) for name, modality in modalities.items()}
        self.grammar = Grammar(self.modalities, layout, context)
        self.backbone_config = backbone
        width, value_width = backbone.width, backbone.value_width
        self.backbone = backbone.build()
        self.embedders = nn.ModuleDict({n: m.build_embedder(width) for n, m in self.modalities.items()})
        self.heads = nn.ModuleDict({n: m.build_head(width) for n, m in self.modalities.items()})
        for name, head in self.heads.items():
            if isinstance(head, CategoricalHead) and head.config.tied:
                embedder = self.embedders[name]
                if not isinstance(embedder, TokenEmbedder):
                    raise InputError(f"{name}: tied: true needs a plain embedding table; set tied: false")
                head.weight = embedder.weight
        self.values = nn.ModuleDict(
            {n: m.build_embedder(value_width) for n, m in self.modalities.items()} if value_width else {}
        )
        self.begin = nn.Parameter(torch.randn(width) * 0.02)
        self.decisions = nn.ModuleDict(
            {n: nn.Linear(width, m.unit_symbols + 2) for n, m in self.modalities.items() if m.ended}
        )
        coded = {n: m.header_sizes for n, m in self.modalities.items() if m.header_sizes}
        self.header_logits = nn.ModuleDict(
            {n: nn.ModuleList(nn.Linear(width, size) for size in sizes) for n, sizes in coded.items()}
        )
        self.header_embeddings = nn.ModuleDict(
            {n: nn.ModuleList(nn.Embedding(size, width) for size in sizes) for n, sizes in coded.items()}
        )
        # control symbols are keyed by name, so that a new modality adds a row and renumbers nothing
        # (and a ParameterDict sorts its keys, so their order is kept apart)
        names = ["end", *(f"begin_{name}" for name in self.modalities)] if layout is None else []
        self.control_names = names
        self.control_logits = nn.ParameterDict({n: nn.Parameter(torch.zeros(width + 1)) for n in names})
        self.control_embeddings = nn.ParameterDict({n: nn.Parameter(torch.randn(width) * 0.1) for n in names})

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def head(self, name: str) -> Head:
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    # ------------------------------------------------------------- structure

    def structure_logits(self, slot: Slot, context: Tensor, index: Tensor) -> Tensor:
        """(M, D) contexts -> (M, V) logits of control symbols, header fields or end decisions.

        index: (M,) the unit's number in its segment, which some end decisions depend on.
        """
        if slot.stage == Stage.CONTROL:
            weight = torch.stack([self.control_logits[name] for name in self.control_names])
            return F.linear(context, weight[:, :-1], weight[:, -1]).float()
        if slot.stage == Stage.HEADER:
            fields = self.header_logits[slot.modality]
            assert isinstance(fields, nn.ModuleList)
            return fields[slot.field](context).float()
        logits = self.decisions[slot.modality](context).float()
        return logits.masked_fill(~self.grammar.decision_mask(slot.modality, index), float("-inf"))

    def embed(self, slot: Slot, symbols: Tensor, index: Tensor, header: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors of completed units, and the second ones that value embeddings ask for.

        Args:
            slot: control, header or payload. symbols: (M, K), or (M, 1) of a structure unit.
            index: (M,) in the segment. header: (M, F).

        Returns: (M, D), and (M, value_width) or None.
        """
        if slot.stage == Stage.CONTROL:
            return torch.stack([self.control_embeddings[name] for name in self.control_names])[symbols[:, 0]], None
        if slot.stage == Stage.HEADER:
            tables = self.header_embeddings[slot.modality]
            assert isinstance(tables, nn.ModuleList)
            return tables[slot.field](symbols[:, 0]), None
        values = self.values[slot.modality](symbols, index, header) if self.values else None
        return self.embedders[slot.modality](symbols, index, header), values

    # ---------------------------------------------------------- parallel view

    def contexts(self, batch: Batch) -> Tensor:
        """(B, N, D) context of every unit from the units before it."""
        n_rows, n = batch.n_rows, batch.n_positions
        width, value_width = self.backbone_config.width, self.backbone_config.value_width
        units = self.begin.new_zeros(n_rows * n, width)
        values = self.begin.new_zeros(n_rows * n, value_width) if value_width else None

        def place(slot: Slot, where: Tensor, symbols: Tensor, index: Tensor, header: Tensor) -> None:
            nonlocal units, values
            vectors, own_values = self.embed(slot, symbols, index, header)
            units = units.index_copy(0, where, vectors.to(units.dtype))
            if values is not None and own_values is not None:
                values = values.index_copy(0, where, own_values.to(values.dtype))

        if batch.control_rows.numel():
            where = batch.control_rows * n + batch.control_positions
            nothing = torch.zeros_like(where)
            place(Slot(Stage.CONTROL, "", 0), where, batch.control_values[:, None], nothing, nothing[:, None])
        for name, segment in batch.segments.items():
            coded, nothing = segment.coded, torch.zeros_like(segment.rows)
            for k in range(coded.shape[1]):
                where = segment.rows * n + segment.starts - coded.shape[1] + k
                place(Slot(Stage.HEADER, name, k), where, coded[:, k : k + 1], nothing, segment.header)
            n_units = segment.symbols.shape[1]
            number = torch.arange(n_units, device=segment.rows.device).expand(len(segment.rows), -1)
            where = (segment.rows * n + segment.starts)[:, None] + number
            header = segment.header[:, None].expand(-1, n_units, -1)
            whole = [t.flatten(0, 1) for t in (where, segment.symbols, number, header)]
            listed = segment.listed
            place(Slot(Stage.PAYLOAD, name, 0), *(whole if listed is None else [t[listed] for t in whole]))
        # shifted by one unit: unit n is conditioned on units before n only
        x = torch.cat([self.begin.expand(n_rows, 1, -1), units.view(n_rows, n, width)[:, :-1]], dim=1)
        if values is not None:
            values = F.pad(values.view(n_rows, n, value_width)[:, :-1], (0, 0, 1, 0))
        return self.backbone(x, values)

    def log_prob(
        self,
        batch: Batch,
        contexts: Tensor | None = None,
        only_scored: bool = False,
        normalisers: bool = False,
        read: Mapping[str, Tensor] | None = None,
    ) -> LogProbs:
        """Nats of every symbol of a batch, 0 where there is no symbol.

        Args:
            contexts: (B, N, D) other ones than the backbone's, to see what these are worth.
            only_scored: nothing is computed for modalities that are only given here; their nats are 0.
            normalisers: give those of the payload too.
            read: by modality, (S, U, K) symbols that are read as the past instead of the batch's own: in training on
                corrupted inputs. What is coded stays the batch's own.
        """
        read = read or {}
        if contexts is None:
            contexts = self.contexts(batch.reading(read) if read else batch)
        contexts = contexts.flatten(0, 1)
        n = batch.n_positions
        payload, decisions, headers, logs = {}, {}, {}, {}
        for name, segment in batch.segments.items():
            present = segment.present()
            if only_scored and name in batch.unscored:
                payload[name] = torch.zeros_like(segment.symbols, dtype=contexts.dtype)
                continue
            number = torch.arange(present.shape[1], device=present.device)
            where = (segment.rows * n + segment.starts)[:, None] + number.clamp(max=n - 1)
            context = contexts[where.clamp(max=len(contexts) - 1)]
            coded = (context, segment.symbols, segment.known, segment.header)
            coded = (*coded, read[name]) if name in read else coded
            if normalisers:
                payload[name], logs[name] = self.head(name).log_prob_and_normaliser(*coded)
            else:
                payload[name] = self.head(name).log_prob(*coded)
            if name in self.decisions:
                slot, index = Slot(Stage.DECISION, name, 0), number.expand_as(present)
                logits = self.structure_logits(slot, context, index)
                nats = logits.log_softmax(-1).gather(-1, segment.ends[..., None])[..., 0]
                decisions[name] = torch.where(present, nats, 0.0)
            header = segment.coded
            if header.shape[1]:
                columns = []
                for k in range(header.shape[1]):
                    context = contexts[segment.rows * n + segment.starts - header.shape[1] + k]
                    logits = self.structure_logits(Slot(Stage.HEADER, name, k), context, number[:0])
                    columns.append(logits.log_softmax(-1).gather(-1, header[:, k : k + 1])[:, 0])
                headers[name] = torch.stack(columns, dim=1)
        control = contexts.new_zeros(0)
        if batch.control_rows.numel():
            context = contexts[batch.control_rows * n + batch.control_positions]
            logits = self.structure_logits(Slot(Stage.CONTROL, "", 0), context, batch.control_rows)
            control = logits.log_softmax(-1).gather(-1, batch.control_values[:, None])[:, 0]
        return LogProbs(payload, decisions, headers, control, logs)

    @torch.no_grad()
    def guess(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        """By modality, (S, U, K) a draw from the distribution of every payload symbol given those before it."""
        contexts, n, drawn = self.contexts(batch).flatten(0, 1), batch.n_positions, {}
        for name in names:
            segment = batch.segments[name]
            number = torch.arange(segment.symbols.shape[1], device=contexts.device).clamp(max=n - 1)
            where = ((segment.rows * n + segment.starts)[:, None] + number).clamp(max=len(contexts) - 1)
            logits = self.head(name).logits(contexts[where], segment.symbols, segment.known, segment.header)
            drawn[name] = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
        return drawn

    def stream_log_prob(self, document: Document) -> Tensor:
        """(T,) nats of a document's symbols in the order of its stream, by the parallel view."""
        batch = collate([document], self.grammar).to(self.begin.device)
        nats = self.log_prob(batch)
        numbers = dict.fromkeys(self.modalities, 0)
        pieces: list[Tensor] = []
        for count, segment in enumerate(document):
            name = segment.modality
            i, numbers[name] = numbers[name], numbers[name] + 1
            if len(nats.control):
                pieces.append(nats.control[count : count + 1])
            if name in nats.headers:
                pieces.append(nats.headers[name][i])
            known, payload = batch.segments[name].known[i], nats.payload[name][i]
            if name not in nats.decisions:
                pieces.append(payload[known])
                continue
            for unit in range(int(batch.segments[name].n_units[i])):
                pieces += [nats.decisions[name][i, unit : unit + 1], payload[unit][known[unit]]]
        if len(nats.control):
            pieces.append(nats.control[-1:])
        return torch.cat(pieces)

    # --------------------------------------------------------- stepwise view

    def state(self, n_rows: int = 1, exact: bool = False, compiled: bool = False) -> State:
        """An empty state of documents that have not begun.

        exact: logits do not depend on the other rows, bit for bit, where the machine's products allow it.
        compiled: the backbone takes its steps in compiled code, where there is such (`pip install "armm[fast]"`).
        """
        return State(self, n_rows, exact, compiled)
