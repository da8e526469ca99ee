"""Options of training as a command line has them: fields of dataclasses with a sentence each, and what they refuse.

Neither torch nor transformers is needed to read or to check them, so that a mistake in a command is answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, TypeAlias

from ...data.encodings import check_encoding
from ...display.option_names import option_of
from ...errors import ArgumentError, require_extra
from ...files.remote import refuse_url
from ...models.card import Pooling
from ...models.head_files import OUTPUTS
from .command_line import Command, first_name

#: Losses for rows with a score, by name: those of `SCORED_LOSSES` in losses/sts.py.
ScoredLoss: TypeAlias = Literal["cosent", "mse"]


def option(sentence: str, default: Any = None, *, aliases: Sequence[str] = (), many: bool = False) -> Any:
    """A field of a dataclass that is an option of a command line.

    Args:
        sentence: Shown by `--help`.
        default: Its value where it is not given.
        aliases: Further names of the option.
        many: Whether it is a list.
    """
    metadata = {"help": sentence, "aliases": list(aliases)}
    if many:
        return field(default_factory=lambda: list(default or []), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_at_least_1(args: Any, *names: str) -> None:
    """Check some numbers, as far as they are given."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ArgumentError(f"{first_name(name)} must be at least 1, not {value}")


@dataclass
class ModelArguments:
    """The model that is trained.

    Example:
        >>> from bgekit.training import ModelArguments
        >>> ModelArguments("BAAI/bge-small-en-v1.5").use_lora
        False
    """

    model_name_or_path: str = option("checkpoint to start from: folder, hub id, packaged:NAME", "", aliases=["--model"])
    cache_dir: str | None = option("folder for files from the hub")
    revision: str | None = option("branch, tag or commit on the hub")
    trust_remote_code: bool = option("run Python code that comes with the model", False)
    allow_pickle: bool = option("read weights in .bin files", False)
    use_lora: bool = option("train low-rank adapters (peft) and merge them into the saved model", False)
    lora_rank: int = option("rank of the adapters", 64)
    lora_alpha: float = option("scale of the adapters", 16.0)
    lora_dropout: float = option("dropout of the adapters", 0.1)
    target_modules: list[str] = option("modules with adapters; by default all linear layers", many=True)

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ArgumentError("--model is needed: the checkpoint to start from, such as BAAI/bge-small-en-v1.5")
        if self.use_lora:
            require_extra("lora", "peft")


@dataclass
class DataArguments:
    """Training data. Defaults are those of FlagEmbedding 1.2.9.

    Example:
        >>> from bgekit.training import DataArguments
        >>> DataArguments(train_data=["train.jsonl"]).train_group_size
        8
    """

    train_data: list[str] = option("jsonl files, or folders of them", many=True)
    dataset_weights: list[float] = option(
        "how often each path of --train-data is drawn, relative to its size", many=True
    )
    sampling_temperature: float = option("values above 1 draw small datasets more often than their share", 1.0)
    cache_path: str | None = option("folder for checked data; by default beside transformers' cache")
    train_group_size: int = option("passages per query: one positive, the others negatives", 8)
    query_max_len: int = option("maximum tokens per query", 32)
    passage_max_len: int = option("maximum tokens per passage", 128)
    max_example_num_per_dataset: int = option("maximum number of rows per dataset, drawn at random", 100_000_000)
    query_instruction_for_retrieval: str | None = option(
        'text put before queries; by default the model\'s own, "" for none',
        aliases=["--query-instruction-for-rerank", "--query-instruction"],
    )
    query_instruction_format: str = option("format with one slot {} for the instruction and one for the query", "{}{}")
    passage_instruction_for_retrieval: str | None = option(
        "text put before passages; by default the model's own",
        aliases=["--passage-instruction-for-rerank", "--passage-instruction"],
    )
    passage_instruction_format: str = option(
        "format with one slot {} for the instruction and one for the passage", "{}{}"
    )
    knowledge_distillation: bool = option("also learn from pos_scores and neg_scores", False)
    shuffle_ratio: float = option("share of positives whose three parts are put in another order", 0.0)
    same_dataset_within_batch: bool = option(
        "take all rows of a batch from one dataset", False, aliases=["--same-task-within-batch"]
    )
    small_threshold: int = option("datasets of a folder with fewer rows than this are put together", 0)
    drop_threshold: int = option("datasets that then still have fewer rows than this are left out", 0)
    group_by_length: bool = option("put rows of similar lengths into a batch", False)
    drop_duplicates: bool = option("leave out rows that equal an earlier one", False)
    pad_to_multiple_of: int | None = option("has no effect, since nothing is padded; accepted for old commands")

    def __post_init__(self) -> None:
        check_at_least_1(self, "train_group_size", "query_max_len", "passage_max_len", "max_example_num_per_dataset")
        if not self.train_data:
            raise ArgumentError('--train-data is needed: jsonl files of {"query", "pos", "neg"}, or folders of them')
        if self.dataset_weights and len(self.dataset_weights) != len(self.train_data):
            raise ArgumentError(
                f"--dataset-weights has {len(self.dataset_weights)} values for {len(self.train_data)} of --train-data"
            )
        if self.sampling_temperature <= 0:
            raise ArgumentError(f"--sampling-temperature must be above 0, not {self.sampling_temperature}")


