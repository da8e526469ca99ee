"""Pre-training of an encoder: `bge pretrain`, and `python -m bgekit.pretraining.run` for launchers."""

from __future__ import annotations

import functools
import logging
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.torch import save

from ..display.terminal import Progress, titled
from ..errors import ArgumentError, CheckpointError
from ..networks.cpu_training import use_quick_dropout
from ..networks.encoder import Encoder
from ..training.batches.sampler import PlanOptions
from ..training.loop.arguments import TrainerArguments
from ..training.loop.checkpoints import ModelFiles, origin, save_encoder
from ..training.loop.training_run import (
    launched,
    prepare_run,
    run_identity,
    train_and_save,
    train_as_given,
)
from .initial_model import BESIDE, InitialModel, initial_model
from .options import PRETRAIN, PretrainDataArguments, PretrainModelArguments, PretrainOptions
from .retromae import (
    MaskedBatch,
    Masking,
    PretrainDiagnosis,
    PretrainingTrainer,
    PretrainSteps,
    RetroMAE,
    measured_losses,
    whole_gradient,
)
from .token_store import Reading, Texts, Tokenization, read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
#: Stands for the epoch of sequences that are measured, which no epoch is.
_MEASURED: Final = 1 << 31
#: Sequences, and characters of them, that a dry run shows.
_SHOWN: Final = 2
_CHARACTERS: Final = 300


@dataclass
class PretrainArguments(PretrainOptions, TrainerArguments):
    """Training of an encoder on texts.

    Example:
        >>> from bgekit.pretraining import PretrainArguments
        >>> PretrainArguments("pretrained", max_steps=1, report_to="none").max_steps
        1
    """


def pretrain(model: PretrainModelArguments, data: PretrainDataArguments, args: PretrainArguments) -> Path | None:
    """Train an encoder.

    Returns:
        The folder of the trained model; None after a dry run, whose findings are printed.

    Raises:
        DataError: the texts cannot be used; nothing was trained then.
        ArgumentError: arguments are impossible or contradict each other.
        CheckpointError: the model to start from is damaged.
        OutputError: the output folder holds something already, or cannot be written.

    Example:
        >>> from bgekit.pretraining import (
        ...     PretrainArguments, PretrainDataArguments, PretrainModelArguments, pretrain,
        ... )
        >>> args = PretrainArguments("pretrained", max_steps=1, per_device_train_batch_size=2, report_to="none")
        >>> data = PretrainDataArguments(train_data=["corpus.jsonl"], cache_path="cache")
        >>> pretrain(PretrainModelArguments("BAAI/bge-small-en-v1.5"), data, args).name
        'pretrained'
    """
    resume = prepare_run(args)
    with initial_model(model, data.max_seq_length) as start:
        tokens = Tokenization.of(start.tokenizer, start.card.name)
        reading = _reading(data, args, tokens)
        texts, held_out = _read(data, args, tokens, reading)
        masking = Masking(tokens, data.encoder_mlm_probability, args.order_seed)
        options = PlanOptions(args.global_batch_size, masking.seed, drop_last=args.dataloader_drop_last)
        steps = PretrainSteps(texts, options, masking, rank=args.process_index, world=args.world_size)
        network = _network(start, data.decoder_mlm_probability)
        if args.dry_run:
            print(describe(steps, network, start.tokenizer, args))  # noqa: T201
            return None
        diagnosis = PretrainDiagnosis()
        if args.process_index == 0:
            diagnosis.before(texts.facts, data.max_seq_length, data.long_texts == "cut")
        base = model.model_name_or_path or None
        files = _files(start, network, origin(base, len(texts), verb="Pre-trained (RetroMAE)", unit="sequences"))

        def measure(held_out: Texts) -> Mapping[str, float]:
            size = args.per_device_train_batch_size
            with titled("evaluation"), Progress("", "sequences", len(held_out), show=not args.disable_tqdm) as bar:
                batches = _batches(held_out, masking, size, bar.advance)
                return measured_losses(network, batches, trainer.compute_loss_context_manager())

        trainer = PretrainingTrainer(
            network, args, steps, whole_gradient, files=files, diagnosis=diagnosis,
            measure=None if held_out is None else functools.partial(measure, held_out),
            identity=run_identity(
                args, texts.fingerprint, data, measured=None if held_out is None else [held_out.fingerprint]
            ),
        )  # fmt: skip
        return train_and_save(
            trainer, resume=resume, data=texts.counts, parts=(model, data),
            more={"method": "RetroMAE", "texts": asdict(texts.facts)},
            following=lambda output: f"bge finetune --model {shlex.quote(str(output))} --train-data FILE ...",
        )  # fmt: skip


main = functools.partial(
    train_as_given, pretrain, (PretrainModelArguments, PretrainDataArguments, PretrainArguments), PRETRAIN,
    prog="python -m bgekit.pretraining.run",
)  # fmt: skip


def _batches(texts: Texts, masking: Masking, size: int, advance: Callable[[int], None]) -> Iterator[MaskedBatch]:
    """Batches of sequences that are measured, masked in the same way each time; `advance` is called after each."""
    for first in range(0, len(texts), size):
        rows = range(first, min(first + size, len(texts)))
        yield masking(texts, rows, [_MEASURED] * len(rows))
        advance(len(rows))


