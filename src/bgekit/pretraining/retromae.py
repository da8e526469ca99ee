"""RetroMAE: an encoder that masks little, and a decoder of one layer that has little more than the text's vector.

The encoder sees a text with some of its words masked and predicts them (MLM). Its vector of the first token, h, then
has to be enough for the decoder to find every token of the text (arXiv:2205.12035, "enhanced decoding"):

    H1 = [h + p_1, ..., h + p_N]            queries
    H2 = [h, e_1, ..., e_N]                 keys and values, e_j the embedding of the unmasked token and its position
    A  = softmax(H1 Wq (H2 Wk)^T / sqrt(d) + M) H2 Wv,   M as in `visible`

A and H1, added and normalised as in any layer, go through the layer's second half and the encoder's own MLM head. The
loss is the mean over masked tokens of the encoder's cross entropy, plus the mean over all tokens (special ones
excepted) of the decoder's: means over the tokens of an optimiser's step, whoever computes them.

In the order of a step: masks and batches, the network, the loss and the trainer.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ..errors import ArgumentError
from ..models.checkpoint_files import padding_position
from ..networks.encoder import PackedBackbone, PaddedBackbone, Trainable, can_pack
from ..networks.packing import Packed
from ..training.batches.sampler import DatasetShare, GlobalBatch, PlanOptions, StepBatch, StepBatches
from ..training.loop.diagnosis import Findings
from ..training.loop.trainer import StepTrainer
from ..training.losses.distributed import LossValue, sum_over_processes, world_size
from .token_store import Facts, Ids, Texts, Tokenization

#: Of the masked tokens, those that become the mask token, and those that become a random one; the rest stay (BERT).
_MASKED: Final = 0.8
_RANDOM: Final = 0.1
#: 32 bits.
_ALL: Final = 0xFFFFFFFF


def draw_words(words: Ids, share: float, generator: np.random.Generator) -> Ids:
    """Positions of the tokens of words drawn at random, whole words only.

    Words are taken in random order up to `share` of all tokens that belong to words. The word that would pass it is
    taken with the probability that makes the share exact on average, so that long words are drawn as often as short.

    Args:
        words: [L] the number of each token's word, from 0; -1 for special tokens, which are never drawn.
        share: Share of the tokens.
        generator: Generator of the draw.

    Returns:
        [m] int64, ascending.
    """
    sizes = np.bincount(words[words >= 0])
    order = generator.permutation(len(sizes))
    total = np.cumsum(sizes[order])
    budget = share * float(sizes.sum())
    count = int(np.searchsorted(total, budget + 1e-9, side="right"))
    if count < len(order):
        rest = budget - float(total[count - 1] if count else 0)
        count += bool(generator.random() * sizes[order[count]] < rest)
    drawn = np.zeros(len(sizes) + 1, dtype=np.bool_)  # The last is for the number -1.
    drawn[order[:count]] = True
    return np.flatnonzero(drawn[words])


def corrupt(ids: Ids, positions: Ids, mask: int, ordinary: Ids, generator: np.random.Generator) -> Ids:
    """The ids with those at some positions masked: 80 % as the mask token, 10 % as another token, 10 % as they are.

    Args:
        ids: [L].
        positions: [m] what is masked.
        mask: Id of the mask token.
        ordinary: Ids that random tokens are drawn from.
        generator: Generator of the draw.
    """
    result = ids.copy()
    fate = generator.random(len(positions))
    result[positions[fate < _MASKED]] = mask
    replaced = positions[(fate >= _MASKED) & (fate < _MASKED + _RANDOM)]
    result[replaced] = generator.choice(ordinary, len(replaced))
    return result


def visible(words: Tensor, seeds: Tensor, share: float) -> Tensor:
    """Keys that each position of the decoder sees: the paper's M, of which 0 is True and minus infinity False.

    Position i sees the first key, which is the text's vector, and of the others those whose words are drawn for it,
    each with probability `1 - share`; never itself. Special tokens are always seen. Each position has a draw of its
    own, which is a hash of the text's seed, the position and the word: nothing is stored or sent, and every device
    draws the same.

    Args:
        words: [n, L] int64, the number of each token's word, -1 for special tokens.
        seeds: [n] int64 from 0 to 2**32 - 1, one for each text.
        share: Share of the words that a position does not see.

    Returns:
        [n, L, L] bool: text, position, key.
    """
    length = words.shape[1]
    position = torch.arange(length, device=words.device)
    rows = _hash32(seeds[:, None] ^ _hash32(position + 1)[None, :])
    columns = _hash32(words + 2)
    drawn = _hash32(rows[:, :, None] ^ columns[:, None, :]) < int(share * 2**32)
    seen = ~(drawn & (words >= 0)[:, None, :])
    seen[:, position, position] = False
    seen[:, :, 0] = True
    return seen


def _hash32(value: Tensor) -> Tensor:
    """A hash of 32 bits; products stay below 2**63."""
    for _ in range(2):
        value = ((value >> 16) ^ value) * 0x45D9F3B & _ALL
    return (value >> 16) ^ value


#: A part of the seed, so that no two uses draw the same numbers.
_MASKS: Final = 12


@dataclass(frozen=True, eq=False)
class MaskedBatch(StepBatch):
    """One process's part of a global batch: n sequences of T tokens in all, laid end to end.

    Attributes:
        original: The sequences.
        masked: What the encoder sees of them.
        words: [T] int64, number of each token's word in its sequence, -1 for special tokens.
        seeds: [n] int64, what the decoder's draws depend on.
        hidden: [m] int64, tokens that the encoder has to find.
        content: [k] int64, tokens that the decoder has to find: all but special ones.
        totals: Tokens that the encoder, and the decoder, have to find in one of the micro-batches of an optimiser's
            step, over all processes, on average; None where this batch is all there is.
    """

    original: Packed
    masked: Packed
    words: Tensor
    seeds: Tensor
    hidden: Tensor
    content: Tensor
    totals: tuple[float, float] | None = None

    @property
    def tokens(self) -> int:
        """Tokens, special ones included."""
        return self.original.input_ids.numel()

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens that the encoder, and the decoder, have to find here."""
        return self.hidden.numel(), self.content.numel()