@dataclass
class RerankerDataArguments(DataArguments):
    """Training data of a reranker.

    Example:
        >>> from bgekit.training import RerankerDataArguments
        >>> RerankerDataArguments(train_data=["train.jsonl"]).train_group_size
        8
    """

    query_max_len: int | None = option("not for rerankers: see --max-length")  # type: ignore[assignment]
    passage_max_len: int | None = option("not for rerankers: see --max-length")  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("query_max_len", "passage_max_len"):
            if getattr(self, name) is not None:
                raise ArgumentError(
                    f"{first_name(name)} is for embedders: a reranker reads query and passage together, so give the "
                    "tokens of both together as --max-length"
                )
        super().__post_init__()


@dataclass
class TrainerOptions:
    """What training has beside the arguments of transformers' Trainer, and those that it gives another default."""

    #: The data that a model is measured on while it is trained, as an error says it.
    judged_by: ClassVar[str] = "--eval-data: data in any form of `bge eval` to measure the model on"

    overwrite_output_dir: bool = option("start over in an output folder that is not empty", False)
    warmup_ratio: float | None = option("share of the steps over which the learning rate rises")
    logging_steps: float = option("steps between lines of the log", 10)
    logging_first_step: bool = option("also log the first step", True)
    dry_run: bool = option("show the data as the model will see it, and train nothing", False)
    early_stopping_patience: int | None = option("stop after this many evaluations without improvement")
    eval_data: list[str] = option("data in any form of `bge eval`, measured while training", many=True)
    eval_split: str | None = option("split of --eval-data to measure on")
    encoding: str | None = option("encoding of text files of data, such as gb18030; by default UTF-8")
    quoting: Literal["auto", "csv", "none"] = option("whether quotes in csv and tsv enclose fields", "auto")

    @property
    def judged(self) -> bool:
        """Whether there is data to judge by."""
        return bool(self.eval_data)

    def check(self) -> None:
        """Check what can be known of the arguments as they were given.

        Raises:
            ArgumentError: one is impossible, has no effect in this kind of training, or is missing.
            OutputError: the output is a URL.
        """
        own: Any = self
        check_supported(self)
        check_encoding(self.encoding)
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio < 1:
            raise ArgumentError(f"--warmup-ratio must be from 0 to below 1, not {self.warmup_ratio}")
        check_at_least_1(self, "early_stopping_patience")
        if not own.output_dir and not self.dry_run:
            raise ArgumentError("--output is needed: where the trained model is saved")
        refuse_url(own.output_dir or "", "trained models are saved")


