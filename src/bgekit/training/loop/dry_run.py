"""A dry run of training: the data, a batch as the model sees it, steps, memory and warnings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ...data.training_rows import CLASSES, ONE_NEGATIVE, PROMPTED_PASSAGES
from ...display.terminal import aligned
from ...models.card import Prompt
from ...networks.packing import Packed
from ..batches.collator import Batch, Collator, Limit, StepDataset
from ..batches.datasets import TrainingData
from ..batches.sampler import rows_of_epoch
from .command_line import first_name
from .diagnosis import TRUNCATED

#: Rows of each dataset that are tokenised to know its lengths.
_SAMPLE: Final = 500
#: Steps whose tokens are counted.
_STEPS: Final = 8
#: Rows of the example batch, passages of each, and characters of each text that are shown.
_SHOWN_ROWS: Final = 2
_SHOWN_PASSAGES: Final = 3
_SHOWN_CHARACTERS: Final = 300
#: Longer than any text.
_UNLIMITED: Final = 1 << 20
#: A share of unknown tokens that is worth a warning.
_MUCH_UNKNOWN: Final = 0.05


@dataclass(frozen=True)
class Footprint:
    """An estimate of the memory that training takes, by the sizes that decide it.

    Attributes:
        parameters: Parameters of the whole network.
        trained: Those of them that are trained.
        layers: Transformer layers.
        hidden: Width of a token.
        intermediate: Width inside the feed-forward layers.
        heads: Attention heads.
        dropout: Whether attention weights are dropped, for which they have to be kept.
        half: Activations in 16 bits (`--fp16`, `--bf16`).
        checkpointing: `--gradient-checkpointing`.
        chunk: Texts encoded at once (`--grad-cache-chunk`), None for all.
        world: Processes; more than one keep gradients twice.
        lean: Attention and dropout of `networks/cpu_training.py`, which keep neither weights nor masks.
    """

    parameters: int
    trained: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    dropout: bool = True
    half: bool = False
    checkpointing: bool = False
    chunk: int | None = None
    world: int = 1
    lean: bool = False

    @classmethod
    def of(cls, config: Any, parameters: int, trained: int | None = None, **options: Any) -> Footprint:
        """The footprint of a network by its transformers configuration, by the names that most architectures use."""

        def size(*names: str, default: int = 0) -> int:
            return next((int(value) for name in names if (value := getattr(config, name, None))), default)

        hidden = size("hidden_size", "dim", "d_model", "n_embd")
        return cls(
            parameters=parameters,
            trained=parameters if trained is None else trained,
            layers=size("num_hidden_layers", "n_layers", "num_layers", "n_layer", default=1),
            hidden=hidden,
            intermediate=size("intermediate_size", "hidden_dim", "d_ff", "n_inner", default=4 * hidden),
            heads=size("num_attention_heads", "n_heads", "num_heads", "n_head", default=1),
            dropout=bool(getattr(config, "attention_probs_dropout_prob", getattr(config, "attention_dropout", 0.0))),
            **options,
        )

    @property
    def keeps_weights(self) -> bool:
        """Whether attention weights are kept."""
        return self.dropout and not self.lean

    @property
    def widths(self) -> float:
        """Vectors of the layer's width that are kept for a token; in 16 bits, one in float32 counts as two."""
        return (12.7 if self.half else 8.4) if self.lean else 10.2

    def state(self) -> int:
        """Bytes of weights, gradients and AdamW's two moments, all in float32."""
        copies = 2 * self.parameters if self.half else 0
        buckets = 4 * self.trained if self.world > 1 else 0
        return 4 * self.parameters + 12 * self.trained + copies + buckets

    def activations(self, lengths: Sequence[int]) -> int:
        """Bytes kept for the backward pass of texts of these lengths in tokens.

        Measured on BERT with PyTorch 2.13, for each token and layer: `widths` times the width and 2 times the inner
        width, and where attention weights are kept to be dropped 3 numbers for each of them. With checkpointing a
        layer keeps its input only, and one layer at a time is computed again.
        """
        tokens, pairs = sum(lengths), sum(length * length for length in lengths)
        layer = (
            tokens * (self.widths * self.hidden + 2 * self.intermediate) + 3 * self.heads * pairs * self.keeps_weights
        )
        kept = layer + self.layers * tokens * self.hidden if self.checkpointing else self.layers * layer
        return int(kept * (2 if self.half else 4))

    def explain(self, batches: Sequence[Batch]) -> Iterator[str]:
        """Lines about the memory of the largest of some batches."""
        lengths = max(([*batch.queries.lengths, *batch.passages.lengths] for batch in batches), key=sum)
        # Texts are encoded in chunks as they come; the longest ones together are the worst that can happen.
        chunk = sorted(lengths, reverse=True)[: self.chunk] if self.chunk else lengths
        state, activations, fixed = self.state(), self.activations(chunk), self.parameters - self.trained
        yield f"  about {_bytes(state + activations)} on each device, the framework itself not counted:"
        yield (
            f"  - {_bytes(state)} for weights, gradients and AdamW's moments: 16 bytes for each of {self.trained:,} "
            f"trained parameters{f', 4 for each of {fixed:,} others' if fixed else ''}"
            f"{', 2 for copies in 16 bits' if self.half else ''}"
            f"{', 4 for exchanging gradients' if self.world > 1 else ''}"
        )
        yield (
            f"  - {_bytes(activations)} for activations: {sum(chunk):,} tokens at once "
            f"({'chunks of ' + str(self.chunk) + ' texts' if self.chunk else 'the whole batch'}) x {self.layers} "
            f"layers x ({self.widths} x {self.hidden} + 2 x {self.intermediate}) numbers of "
            f"{2 if self.half else 4} bytes"
            f"{', and attention weights' if self.keeps_weights else ''}"
            f"{'; with checkpointing one layer at a time, and the input of each' if self.checkpointing else ''}"
        )
        if not self.checkpointing or not self.chunk:
            remedy = [] if self.chunk else ["--grad-cache-chunk 32"]
            remedy += [] if self.checkpointing else ["--gradient-checkpointing"]
            yield f"  too much? {' or '.join(remedy)} lowers activations and leaves the result as it is"