@dataclass(frozen=True)
class Masking:
    """Sequences -> `MaskedBatch`.

    Attributes:
        tokens: The tokenizer.
        share: Share of the tokens that the encoder does not see.
        seed: Random seed.
    """

    tokens: Tokenization
    share: float
    seed: int

    def __call__(self, texts: Texts, rows: Sequence[int], passes: Sequence[int]) -> MaskedBatch:
        """The batch of some sequences; masks depend on the seed, the sequence's number and the pass alone.

        Args:
            texts: All sequences.
            rows: Numbers of those of this batch.
            passes: How often each was drawn before.
        """
        before, after = list(self.tokens.before), list(self.tokens.after)
        original, masked, words, seeds, hidden = [], [], [], [], []
        start = 0
        for row, earlier in zip(rows, passes, strict=True):
            content, begins = texts.sequence(int(row))
            generator = np.random.default_rng([self.seed, _MASKS, int(earlier), int(row)])
            seeds.append(int(generator.integers(1 << 32)))
            ids = np.concatenate([before, content, after]).astype(np.int64)
            numbers = np.full(len(ids), -1, dtype=np.int64)
            numbers[len(before) : len(before) + len(content)] = np.cumsum(begins) - 1
            drawn = draw_words(numbers, self.share, generator)
            original.append(ids)
            masked.append(corrupt(ids, drawn, self.tokens.mask, self.tokens.ordinary, generator))
            words.append(numbers)
            hidden.append(drawn + start)
            start += len(ids)
        if not original:
            # No sequence for this process in a short batch: one without content stands in, which teaches nothing.
            original = masked = [np.array([*before, *after], dtype=np.int64)]
            words, seeds = [np.full(len(original[0]), -1, dtype=np.int64)], [0]
        numbers = np.concatenate(words)
        lengths = tuple(map(len, original))
        return MaskedBatch(
            Packed(torch.from_numpy(np.concatenate(original)), lengths),
            Packed(torch.from_numpy(np.concatenate(masked)), lengths),
            torch.from_numpy(numbers),
            torch.tensor(seeds, dtype=torch.long),
            torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *hidden])),
            torch.from_numpy(np.flatnonzero(numbers >= 0)),
        )


class PretrainSteps(StepBatches[MaskedBatch]):
    """Batches of masked sequences by step, see `StepBatches`.

    Args:
        texts: All sequences.
        options: How they form batches.
        masking: How they are masked.
        rank: This process.
        world: Processes in all.
    """

    def __init__(self, texts: Texts, options: PlanOptions, masking: Masking, *, rank: int = 0, world: int = 1) -> None:
        self.texts, self.masking = texts, masking
        super().__init__([DatasetShare(np.arange(len(texts)))], options, rank=rank, world=world)

    def batch(self, rows: GlobalBatch) -> MaskedBatch:
        """This process's part of a global batch."""
        part = rows.part(self.rank, self.world)
        return self.masking(self.texts, rows.rows[part].tolist(), rows.passes[part].tolist())