@dataclass
class EmbedderOptions(TrainerOptions):
    """What training of an embedder has beside that."""

    negatives_cross_device: bool = option(
        "use passages of all devices as negatives, not only those of the same device", False
    )
    use_inbatch_neg: bool = option("use passages of other rows as negatives", True)
    temperature: float = option("number that similarities are divided by", 0.02)
    sentence_pooling_method: Pooling | None = option(
        "how token vectors become one; by default what the model says", aliases=["--pooling", "--pooling-method"]
    )
    normalize_embeddings: bool | None = option(
        "scale vectors to unit length; by default what the model says", aliases=["--normlized"]
    )
    fix_position_embedding: bool = option("do not train the position embeddings", False)
    kd_loss_type: Literal["kl_div", "m3_kd_loss"] | None = option("loss of --knowledge-distillation; by default kl_div")
    both_ways: bool = option("train passages to find their queries, too", False)
    matryoshka: bool = option("train the leading dimensions to be embeddings, too", False, aliases=["--use-mrl"])
    matryoshka_dims: list[int] = option(
        "dimensions of --matryoshka; by default 1/2, 1/4, 1/8 of the whole", aliases=["--mrl-dims"], many=True
    )
    scored_loss: ScoredLoss = option("loss of rows with a `score`", "cosent")
    false_negative_margin: float | None = option(
        "ignore negatives whose similarity is within this distance of the positive's, or above it"
    )
    false_negative_ratio: float | None = option(
        "ignore negatives whose similarity is at least this share of the positive's, such as 0.95"
    )
    grad_cache_chunk: int | None = option(
        "number of texts encoded at once: any batch fits any memory, with the same gradient",
        aliases=["--sub-batch-size"],
    )
    unified_finetuning: bool = option("train lexical weights and multi-vectors beside the dense vectors, too", False)
    heads: list[str] = option(
        "what --unified-finetuning trains: some of dense, sparse, multi-vector; by default all", many=True
    )
    use_self_distill: bool = option("let each head also learn from all of them together", False)
    self_distill_start_step: int = option("the step after which --use-self-distill begins; -1 for from the start", -1)
    fix_encoder: bool = option("train the heads alone, on the encoder as it is", False)
    heads_warmup_steps: int = option("first steps in which the heads alone are trained", 0)
    loss_weights: list[float] = option(
        "weights of the losses of dense, sparse, multi-vector and all together; by default 1 0.1 1 1, as in "
        "FlagEmbedding (the paper: 1 1 1 1)",
        many=True,
    )
    score_weights: list[float] = option(
        "weights of the scores of dense, sparse, multi-vector in their sum; by default 1 0.3 1 (the paper: 1 1 1)",
        many=True,
    )
    colbert_dim: int = option("dimensions of new multi-vectors; -1 for as many as the encoder has", -1)

    def check(self) -> None:
        """Check what can be known of the arguments as they were given."""
        self._check_heads()
        if self.temperature <= 0:
            raise ArgumentError(f"--temperature must be above 0, not {self.temperature}")
        check_at_least_1(self, "grad_cache_chunk")
        if self.matryoshka_dims and not self.matryoshka:
            self.matryoshka = True
        if min(self.matryoshka_dims, default=1) < 1:
            raise ArgumentError(f"--matryoshka-dims must be at least 1, not {min(self.matryoshka_dims)}")
        if not self.use_inbatch_neg and self.both_ways:
            raise ArgumentError("--both-ways needs in-batch negatives: leave out --use-inbatch-neg false")
        super().check()

    def _check_heads(self) -> None:
        """Check the arguments of unified fine-tuning."""
        if not self.unified_finetuning:
            for name in UNIFIED:
                if getattr(self, name) != default_of(next(each for each in fields(self) if each.name == name)):
                    raise ArgumentError(f"{option_of(name)} needs --unified-finetuning true")
            return
        # FlagEmbedding calls multi-vectors by the name of the model that they come from.
        self.heads = [{"colbert": "multi-vector"}.get(head, head) for head in self.heads]
        if unknown := [head for head in self.heads if head not in OUTPUTS]:
            raise ArgumentError(f"--heads are some of {', '.join(OUTPUTS)}, not {unknown[0]}")
        self.heads = [output for output in OUTPUTS if output in self.heads or not self.heads]
        if self.heads == ["dense"]:
            raise ArgumentError("--heads dense is training without --unified-finetuning: leave both out")
        if self.use_self_distill and len(self.heads) == 1:
            raise ArgumentError(f"--use-self-distill needs several --heads: {self.heads[0]} has nothing to learn from")
        for name, given, count in (("loss", self.loss_weights, 4), ("score", self.score_weights, 3)):
            if given and (len(given) != count or min(given) < 0):
                raise ArgumentError(f"--{name}-weights are {count} numbers of at least 0, not {given}")
        if self.heads_warmup_steps < 0 or self.self_distill_start_step < -1:
            raise ArgumentError("--heads-warmup-steps is at least 0, --self-distill-start-step at least -1")
        if self.fix_encoder and self.heads_warmup_steps:
            raise ArgumentError(
                "--fix-encoder true trains the heads alone in all steps: leave out --heads-warmup-steps"
            )
        if self.colbert_dim != -1 and (self.colbert_dim < 1 or "multi-vector" not in self.heads):
            raise ArgumentError("--colbert-dim is at least 1 (or -1), for --heads with multi-vector")
        for name, wanted in (("--both-ways", self.both_ways), ("--matryoshka", self.matryoshka)):
            if wanted:
                raise ArgumentError(f"{name} is for dense vectors alone: leave it out with --unified-finetuning")


#: Arguments that have a meaning with `--unified-finetuning` alone.
UNIFIED: Final = (
    "heads", "use_self_distill", "self_distill_start_step", "fix_encoder", "heads_warmup_steps", "loss_weights",
    "score_weights", "colbert_dim",
)  # fmt: skip