def dry_run(
    steps: StepDataset, *, epochs: float = 1.0, accumulation: int = 1, max_steps: int = -1,
    footprint: Footprint | None = None,
) -> str:  # fmt: skip
    """The report of a dry run, in lines for a terminal.

    Args:
        steps: The steps of one process (rank 0 shows best).
        epochs: Epochs to train.
        accumulation: Batches whose gradients are added up for a step.
        max_steps: Steps to train, whatever `epochs` says; -1 for as many as these have.
        footprint: For the estimate of memory; None for none.
    """
    data, plan = steps.data, steps.plan()
    lengths = [Lengths.of(steps, number) for number in range(len(data.datasets))]
    shown = [steps[number] for number in _spread(len(plan), _STEPS)]
    tokens = sum(batch.tokens for batch in shown) / len(shown)
    parts = ["Data", *_table(steps, lengths), "", "A batch as the model sees it", *_example(steps), ""]
    parts += [
        "Steps",
        f"  {_counted(len(plan), epochs, accumulation, max_steps)}; a batch has up to "
        f"{max(len(batch.rows) for batch in shown):,} rows on this device and {max(batch.size for batch in shown):,} "
        f"in all, and on this device about {tokens:,.0f} tokens",
    ]
    if footprint is not None:
        parts += ["", "Memory (an estimate)", *footprint.explain(shown)]
    noted = [*_warnings(steps, lengths)]
    parts += ["", "Warnings", *(f"  - {warning}" for warning in noted)] if noted else ["", "No warnings"]
    return "\n".join(parts) + "\n"


def _counted(batches: int, epochs: float, accumulation: int, max_steps: int) -> str:
    """The number of steps, as Trainer counts them: what is left at the end of an epoch makes a step, too."""
    an_epoch = max(math.ceil(batches / accumulation), 1)
    parts = f" ({batches:,} batches, {accumulation} per step)" if accumulation > 1 else ""
    if max_steps > 0:
        return f"{an_epoch:,} per epoch{parts}, {max_steps:,} in {max_steps / an_epoch:.3g} epochs (--max-steps)"
    return f"{an_epoch:,} per epoch{parts}, {math.ceil(epochs * an_epoch):,} in {epochs:g} epochs"


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sample of a dataset's texts, before they are cut.

    Attributes:
        queries: Tokens of each query, prompt included; none where queries are read together with passages.
        passages: Tokens of each passage, or pair.
        query_prompt: Tokens of the longest query prompt.
        unknown: Share of tokens that stand for anything the vocabulary lacks.
    """

    queries: np.ndarray[Any, Any]
    passages: np.ndarray[Any, Any]
    query_prompt: int
    unknown: float

    @classmethod
    def of(cls, steps: StepDataset, number: int) -> Lengths:
        """Token lengths of a dataset's texts: of up to 500 of its rows, as an epoch draws them."""
        rows = steps.data.datasets[number].rows
        chosen = [rows[position] for position in _spread(len(rows), _SAMPLE)]
        examples = [steps.sampling.draw(steps.data[int(row)], 0) for row in chosen]
        lifted: dict[str, Any] = {limit.name: _UNLIMITED for limit in steps.collator.limits()}
        uncut = replace(steps.collator, **lifted)
        batch = uncut(examples, size=len(examples))
        prompts = {steps.collator.prompt_of(example.row).prefix for example in examples}
        tokenizer = steps.collator.tokenizer
        longest = max((len(tokenizer(prompt)["input_ids"]) for prompt in prompts if prompt), default=0)
        unknown = 0
        if tokenizer.unk_token_id is not None:
            both = (batch.queries.input_ids, batch.passages.input_ids)
            unknown = sum(int((ids == tokenizer.unk_token_id).sum()) for ids in both)
        share = unknown / max(batch.tokens, 1)
        return cls(np.array(batch.queries.lengths), np.array(batch.passages.lengths), longest, share)

    def under(self, limit: Limit) -> np.ndarray[Any, Any]:
        """Tokens of each text for which a limit holds."""
        return self.queries if limit.what == "query" else self.passages

    def cut(self, limit: Limit) -> float:
        """Share of these that are longer."""
        tokens = self.under(limit)
        return float((tokens > limit.tokens).mean()) if len(tokens) else 0.0


