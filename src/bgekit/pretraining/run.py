"""Pre-training of an encoder: `bge pretrain`, and `python -m bgekit.pretraining.run` for launchers."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from torch import Tensor

from ..errors import ArgumentError, CheckpointError, OutputError
from ..inference.embedder import make_selftest
from ..models.weights import read_tensors, weight_files
from ..networks.cpu_training import use_quick_dropout
from ..networks.encoder import Encoder
from ..networks.saving import write_checkpoint
from ..training.batches.sampler import PlanOptions
from ..training.loop.arguments import parse
from ..training.loop.checkpoints import origin
from ..training.loop.training_run import begin, identity, run
from .initial_model import BESIDE, Start, started
from .masking import Batch, Masking, PretrainSteps
from .pretrain_arguments import PretrainArguments, PretrainDataArguments, PretrainModelArguments
from .retromae import RetroMAE
from .retromae_trainer import PretrainingTrainer, Watch, loss_of, measured_losses
from .token_store import Reading, Texts, Tokenization, read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
#: Stands for the visit of sequences that are measured, which no epoch is.
_MEASURED: Final = 1 << 31
_DESCRIPTION: Final = """\
Pre-train an encoder on plain texts with RetroMAE, before it is fine-tuned with `bge finetune`.
Arguments are those of transformers' Trainer, those of FlagEmbedding by their names, and the ones below."""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m bgekit.pretraining.run") -> int:
    """Parse arguments and train."""
    given = sys.argv[1:] if arguments is None else arguments
    kinds = (PretrainModelArguments, PretrainDataArguments, PretrainArguments)
    model, data, args = parse(kinds, given, prog=prog, description=_DESCRIPTION)
    pretrain(model, data, args)
    return 0


def pretrain(model: PretrainModelArguments, data: PretrainDataArguments, args: PretrainArguments) -> Path | None:
    """Train an encoder.

    Returns:
        The folder of the trained model; None after a dry run, whose findings are printed.

    Raises:
        DataError: the texts cannot be used; nothing was trained then.
        ArgumentError: arguments are impossible or contradict each other.
        CheckpointError: the model to start from is damaged.
        OutputError: the output folder holds something already, or cannot be written.
    """
    resume = begin(args)
    with started(model, data.max_seq_length) as start:
        tokens = Tokenization.of(start.tokenizer, start.card.name)
        texts, held_out = _read(data, args, tokens)
        masking = Masking(tokens, data.encoder_mlm_probability, _seed(args))
        options = PlanOptions(
            args.per_device_train_batch_size * args.world_size, masking.seed, drop_last=args.dataloader_drop_last
        )
        steps = PretrainSteps(texts, options, masking, rank=args.process_index, world=args.world_size)
        network = _network(start, data.decoder_mlm_probability)
        if args.dry_run:
            print(describe(steps, network, start.tokenizer, args))  # noqa: T201
            return None
        watch = Watch()
        if args.process_index == 0:
            watch.before(texts.facts, data.max_seq_length, data.long_texts == "cut")
        base = model.model_name_or_path or None
        output = _Output(start, network, origin(base, len(texts), verb="Pre-trained (RetroMAE)", unit="sequences"))

        def measure(held_out: Texts) -> Mapping[str, float]:
            batches = _batches(held_out, masking, args.per_device_train_batch_size)
            return measured_losses(network, batches, trainer.compute_loss_context_manager())

        trainer = PretrainingTrainer(
            network, args, cast(Any, steps), _whole, loss_of, write=output.write, read=output.read,
            judge=None if held_out is None else functools.partial(measure, held_out), diagnosis=cast(Any, watch),
            identity=identity(
                args, cast(Any, texts), data, measured=None if held_out is None else [held_out.fingerprint]
            ),
        )  # fmt: skip
        facts = {"method": "RetroMAE", "texts": asdict(texts.facts)}
        return run(
            trainer, output.write, resume=resume, rows=cast(Any, texts), parts=(model, data), facts=facts
        )  # fmt: skip


def _seed(args: PretrainArguments) -> int:
    return int(args.seed if args.data_seed is None else args.data_seed)


def _batches(texts: Texts, masking: Masking, size: int) -> Iterator[Batch]:
    """What is measured, masked in the same way each time."""
    for first in range(0, len(texts), size):
        rows = range(first, min(first + size, len(texts)))
        yield masking(texts, rows, [_MEASURED] * len(rows))


def _whole(batch: Batch) -> tuple[Batch]:
    return (batch,)


def _read(data: PretrainDataArguments, args: PretrainArguments, tokens: Tokenization) -> tuple[Texts, Texts | None]:
    """The sequences that are trained on, and those that are measured. The first process tokenises for all."""
    room = data.max_seq_length - tokens.special
    if room < 1:
        raise ArgumentError(
            f"--max_seq_length {data.max_seq_length} leaves no room beside {tokens.special} special tokens"
        )
    reading = Reading(
        room, data.long_texts, data.text_field, data.title_field, data.on_error, args.encoding, args.quoting
    )
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


def _network(start: Start, share: float) -> RetroMAE:
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


class _Output:
    """Writes the network as a checkpoint, and reads its weights back."""

    def __init__(self, start: Start, network: RetroMAE, origin: str) -> None:
        self._start, self._network, self._origin = start, network, origin

    def write(self, folder: Path) -> None:
        """The encoder as a folder that everybody can load, head and decoder in a file beside it."""
        from safetensors.torch import save

        network, card = self._network, self._start.card
        training, device = network.training, next(network.parameters()).device
        network.eval()
        try:
            selftest = make_selftest(Encoder(network.backbone, card), self._start.tokenizer, card, device)
        finally:
            network.train(training)
        write_checkpoint(
            folder, card=card, source=self._start.folder, selftest=selftest, origin=self._origin, overwrite=True,
            weights={name: value.detach().cpu() for name, value in network.weights().items()},
        )  # fmt: skip
        beside = {name: value.detach().cpu().clone() for name, value in network.beside().items()}
        try:
            (folder / BESIDE).write_bytes(save(beside, metadata={"format": "pt"}))
        except OSError as error:
            raise OutputError(f"cannot write {folder / BESIDE}: {error.strerror or error}") from error

    def read(self, folder: Path) -> Mapping[str, Tensor]:
        """Weights by the network's own names."""
        from safetensors.torch import load_file

        encoder = {
            f"backbone.model.{name}": value for file in weight_files(folder) for name, value in read_tensors(file)
        }
        return encoder | load_file(folder / BESIDE)


if __name__ == "__main__":
    from ..training.loop.training_run import launched

    sys.exit(launched(main))
#: Sequences and characters that are shown.
_SHOWN: Final = 2
_CHARACTERS: Final = 300


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
        f"{total:,} steps of {steps.options.batch_size * accumulated:,} sequences, {an_epoch:,} an epoch; "
        f"about {float(lengths.mean()) * steps.options.batch_size * accumulated:,.0f} tokens a step",
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