def _reading(data: PretrainDataArguments, args: PretrainArguments, tokens: Tokenization) -> Reading:
    """The options of reading texts."""
    room = data.max_seq_length - tokens.special
    if room < 1:
        raise ArgumentError(f"--max-length {data.max_seq_length} leaves no room beside {tokens.special} special tokens")
    return Reading(
        room, data.long_texts, data.text_field, data.title_field, data.on_error, args.encoding, args.quoting,
        records=data.records, delimiter=data.delimiter, include=tuple(data.include), exclude=tuple(data.exclude),
    )  # fmt: skip


def _read(
    data: PretrainDataArguments, args: PretrainArguments, tokens: Tokenization, reading: Reading
) -> tuple[Texts, Texts | None]:
    """The sequences to train on, and those to measure. The first process tokenises for all."""
    with args.main_process_first(desc="tokenising the texts"):
        texts = read_texts(data.train_data, tokens, reading, data.cache_path)
        measured = read_texts(args.eval_data, tokens, reading, data.cache_path) if args.eval_data else None
    if args.validation_split:
        texts, measured = texts.split(args.validation_split, args.seed)
    facts = texts.facts
    logger.info(
        "%d texts, %d tokens in %d sequences; %d without text left out, %d bad lines skipped; %d sequences are trained "
        "on, %d measured", facts.texts, facts.tokens, facts.sequences, facts.empty, facts.skipped, len(texts),
        0 if measured is None else len(measured),
    )  # fmt: skip
    return texts, measured


def _network(start: InitialModel, share: float) -> RetroMAE:
    network = RetroMAE(start.lm, share)
    rest = {name: value for name, value in start.beside.items() if not name.startswith("head.")}
    if rest:
        try:
            network.load_state_dict(rest, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"{BESIDE} of {start.card.name} does not fit its config.json: {error}") from error
    for name, parameter in network.transformer.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad_(False)
    use_quick_dropout(network)
    return network.train()


def _files(start: InitialModel, network: RetroMAE, origin: str) -> ModelFiles:
    """The network on the disk: the encoder for everybody, head and decoder in a file beside it."""

    def write(folder: Path, title: str | None) -> None:
        save_encoder(
            folder, title, network=network, weights=network.weights(), encoder=Encoder(network.backbone, start.card),
            tokenizer=start.tokenizer, card=start.card, source=start.folder, origin=origin,
        )  # fmt: skip

    def further() -> bytes:
        weights = {name: value.detach().cpu().clone() for name, value in network.beside().items()}
        return save(weights, metadata={"format": "pt"})

    return ModelFiles(network, write, {"": "backbone.model."}, beside=BESIDE, further=further)


def describe(
    steps: PretrainSteps, network: RetroMAE, tokenizer: PreTrainedTokenizerFast, args: PretrainArguments
) -> str:
    """The data, the steps, a batch as the encoder sees it, and the memory of weights and optimiser.

    Args:
        steps: The steps of this process.
        network: What would be trained.
        tokenizer: Its tokenizer.
        args: How.
    """
    texts, batch = steps.texts, steps[0]
    facts, lengths = texts.facts, np.asarray(texts.lengths)
    smallest, median, largest = np.quantile(lengths, (0, 0.5, 1), method="nearest")
    sizes = {"encoder": 0, "head and decoder": 0}
    for name, parameter in network.named_parameters():
        sizes["encoder" if name.startswith("backbone.") else "head and decoder"] += parameter.numel()
    accumulated = args.gradient_accumulation_steps
    an_epoch = math.ceil(len(steps) / accumulated)
    total = args.max_steps if args.max_steps > 0 else math.ceil(an_epoch * args.num_train_epochs)
    lines = [
        f"{facts.texts:,} texts ({facts.empty:,} empty ones left out, {facts.skipped:,} bad lines skipped), "
        f"{facts.long:,} of them longer than a sequence",
        f"{len(texts):,} sequences of {smallest}/{median}/{largest} tokens (smallest, median, largest, without special "
        f"ones); {facts.unknown / max(facts.tokens, 1):.2%} of the tokens unknown",
        f"{total:,} steps of {steps.options.batch_size * accumulated:,} sequences, {an_epoch:,} per epoch; "
        f"about {float(lengths.mean()) * steps.options.batch_size * accumulated:,.0f} tokens per step",
        f"{sizes['encoder']:,} parameters in the encoder, {sizes['head and decoder']:,} in head and decoder; weights, "
        f"gradients and Adam take {16 * sum(sizes.values()) / 2**30:.2f} GiB",
        f"in the first batch {batch.hidden.numel():,} of {batch.content.numel():,} tokens are hidden from the encoder",
    ]
    ends = np.cumsum(batch.masked.lengths)
    for number in range(min(_SHOWN, len(ends))):
        stretch = slice(int(ends[number]) - batch.masked.lengths[number], int(ends[number]))
        lines.append(f"  text    {_decoded(batch.original.input_ids[stretch], tokenizer)}")
        lines.append(f"  encoder {_decoded(batch.masked.input_ids[stretch], tokenizer)}")
    return "\n".join(lines)


def _decoded(ids: Any, tokenizer: PreTrainedTokenizerFast) -> str:
    text = repr(tokenizer.decode(ids.tolist(), skip_special_tokens=False))[1:-1]
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} ..."


if __name__ == "__main__":
    sys.exit(launched(main))