@dataclass
class RerankerOptions(TrainerOptions):
    """What training of a reranker has beside that."""

    first_stage: str | None = option("embedder whose best passages are reranked when --eval-data is measured")
    pooling: Pooling | None = option(
        "how token vectors of --first-stage become one; by default what it says",
        aliases=["--pooling-method", "--sentence-pooling-method"],
    )
    rerank_top_k: int = option("passages per query that are reranked when --eval-data is measured", 100)
    max_len: int = option(
        "maximum tokens of query and passage together; the query has at most three quarters of them", 512
    )
    grad_cache_chunk: int | None = option(
        "number of pairs scored at once: any batch fits any memory, with the same gradient",
        aliases=["--sub-batch-size"],
    )

    def check(self) -> None:
        """Check what can be known of the arguments as they were given."""
        check_at_least_1(self, "rerank_top_k", "max_len", "grad_cache_chunk")
        if self.eval_data and not self.first_stage:
            raise ArgumentError("--eval-data needs --first-stage MODEL: the embedder whose best passages are reranked")
        if self.first_stage and not self.eval_data:
            raise ArgumentError("--first-stage ranks --eval-data before the reranker: give both or neither")
        if self.pooling and not self.first_stage:
            raise ArgumentError("--pooling is for --first-stage, which is not given: a reranker pools nothing")
        super().check()


_OWN_LOSS: Final = "the loss is one of vectors or scores: no tokens are labelled or counted"
_OWN_EVALUATION: Final = "--eval-data is measured by bgekit, not by Trainer's own loop"
_OWN_BATCHES: Final = "batches follow from the seed and the epoch; --group-by-length puts similar lengths together"
_OWN_LOADER: Final = "each process makes its own part of a batch, in order"
_WHOLE: Final = "the saved model would hold a part of the weights; --deepspeed shares the optimiser's memory"
_NO_HUB: Final = "nothing is uploaded while training; upload the finished folder with `hf upload`"
_HALF: Final = "--bf16 and --fp16 are for training; the model is measured as it would be saved"
_GENERATING: Final = "its kernels are for language models that generate"
_IN_BACKWARD: Final = "it steps within the backward pass"
#: Arguments that have no effect in this kind of training, and why. They are refused where they are not what they are
#: by default.
WITHOUT_EFFECT: Final = {
    "label_smoothing_factor": _OWN_LOSS,
    "label_names": _OWN_LOSS,
    "include_num_input_tokens_seen": "the log has `tokens`",
    "average_tokens_across_devices": "the loss is always that of the global batch",
    "auto_find_batch_size": "another batch size has other negatives; --grad-cache-chunk fits any batch into memory",
    "neftune_noise_alpha": "its noise depends on the length of padded batches, and nothing is padded here",
    "use_liger_kernel": _GENERATING,
    "liger_kernel_config": _GENERATING,
    "use_cache": "it is for models that generate",
    "per_device_eval_batch_size": _OWN_EVALUATION,
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "bf16_full_eval": _HALF,
    "fp16_full_eval": _HALF,
    "do_predict": "`bge encode` and `bge eval` use the finished model",
    "train_sampling_strategy": _OWN_BATCHES,
    "length_column_name": _OWN_BATCHES,
    "dataloader_in_order": _OWN_LOADER,
    "parallelism_config": "only the data is split between devices, not the network",
    "fsdp": _WHOLE,
    "fsdp_config": _WHOLE,
    "enable_jit_checkpoint": "processes could stop at different steps; --save-steps bounds what is lost",
    "push_to_hub": _NO_HUB,
    "hub_token": _NO_HUB,
    "hub_private_repo": _NO_HUB,
    "hub_model_id": _NO_HUB,
    "hub_strategy": _NO_HUB,
    "hub_always_push": _NO_HUB,
    "hub_revision": _NO_HUB,
}


@dataclass(frozen=True)
class Refusal:
    """An argument that is refused, and what the error says of it.

    Attributes:
        argument: Its name.
        reason: Why; "" where it only needs data to judge by, and is refused without.
        value: A part of the values that are refused; None for all but the default.
    """

    argument: str
    reason: str = ""
    value: str | None = None


#: All that is refused of the arguments.
REFUSED: Final = (
    *(Refusal(name, reason) for name, reason in WITHOUT_EFFECT.items()),
    Refusal("optim", _IN_BACKWARD, "lomo"),
    Refusal("optim", _IN_BACKWARD, "layerwise"),
    Refusal("optim", "its weights in training are not those to save", "schedule_free"),
    Refusal("save_strategy", value="best"),
    *map(Refusal, (
        "load_best_model_at_end", "early_stopping_patience", "eval_strategy", "eval_steps", "eval_delay",
        "eval_on_start", "do_eval", "metric_for_best_model", "greater_is_better",
    )),
)  # fmt: skip
#: Parts of --accelerator-config that are used; the others are about loaders that accelerate makes.
_ACCELERATOR: Final = frozenset({"gradient_accumulation_kwargs"})


