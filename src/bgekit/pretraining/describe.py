"""What pre-training would do, shown before it does it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .batches import PretrainSteps
from .network import RetroMAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .arguments import PretrainArguments

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