def _table(steps: StepDataset, lengths: Sequence[Lengths]) -> Iterator[str]:
    limits = steps.collator.limits()
    header = (
        "dataset", "rows", "weight", "of epoch", "batches", "negatives", *(f"{limit.what} tokens" for limit in limits),
        "cut", "notes",
    )  # fmt: skip
    shares = _batch_shares(steps)
    drawn = rows_of_epoch(steps.shares, steps.options.temperature)
    rows = [header]
    for number, (data, sample) in enumerate(zip(steps.data.datasets, lengths, strict=True)):
        cut = "/".join(f"{sample.cut(limit):.0%}" for limit in limits)
        notes = {
            "scored pairs": data.scored, "teacher scores": data.teacher,
            "no in-batch negatives": not data.spec.in_batch_negatives, f"type {data.spec.type}": data.spec.type,
        }  # fmt: skip
        rows.append((
            data.spec.name, f"{len(data):,}", f"{data.spec.weight:g}", f"{drawn[number] / sum(drawn):.1%}",
            f"{shares[number]:.1%}", _quantiles(data.column("negative_count")),
            *(_quantiles(sample.under(limit)) for limit in limits), cut,
            ", ".join(note for note, holds in notes.items() if holds),
        ))  # fmt: skip
    yield from (f"  {line}" for line in aligned(rows))
    yield (
        "  negatives and tokens: smallest / median / largest, before cutting; cut: share of "
        f"{'/'.join(limit.plural for limit in limits)} beyond {'/'.join(str(limit.tokens) for limit in limits)} tokens"
    )


def _batch_shares(steps: StepDataset) -> list[float]:
    """Share of the epoch's batches that have rows of each dataset."""
    plan = steps.plan()
    starts = [data.start for data in steps.data.datasets]
    counts = np.zeros(len(starts))
    looked_at = _spread(len(plan), 1000)
    for number in looked_at:
        counts[np.unique(np.searchsorted(starts, plan[number].rows, side="right") - 1)] += 1
    return [float(count) / max(len(looked_at), 1) for count in counts]


def _example(steps: StepDataset) -> Iterator[str]:
    """The first rows of the first batch, decoded from their token ids."""
    batch, collator = steps[0], steps.collator
    place = 0
    for number in range(min(len(batch), _SHOWN_ROWS)):
        row = steps.data[batch.rows[number]]
        yield f"  row {number + 1} ({steps.data.place(row.index)})"
        if batch.queries.lengths:  # A reranker has them in its pairs alone.
            yield f"    query     {_decoded(batch.queries, number, collator)}"
        for position in range(batch.groups[number]):
            if position < _SHOWN_PASSAGES:
                label = "negative " if position else "positive "
                teacher = "" if batch.teacher is None else f" (teacher {float(batch.teacher[place + position]):.4g})"
                yield f"    {label} {_decoded(batch.passages, place + position, collator)}{teacher}"
        if batch.groups[number] > _SHOWN_PASSAGES:
            yield f"    ... and {batch.groups[number] - _SHOWN_PASSAGES} more negatives"
        if batch.scores is not None:
            yield f"    score     {float(batch.scores[number]):g}"
        place += batch.groups[number]
    if len(batch) > _SHOWN_ROWS:
        yield f"  ... and {len(batch) - _SHOWN_ROWS} more rows"
    others = "the passages of all rows" if batch.in_batch else "the row's own passages only"
    yield f"  negatives of a query: {others}"