def check_supported(args: Any) -> None:
    """Check that nothing is asked for that has no effect here.

    Args:
        args: `TrainerArguments` as given, before transformers has filled in values of its own.

    Raises:
        ArgumentError: an argument is set that this kind of training has no use for.
    """
    defaults = {each.name: plain(default_of(each)) for each in fields(args)}
    for refusal in REFUSED:
        if refusal.argument not in defaults or (args.judged and not refusal.reason):
            continue  # Not an argument of this release of transformers, or one that the data give a meaning.
        value = plain(getattr(args, refusal.argument))
        shown = option_of(refusal.argument)
        if refusal.value is not None:
            shown += f" {value}"
        if value != defaults[refusal.argument] if refusal.value is None else refusal.value in str(value):
            why = f"is not supported: {refusal.reason}" if refusal.reason else f"needs {args.judged_by}"
            raise ArgumentError(f"{shown} {why}")
    given = args.accelerator_config
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ArgumentError(f"--accelerator-config is not a JSON object: {error}") from error
    if isinstance(given, dict) and (unused := sorted(given.keys() - _ACCELERATOR)):
        raise ArgumentError(f"--accelerator-config with {unused[0]} is not supported: {_OWN_LOADER}")


def default_of(field: Field[Any]) -> Any:
    """The value of a dataclass's field where none is given."""
    made: Any = field.default_factory
    return made() if field.default is MISSING else field.default


def plain(value: Any) -> Any:
    """A value as users write it: that of an enum; None for what says nothing."""
    value = getattr(value, "value", value)
    if isinstance(value, str) and value.lower() in ("false", "true"):
        value = value.lower() == "true"
    return value if value not in ("", [], {}, "no", False) else None


#: What `--help` shows of training, beside what each command has of its own.
LOOP_SHOWN: Final[Mapping[str, Sequence[str]]] = {
    "training": (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "warmup_ratio",
        "lr_scheduler_type", "bf16", "fp16", "gradient_checkpointing", "dry_run", "seed",
    ),
    "result": (
        "output_dir", "overwrite_output_dir", "save_steps", "save_total_limit", "resume_from_checkpoint",
        "logging_steps", "report_to",
    ),
}  # fmt: skip
FINETUNE: Final = Command(
    'Fine-tune an embedding model on jsonl of {"query", "pos", "neg"}, with in-batch, hard and cross-device negatives. '
    "Options are those of transformers' Trainer, those of FlagEmbedding by their names, and the ones below.",
    "--model MODEL --train-data FILE ... --output DIR",
    (ModelArguments, DataArguments, EmbedderOptions),
    {
        "model and data": (
            "model_name_or_path", "train_data", "train_group_size", "query_max_len", "passage_max_len",
            "query_instruction_for_retrieval", "knowledge_distillation",
        ),
        "loss": (
            "temperature", "use_inbatch_neg", "negatives_cross_device", "false_negative_margin", "matryoshka",
            "grad_cache_chunk", "use_lora",
        ),
        "lexical weights and multi-vectors": (
            "unified_finetuning", "heads", "use_self_distill", "fix_encoder", "heads_warmup_steps",
        ),
        "measuring": ("eval_data", "eval_split", "eval_steps", "load_best_model_at_end", "early_stopping_patience"),
        **LOOP_SHOWN,
    },
)  # fmt: skip
FINETUNE_RERANKER: Final = Command(
    'Train a cross-encoder on jsonl of {"query", "pos", "neg"}: from a reranker, or from a bare encoder, which gets a '
    "new head. Options are those of transformers' Trainer, those of FlagEmbedding by their names, and the ones below.",
    "--model MODEL --train-data FILE ... --output DIR",
    (ModelArguments, RerankerDataArguments, RerankerOptions),
    {
        "model and data": (
            "model_name_or_path", "train_data", "train_group_size", "max_len", "query_instruction_for_retrieval",
            "knowledge_distillation", "grad_cache_chunk",
        ),
        "measuring": (
            "eval_data", "eval_split", "first_stage", "rerank_top_k", "eval_steps", "load_best_model_at_end",
            "early_stopping_patience",
        ),
        **LOOP_SHOWN,
    },
)  # fmt: skip
