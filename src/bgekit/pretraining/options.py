"""Options of pre-training as the command line has them, which neither torch nor transformers is needed for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from ..data.documents import Unit
from ..display.option_names import option_of
from ..errors import ArgumentError
from ..training.loop.command_line import Command
from ..training.loop.options import LOOP_SHOWN, TrainerOptions, option


@dataclass
class PretrainModelArguments:
    """The model that is pre-trained.

    Example:
        >>> from bgekit.pretraining import PretrainModelArguments
        >>> PretrainModelArguments("BAAI/bge-small-en-v1.5").model_name_or_path
        'BAAI/bge-small-en-v1.5'
    """

    model_name_or_path: str = option("checkpoint to start from: folder, hub id, packaged:NAME", "", aliases=["--model"])
    config_name: str | None = option(
        "start from random weights instead: a folder or hub id with a config.json, or a type such as bert"
    )
    config_overrides: str | None = option("with --config-name: hidden_size=256,num_hidden_layers=4,...")
    tokenizer_name: str | None = option(
        "another tokenizer than the checkpoint's; tokens that both have keep their embeddings, new ones begin as the "
        "mean of the old pieces that spell them"
    )
    pooling: Literal["cls"] | None = option(
        "only cls: that is what is trained, however the model pooled before",
        aliases=["--pooling-method", "--sentence-pooling-method"],
    )
    cache_dir: str | None = option("folder for files from the hub")
    revision: str | None = option("branch, tag or commit on the hub")
    allow_pickle: bool = option("read weights in .bin files", False)

    def __post_init__(self) -> None:
        if bool(self.model_name_or_path) == bool(self.config_name):
            raise ArgumentError(
                "give either --model, the checkpoint to start from, or --config-name, to start from random weights"
            )
        if self.config_overrides and not self.config_name:
            raise ArgumentError("--config-overrides needs --config-name: a checkpoint has its sizes already")


@dataclass
class PretrainDataArguments:
    """Texts of pre-training.

    Example:
        >>> from bgekit.pretraining import PretrainDataArguments
        >>> PretrainDataArguments(train_data=["corpus.jsonl"]).encoder_mlm_probability
        0.3
    """

    train_data: list[str] = option("files and folders of texts, in any form that bge encode reads", many=True)
    text_field: str | None = option("field of the text; by default text, content or contents")
    title_field: str | None = option('field of a title put before it; by default title, "" for none')
    on_error: Literal["raise", "skip"] = option("stop at lines that cannot be used, or skip them", "raise")
    records: Unit | None = option(
        "what of a text or document is one text; by default a line of txt, and the whole of other documents"
    )
    include: list[str] = option("files to read in folders, also with other endings, such as '*.rst'", many=True)
    exclude: list[str] = option("files and folders to skip in folders, such as 'drafts/'", many=True)
    delimiter: str | None = option("separator of csv columns, such as ';' or tab; by default the header's")
    max_seq_length: int = option("maximum tokens per sequence, special tokens included", 512)
    long_texts: Literal["split", "cut"] = option(
        "split longer texts into several sequences, or cut off their end", "split"
    )
    encoder_mlm_probability: float = option("share of the tokens that the encoder does not see", 0.3)
    decoder_mlm_probability: float = option("share of the tokens that each position of the decoder does not see", 0.5)
    cache_path: str | None = option("folder for tokenised texts; by default beside transformers' cache")

    def __post_init__(self) -> None:
        if not self.train_data:
            raise ArgumentError('--train-data is needed: files of texts (jsonl of {"text"}, txt, ...), or folders')
        for name in ("encoder_mlm_probability", "decoder_mlm_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ArgumentError(f"{option_of(name)} must be between 0 and 1, not {getattr(self, name)}")


@dataclass
class PretrainOptions(TrainerOptions):
    """What pre-training has beside the arguments of Trainer."""

    judged_by: ClassVar[str] = "--eval-data or --validation-split: texts to measure the losses on"

    eval_data: list[str] = option("texts like --train-data, measured while training", many=True)
    validation_split: float = option("share of the texts of --train-data to hold out instead of --eval-data", 0.0)

    @property
    def judged(self) -> bool:
        """Whether there are texts to judge by."""
        return bool(self.eval_data or self.validation_split)

    def check(self) -> None:
        """Check what can be known of the arguments as they were given."""
        if not 0 <= self.validation_split < 1:
            raise ArgumentError(f"--validation-split must be from 0 to below 1, not {self.validation_split}")
        if self.eval_data and self.validation_split:
            raise ArgumentError("give --eval-data or --validation-split, not both")
        if self.eval_split is not None:
            raise ArgumentError("--split is for `bge eval` data; here --validation-split holds texts out")
        own: Any = self
        if self.judged and own.metric_for_best_model is None:
            own.metric_for_best_model = "eval_loss"
        super().check()


PRETRAIN: Final = Command(
    "Pre-train an encoder on plain texts with RetroMAE, before it is fine-tuned with `bge finetune`. Options are those "
    "of transformers' Trainer, those of FlagEmbedding by their names, and the ones below.",
    "--model MODEL --train-data FILE ... --output DIR",
    (PretrainModelArguments, PretrainDataArguments, PretrainOptions),
    {
        "model and data": (
            "model_name_or_path", "config_name", "tokenizer_name", "train_data", "text_field", "title_field",
            "on_error", "records", "include", "exclude", "delimiter", "max_seq_length", "long_texts",
        ),
        "loss": ("encoder_mlm_probability", "decoder_mlm_probability"),
        "measuring": ("eval_data", "validation_split", "eval_steps", "load_best_model_at_end"),
        **LOOP_SHOWN,
    },
)  # fmt: skip