def _decoded(packed: Packed, number: int, collator: Collator) -> str:
    start = sum(packed.lengths[:number])
    ids = packed.input_ids[start : start + packed.lengths[number]].tolist()
    text = repr(collator.tokenizer.decode(ids, skip_special_tokens=False))[1:-1]
    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return f"[{len(ids)} tokens] {text}"


def _warnings(steps: StepDataset, lengths: Sequence[Lengths]) -> Iterator[str]:
    data, collator = steps.data, steps.collator
    yield from data.warnings
    for number, idle in enumerate(steps.without_negatives()):
        name = data.datasets[number].spec.name
        yield from (f"{name}: {warning}" for warning in _dataset_warnings(steps, number, lengths[number], idle))
    drawn = rows_of_epoch(steps.shares, steps.options.temperature)
    for dataset, count in zip(data.datasets, drawn, strict=True):
        if len(dataset) and not count:
            yield f"{dataset.spec.name}: none of its rows is drawn; raise its weight or the sampling temperature"
    yield from _instruction_warnings(data, collator)


def _dataset_warnings(steps: StepDataset, number: int, sample: Lengths, idle: int) -> Iterator[str]:
    dataset, limits, copies = steps.data.datasets[number], steps.collator.limits(), steps.copies[number]
    if copies.positives:
        yield f"{copies.positives:,} rows have the query itself as a positive: there is nothing to learn from them"
    if copies.negatives:
        rows = f"{copies.negatives:,} rows have a positive among their negatives"
        yield f"{rows}; it does not count as a negative when it is drawn"
    for limit in limits:
        if sample.cut(limit) > TRUNCATED:
            yield f"{sample.cut(limit):.0%} of the {limit.plural} are cut at {limit.tokens} tokens: {limit.remedy}"
    first = limits[0]
    if sample.query_prompt > first.tokens / 2:
        remedy = "shorten it" if first.final else f"raise {first_name(first.name)}"
        yield f"the instruction takes {sample.query_prompt} of the {first.tokens} tokens of a {first.what}: {remedy}"
    if sample.unknown > _MUCH_UNKNOWN:
        yield f"{sample.unknown:.0%} of the tokens are unknown to the model: is it meant for this language?"
    wanted, counts = steps.sampling.group_size - 1, dataset.column("negative_count")
    few = int(((counts > 0) & (counts < wanted)).sum())
    if few and steps.sampling.repeat and dataset.spec.type not in (ONE_NEGATIVE, CLASSES):
        yield (
            f"{few:,} rows have fewer than {wanted} negatives (--train-group-size less 1), which are repeated: take a "
            "smaller group, or mine more (`bge mine`)"
        )
    if idle:
        yield (
            f"{idle:,} rows have no negatives, and passages of other rows do not count as negatives: nothing is learnt "
            "from these rows"
        )
    if dataset.spec.batch_size is not None and not steps.options.same_dataset:
        yield "its batch_size counts only with --same-dataset-within-batch"
    own = next(p.batch_size for p in steps.shares if p.rows is dataset.rows) or steps.options.batch_size
    if steps.options.drop_last and steps.options.same_dataset and len(dataset) < own:
        yield f"its {len(dataset):,} rows do not fill a batch of {own:,}, and incomplete ones are left out"


def _instruction_warnings(data: TrainingData, collator: Collator) -> Iterator[str]:
    """Warnings where rows bring prompts that differ from those that the model puts before queries in use."""
    prompts, types = Counter[str | None](), Counter[str | None]()
    for dataset in data.datasets:
        prompts.update(dataset.values("prompt"))
        types.update(dataset.values("type"))
    usual = collator.query_prompt
    others = {
        prompt: count
        for prompt, count in prompts.items()
        if prompt is not None and Prompt.from_format(prompt, collator.query_format) != usual
    }
    if others:
        most = max(others, key=lambda prompt: others[prompt])
        total = sum(prompts.values())
        yield (
            f"{sum(others.values()):,} of {total:,} rows have a prompt of their own ({len(others):,} different ones, "
            f"most often {most!r:.80}), and the model puts {str(usual)!r:.80} before queries when it is used: encode "
            "with the prompt that was trained, or set --query-instruction-for-retrieval and leave out `prompt`"
        )
    prompted = sum(types.get(name, 0) for name in PROMPTED_PASSAGES)
    if prompted and (usual or others):
        yield f"{prompted:,} rows have the query's instruction before passages, too, as their type says"


def _spread(size: int, most: int) -> list[int]:
    """Positions below `size`, at most `most`, evenly apart."""
    return [int(position) for position in np.linspace(0, size - 1, min(size, most))] if size else []


def _quantiles(values: Iterable[int]) -> str:
    array = np.asarray(values)
    return "/".join(f"{value:g}" for value in np.quantile(array, (0, 0.5, 1), method="nearest")) if len(array) else "-"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