#: Logits that are held at once; with more tokens they are computed in parts, and once more on the way back.
_LOGITS: Final = 1 << 26
#: Pairs of positions whose mask is made at once.
_PAIRS: Final = 1 << 22


class RetroMAE(Trainable, nn.Module):
    """Encoder, decoder, and the head that both predict tokens with.

    Args:
        lm: A masked language model of transformers, whose encoder and head are trained.
        share: Share of the words that a position of the decoder does not see.
    """

    def __init__(self, lm: Any, share: float) -> None:
        super().__init__()
        base = lm.base_model
        config = base.config
        self.backbone = (PackedBackbone if can_pack(base) else PaddedBackbone)(base)
        self.head = head_of(lm)
        self.share = share
        self.vocabulary = int(config.vocab_size)
        self.padding_position = padding_position(config.model_type, config.pad_token_id)
        if self.padding_position is not None:
            # MPNet counts from a padding token of its own, whatever the config says.
            self.padding_position = int(getattr(base.embeddings, "padding_idx", self.padding_position))
        self._takes_positions = "position_ids" in inspect.signature(base.embeddings.forward).parameters
        if not self._takes_positions:
            # Rotary embeddings turn the encoder's keys; the decoder, which is thrown away, learns positions instead.
            self.positions = nn.Embedding(int(config.max_position_embeddings), int(config.hidden_size))
            nn.init.normal_(self.positions.weight, std=_initial(config))
        self.decoder = Decoder(config)

    @property
    def transformer(self) -> Any:
        """The Hugging Face model that becomes the result."""
        return self.backbone.model

    def forward(self, batch: MaskedBatch) -> Tensor:
        """[4] float32: summed loss of encoder and decoder, and how many tokens each finds; differentiable."""
        hidden = self.backbone(batch.masked, "all")
        ids = batch.original.input_ids
        encoder_loss, encoder_right = self._token_losses(hidden[batch.hidden], ids[batch.hidden])
        decoded = self.decode(hidden[batch.masked.starts], batch)
        decoder_loss, decoder_right = self._token_losses(decoded[batch.content], ids[batch.content])
        return torch.stack([encoder_loss, decoder_loss, encoder_right, decoder_right])

    def decode(self, vectors: Tensor, batch: MaskedBatch) -> Tensor:
        """States of the decoder for the texts' vectors: [n, h] -> [T, h]."""
        packed = batch.original
        of_token = vectors.repeat_interleave(packed.lengths_tensor, dim=0, output_size=batch.tokens)
        embedded, positions = self._embedded(packed)
        first = (packed.positions == 0)[:, None]
        keys = torch.where(first, of_token.to(embedded.dtype), embedded)
        return self.decoder(of_token + positions, keys, batch, self.share)

    def _embedded(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Embeddings of tokens and positions together, and of positions alone, both [T, h]."""
        layer: Any = self.transformer.embeddings
        ids = packed.input_ids[None]
        if not self._takes_positions:
            positions = self.positions(packed.positions)
            return layer(input_ids=ids)[0] + positions, positions
        places = packed.positions_for(self.padding_position)
        return layer(input_ids=ids, position_ids=places[None])[0], layer.position_embeddings(places)

    def _token_losses(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross entropy of tokens [m] after their states [m, h], and how many are the likeliest."""
        rows = max(1, _LOGITS // self.vocabulary)
        if len(hidden) <= rows:
            return self._token_losses_at_once(hidden, labels)
        parts = [
            checkpoint(self._token_losses_at_once, hidden[at : at + rows], labels[at : at + rows], use_reentrant=False)
            for at in range(0, len(hidden), rows)
        ]
        losses, right = zip(*parts, strict=True)
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _token_losses_at_once(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        right = (logits.detach().argmax(-1) == labels).sum().to(logits.dtype)
        return cross_entropy(logits, labels, reduction="sum"), right

    def weights(self) -> dict[str, Tensor]:
        """The encoder's weights by their names in a checkpoint."""
        return {name: value for name, value in self.transformer.state_dict().items() if not name.startswith("pooler.")}

    def beside(self) -> dict[str, Tensor]:
        """The weights of head and decoder, without what the encoder has already."""
        own = {value.data_ptr() for value in self.transformer.state_dict().values()}
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("backbone.") and value.data_ptr() not in own
        }


class Decoder(nn.Module):
    """One transformer layer (post-norm) whose queries are not its keys.

    Args:
        config: The encoder's; the layer has its sizes, activation and dropout.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        def of(*names: str, default: Any = None) -> Any:
            return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)

        width, self.heads = int(config.hidden_size), int(config.num_attention_heads)
        inner, eps = int(of("intermediate_size", "hidden_dim")), float(of("layer_norm_eps", "norm_eps", default=1e-12))
        self.attention_dropout = float(of("attention_probs_dropout_prob", "attention_dropout", default=0.0))
        dropout = float(of("hidden_dropout_prob", "dropout", "embedding_dropout", default=0.0))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm, self.norm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = ACT2FN[of("hidden_act", "activation", "hidden_activation", default="gelu")]
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_initial(config))
                nn.init.zeros_(module.bias)

    def forward(self, queries: Tensor, keys: Tensor, batch: MaskedBatch, share: float) -> Tensor:
        """[T, h]: a state for each position.

        Args:
            queries: [T, h] the text's vector plus each position's embedding.
            keys: [T, h] embeddings, the text's vector in place of the first.
            batch: The sequences.
            share: Share of the words that a position does not see.
        """
        attended = self._attention(self.query(queries), self.key(keys), self.value(keys), batch, share)
        states = self.attention_norm(queries + self.dropout(self.output(attended)))
        inner = self.narrow(self.activation(self.widen(states)))
        result: Tensor = self.norm(states + self.dropout(inner))
        return result

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, batch: MaskedBatch, share: float) -> Tensor:
        """[T, h], computed for a few sequences of nearly equal length at once."""
        outputs, places = [], []
        for index, valid in _attention_blocks(batch.original):
            q, k, v = (each[index].unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value))
            seen = visible(batch.words[index], batch.seeds[batch_of(batch.original, index[:, 0])], share)
            if valid is not None:
                seen = seen & valid[:, None, :]
            dropped = self.attention_dropout if self.training else 0.0
            result = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], dropout_p=dropped)
            result = result.transpose(1, 2).flatten(2)
            outputs.append(result.flatten(0, 1) if valid is None else result[valid])
            places.append(index.flatten() if valid is None else index[valid])
        return torch.cat(outputs)[torch.cat(places).argsort()]


def batch_of(packed: Packed, tokens: Tensor) -> Tensor:
    """Numbers of the sequences that tokens belong to."""
    return torch.searchsorted(packed.starts, tokens.contiguous(), right=True) - 1


def _attention_blocks(packed: Packed) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows of the tokens [n, L] of some sequences, and which of them are not padding [n, L] (None if all)."""
    for group in packed.groups:
        count, length = group.index.shape
        size = max(1, _PAIRS // length**2)
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield group.index[part], None if group.valid is None else group.valid[part]


def head_of(lm: Any) -> nn.Module:
    """The head of a masked language model, which turns states into logits, whatever its class calls it.

    Raises:
        ArgumentError: it has none that is known.
    """
    for name in ("cls", "lm_head"):
        if isinstance(module := getattr(lm, name, None), nn.Module):
            return module
    for names in (("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"), ("head", "decoder")):
        parts = [getattr(lm, name, None) for name in names]
        if all(isinstance(part, nn.Module) for part in parts):
            return nn.Sequential(*parts)  # type: ignore[arg-type]
    raise ArgumentError(
        f"{type(lm).__name__} has no head that bgekit knows: RetroMAE trains BERT, RoBERTa and the like"
    )


def _initial(config: Any) -> float:
    return float(getattr(config, "initializer_range", 0.02))


def loss_of(sums: Tensor, batch: MaskedBatch) -> LossValue:
    """The loss of a global batch from the sums that this process has.

    Args:
        sums: [4] of `RetroMAE.forward`.
        batch: The batch; its `totals` are what the sums are divided by.
    """
    counts = batch.totals
    if counts is None:
        counts = tuple(sum_over_processes(torch.tensor(batch.counts, device=sums.device)).tolist())
    encoder, decoder = (max(count, 1.0) for count in counts)
    loss = (sums[0] / encoder + sums[1] / decoder) * world_size()
    every = sum_over_processes(sums)
    return LossValue(
        loss, _metrics([total / count for total, count in zip(every, (encoder, decoder) * 2, strict=True)])
    )


def _metrics(means: Sequence[Any]) -> dict[str, Any]:
    """Means over the tokens, in the order of `RetroMAE.forward`, by the names that a log has."""
    names = ("encoder_loss", "decoder_loss", "encoder_accuracy", "decoder_accuracy")
    return {"loss": means[0] + means[1], **dict(zip(names, means, strict=True))}


def whole_gradient(
    encode: Callable[[MaskedBatch], Tensor], batch: MaskedBatch, backward: Callable[[Tensor], None], no_sync: Any
) -> LossValue:
    """Add the gradient of a batch to the parameters, all at once (a `Gradient` of `StepTrainer`)."""
    value = loss_of(encode(batch), batch)
    backward(value.loss)
    return LossValue(value.loss.detach(), value.metrics)


class PretrainingTrainer(StepTrainer):
    """`StepTrainer` whose micro-batches weigh by their tokens, and that logs its speed. Takes the same arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._since: float | None = None
        super().__init__(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[MaskedBatch], num_batches: int, device: torch.device
    ) -> tuple[list[MaskedBatch], None]:
        """The micro-batches of one step, which know how many tokens the step has: each token weighs the same."""
        if self._since is None:
            self._since = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        counts = sum_over_processes(torch.tensor([batch.counts for batch in batches], device=self.args.device).sum(0))
        encoder, decoder = (count / len(batches) for count in counts.tolist())
        return [replace(batch, totals=(encoder, decoder)) for batch in batches], None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how fast it goes."""
        if "loss" in logs and (counted := self._metrics.get("tokens")):
            now = time.perf_counter()
            tokens = float(sum_over_processes(torch.stack(counted).sum().to(self.args.device)))
            logs["tokens_per_second"] = tokens / max(now - (self._since or 0.0), 1e-9)
            self._since = now
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure; the time that it takes is not counted as training."""
        start = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        if self._since is not None:
            self._since += time.perf_counter() - start
        return metrics


def measured_losses(
    network: RetroMAE, batches: Iterable[MaskedBatch], context: AbstractContextManager[Any]
) -> dict[str, float]:
    """Mean losses and accuracies of a network as it is, without dropout.

    Args:
        network: The network.
        batches: What it is measured on.
        context: Context of the computation, such as automatic precision.
    """
    training, device = network.training, next(network.parameters()).device
    sums, counts = torch.zeros(4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    network.eval()
    try:
        with torch.no_grad(), context:
            for batch in batches:
                sums += network(batch.to(device)).double().cpu()
                counts += torch.tensor(batch.counts, dtype=torch.float64)
    finally:
        network.train(training)
    return _metrics((sums / counts.clamp(min=1).repeat(2)).tolist())


@dataclass
class PretrainDiagnosis(Findings):
    """Findings of pre-training."""

    def before(self, facts: Facts, max_length: int, cut: bool) -> list[str]:
        """Look at the data.

        Args:
            facts: Counts of the texts and their tokens.
            max_length: Tokens of a sequence.
            cut: Whether longer texts lose their end.

        Returns:
            The new findings.
        """
        found = {}
        if cut and facts.long > 0.1 * facts.texts:
            found["cut"] = (
                f"{facts.long / facts.texts:.0%} of the texts are longer than --max-length {max_length} and lose "
                "their end: raise it, or --long-texts split"
            )
        if facts.unknown > 0.02 * facts.tokens:
            found["unknown"] = (
                f"{facts.unknown / facts.tokens:.0%} of the tokens are unknown to the vocabulary: is the tokenizer "
                "meant for this language? --tokenizer-name takes another one"
            )
        if facts.tokens < 8 * facts.sequences:
            found["short"] = (
                f"the texts have {facts.tokens / facts.sequences:.1f} tokens on average: a vector that has so little "
                "to hold learns little; passages are better"
            )
        return self.report(found)

    def after(self, logs: Mapping[str, Any]) -> list[str]:
        """Look at the losses of a logged step; returns the new findings."""
        if all(math.isfinite(float(logs.get(name, 0.0))) for name in ("loss", "encoder_loss", "decoder_loss")):
            return []
        return self.report({
            "not finite": "the loss is not a number any more: take a lower --learning-rate, --warmup-ratio 0.1, or "
            "--bf16 instead of --fp16"
        })  # fmt: skip
