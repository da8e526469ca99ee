"""Arguments of fine-tuning: those of transformers' Trainer, those of FlagEmbedding by their names, and ours."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Final, Literal, NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ...data.encodings import check_encoding
from ...display.option_names import option_of, options_of, speak_for, take_both_spellings
from ...errors import ArgumentError, BgekitError, require_extra
from ...models.card import Pooling
from ..losses.sts import ScoredLoss

logger = logging.getLogger(__name__)


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


def _check_at_least_1(args: Any, *names: str) -> None:
    """Check some numbers, as far as they are given."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ArgumentError(f"{option_of(name)} must be at least 1, not {value}")


@dataclass
class ModelArguments:
    """The model that is trained.

    Example:
        >>> from bgekit.training import ModelArguments
        >>> ModelArguments("BAAI/bge-small-en-v1.5").use_lora
        False
    """

    model_name_or_path: str = option("checkpoint to start from: folder, hub id, packaged:NAME", "", aliases=["--model"])
    cache_dir: str | None = option("where files from the hub are kept")
    revision: str | None = option("branch, tag or commit on the hub")
    trust_remote_code: bool = option("run Python code that comes with the model", False)
    allow_pickle: bool = option("read weights in .bin files", False)
    use_lora: bool = option("train low-rank adapters (peft) and merge them into the saved model", False)
    lora_rank: int = option("rank of the adapters", 64)
    lora_alpha: float = option("scale of the adapters", 16.0)
    lora_dropout: float = option("dropout of the adapters", 0.1)
    target_modules: list[str] = option("modules that get adapters; by default all linear layers", many=True)

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
    dataset_weights: list[float] = option("how often each of --train-data is drawn, relative to its size", many=True)
    sampling_temperature: float = option("above 1 small datasets are drawn more often than their share", 1.0)
    cache_path: str | None = option("where checked data is kept; by default beside transformers' cache")
    train_group_size: int = option("passages a query: one positive, the others negatives", 8)
    query_max_len: int = option("tokens of a query", 32)
    passage_max_len: int = option("tokens of a passage", 128)
    max_example_num_per_dataset: int = option("rows used of each dataset, drawn at random", 100_000_000)
    query_instruction_for_retrieval: str | None = option(
        'put before queries; by default the model\'s own, "" for none',
        aliases=["--query-instruction-for-rerank", "--query-instruction"],
    )
    query_instruction_format: str = option("instruction and query in two slots {}", "{}{}")
    passage_instruction_for_retrieval: str | None = option(
        "put before passages; by default the model's own",
        aliases=["--passage-instruction-for-rerank", "--passage-instruction"],
    )
    passage_instruction_format: str = option("instruction and passage in two slots {}", "{}{}")
    knowledge_distillation: bool = option("learn from pos_scores and neg_scores, too", False)
    shuffle_ratio: float = option("share of positives whose three parts are put in another order", 0.0)
    same_dataset_within_batch: bool = option("rows of a batch come from one dataset", False)
    small_threshold: int = option("datasets of a folder with fewer rows are put together", 0)
    drop_threshold: int = option("those that still have fewer rows are left out", 0)
    group_by_length: bool = option("rows of a batch have similar lengths", False)
    drop_duplicates: bool = option("leave out rows that are equal to an earlier one", False)
    pad_to_multiple_of: int | None = option("has no effect, since nothing is padded; accepted for old commands")

    def __post_init__(self) -> None:
        _check_at_least_1(self, "train_group_size", "query_max_len", "passage_max_len", "max_example_num_per_dataset")
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

    query_max_len: int | None = option("not for rerankers: see --max-len")  # type: ignore[assignment]
    passage_max_len: int | None = option("not for rerankers: see --max-len")  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("query_max_len", "passage_max_len"):
            if getattr(self, name) is not None:
                raise ArgumentError(
                    f"{option_of(name)} is for embedders: a reranker reads query and passage together, so give the "
                    "tokens of both in all as --max-len"
                )
        super().__post_init__()


#: Values of `--report-to` whose package has the same name.
_TRACKERS: Final = frozenset({"tensorboard", "wandb", "mlflow", "trackio", "swanlab", "clearml"})


@dataclass
class TrainerArguments(TrainingArguments):
    """Arguments of transformers' Trainer, with the names that its earlier releases had."""

    #: The data that a model is measured on while it is trained, as an error says it.
    judged_by: ClassVar[str] = "--eval-data: something in a form of `bge eval` to measure the model by"

    overwrite_output_dir: bool = option("start anew in an output_dir that holds something", False)
    warmup_ratio: float | None = option("share of the steps over which the learning rate rises")
    logging_steps: float = option("log every so many steps", 10)
    logging_first_step: bool = option("log the first step, too", True)
    dry_run: bool = option("show the data as the model will see it, and train nothing", False)
    early_stopping_patience: int | None = option("stop when the best score is this many evaluations old")
    eval_data: list[str] = option("data in any form of `bge eval`, measured while training", many=True)
    eval_split: str | None = option("split of --eval-data")
    encoding: str | None = option("what text files of data are written in, such as gb18030; by default UTF-8")
    quoting: Literal["auto", "csv", "none"] = option("whether quotes in csv and tsv enclose fields", "auto")

    @property
    def judged(self) -> bool:
        """Whether there is data to judge by."""
        return bool(self.eval_data)

    @property
    def global_batch_size(self) -> int:
        """Rows of a batch, of all processes together."""
        return self.per_device_train_batch_size * self.world_size

    @property
    def order_seed(self) -> int:
        """Seed of the order of the rows, and of what is drawn of them."""
        return self.seed if self.data_seed is None else self.data_seed

    def __post_init__(self) -> None:
        check_supported(self)
        check_encoding(self.encoding)
        own: Any = self
        if self.judged:
            self._judge()
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise ArgumentError(f"--warmup-ratio must be from 0 to below 1, not {self.warmup_ratio}")
            # As in transformers: a number of steps counts more than a share.
            own.warmup_steps = own.warmup_steps or self.warmup_ratio
        _check_at_least_1(self, "early_stopping_patience")
        if self.dry_run:
            own.output_dir = own.output_dir or "."  # Nothing is written.
        if not self.output_dir:
            raise ArgumentError("--output-dir is needed: where the trained model is saved")
        # What a batch holds is not a dictionary of columns.
        self.remove_unused_columns = False
        if own.ddp_find_unused_parameters is None:
            # What gets no gradient is frozen; to look for it costs a walk over the graph in each step.
            own.ddp_find_unused_parameters = False
        for name in ("", "_kwargs"):
            # The old name gives a warning from transformers 5.24 on, the new one is unknown before.
            if getattr(own, f"activation_checkpointing{name}", own) is None:
                setattr(own, f"activation_checkpointing{name}", getattr(own, f"gradient_checkpointing{name}"))
        if own.deepspeed:
            require_extra("deepspeed", "deepspeed")
        if not torch.accelerator.is_available():
            # Otherwise transformers takes --bf16 for a wish that only a GPU can grant.
            self.use_cpu = True
        # The best checkpoint is saved when it comes, so transformers need not see to it that others are saved with it.
        best, own.load_best_model_at_end = own.load_best_model_at_end, False
        super().__post_init__()
        own.load_best_model_at_end = best
        self._check_environment()
        if self.n_gpu > 1:
            # Trainer would copy the network to all of them in one process, which packed batches cannot be split for.
            logger.warning("one of %d GPUs is used; torchrun -m bgekit.training... uses all", self.n_gpu)
            self._n_gpu = 1

    def _check_environment(self) -> None:
        """Check what transformers has found out: devices, packages, and what a launcher says of DeepSpeed."""
        own: Any = self
        if own.fp16 and own.device.type == "cpu":
            raise ArgumentError("--fp16 needs a GPU; --bf16 works on a CPU, too")
        known = get_available_reporting_integrations()
        if missing := [name for name in own.report_to if name in INTEGRATION_TO_CALLBACK and name not in known]:
            remedy = f": pip install {missing[0]}" if missing[0] in _TRACKERS else ""
            raise ArgumentError(f"--report-to {missing[0]} needs a package that is not installed{remedy}")
        plugin = own.deepspeed_plugin
        if plugin is None:
            return
        if plugin.zero_stage == 3:
            raise ArgumentError(
                "ZeRO stage 3 is not supported: no process has the whole network, which is measured and saved while it "
                "trains; stage 2 (examples/deepspeed/zero2.json) shares gradients and the optimiser's state"
            )
        if getattr(own, "grad_cache_chunk", None):
            raise ArgumentError("--grad-cache-chunk does not work with --deepspeed: it would step after each chunk")

    def _judge(self) -> None:
        """Use the data to judge by: at the start, after each epoch, and to tell which checkpoint is best."""
        own: Any = self
        own.eval_on_start = True
        if _plain(own.eval_strategy) is None:
            own.eval_strategy = "steps" if own.eval_steps else "epoch"
        if _plain(own.eval_strategy) == "steps":
            own.eval_steps = own.eval_steps or own.logging_steps
        own.metric_for_best_model = own.metric_for_best_model or "eval_score"
        if own.greater_is_better is None:
            own.greater_is_better = not own.metric_for_best_model.endswith("loss")


@dataclass
class EmbedderArguments(TrainerArguments):
    """Training of an embedder. Defaults are those of FlagEmbedding 1.2.9.

    Example:
        >>> from bgekit.training import EmbedderArguments
        >>> EmbedderArguments(output_dir="trained", temperature=0.02, report_to="none").temperature
        0.02
    """

    negatives_cross_device: bool = option("passages of all devices are negatives, not only those of the own one", False)
    use_inbatch_neg: bool = option("passages of other rows are negatives", True)
    temperature: float = option("similarities are divided by it", 0.02)
    sentence_pooling_method: Pooling | None = option(
        "how token vectors become one; by default what the model says", aliases=["--pooling", "--pooling-method"]
    )
    normalize_embeddings: bool | None = option(
        "vectors of length 1; by default what the model says", aliases=["--normlized"]
    )
    fix_position_embedding: bool = option("do not train the position embeddings", False)
    kd_loss_type: Literal["kl_div", "m3_kd_loss"] | None = option("with --knowledge-distillation; by default kl_div")
    both_ways: bool = option("passages have to find their queries, too", False)
    matryoshka: bool = option("train the leading dimensions to be embeddings, too", False, aliases=["--use-mrl"])
    matryoshka_dims: list[int] = option(
        "which; by default 1/2, 1/4, 1/8 of the whole", aliases=["--mrl-dims"], many=True
    )
    scored_loss: ScoredLoss = option("for rows with a `score`", "cosent")
    false_negative_margin: float | None = option(
        "a negative within this distance of the positive's similarity, or above it, does not count"
    )
    false_negative_ratio: float | None = option("the same with this share of the positive's similarity, such as 0.95")
    grad_cache_chunk: int | None = option(
        "texts encoded at once: any batch on any memory, with the same gradient", aliases=["--sub-batch-size"]
    )

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ArgumentError(f"--temperature must be above 0, not {self.temperature}")
        _check_at_least_1(self, "grad_cache_chunk")
        if self.matryoshka_dims and not self.matryoshka:
            self.matryoshka = True
        if min(self.matryoshka_dims, default=1) < 1:
            raise ArgumentError(f"--matryoshka-dims must be at least 1, not {min(self.matryoshka_dims)}")
        if not self.use_inbatch_neg and self.both_ways:
            raise ArgumentError("--both-ways needs in-batch negatives: leave out --use-inbatch-neg false")
        if not self.use_inbatch_neg and self.negatives_cross_device:
            logger.warning("--negatives-cross-device has no effect with --use-inbatch-neg false")
        super().__post_init__()


@dataclass
class RerankerArguments(TrainerArguments):
    """Training of a reranker.

    Example:
        >>> from bgekit.training import RerankerArguments
        >>> RerankerArguments(output_dir="trained", learning_rate=6e-5, report_to="none").learning_rate
        6e-05
    """

    first_stage: str | None = option("with --eval-data: the embedder whose best passages are put in order")
    pooling: Pooling | None = option(
        "with --first-stage: how its token vectors become one; by default what it says",
        aliases=["--pooling-method", "--sentence-pooling-method"],
    )
    rerank_top_k: int = option("with --eval-data: passages a query that are put in order", 100)
    max_len: int = option("tokens of query and passage together; the query has three quarters at most", 512)
    grad_cache_chunk: int | None = option("pairs scored at once, with the same gradient", aliases=["--sub-batch-size"])

    def __post_init__(self) -> None:
        _check_at_least_1(self, "rerank_top_k", "max_len", "grad_cache_chunk")
        if self.eval_data and not self.first_stage:
            raise ArgumentError(
                "--eval-data needs --first-stage MODEL: the embedder whose best passages are put in order"
            )
        if self.first_stage and not self.eval_data:
            raise ArgumentError("--first-stage is what --eval-data is ranked with first: give both or neither")
        if self.pooling and not self.first_stage:
            raise ArgumentError("--pooling is that of --first-stage, which is not given: a reranker pools nothing")
        super().__post_init__()


class _Parser(HfArgumentParser):
    """A parser whose errors are one line, without the usage of some hundred arguments."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message)


class _Repeatable(argparse._StoreAction):
    """An option that can be given several times: `--x a b` and `--x a --x b` are the same."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.nargs == "+":
            if getattr(self, "given", False):
                values = [*getattr(namespace, self.dest), *values]
            self.given = True
        super().__call__(parser, namespace, values, option_string)


def argument_parser(kinds: Sequence[type[Any]], **options: Any) -> HfArgumentParser:
    """The parser of dataclasses' fields: options are shown with hyphens, and understood with underscores, too."""
    parser = _Parser(list(kinds), allow_abbrev=False, **options)
    for action in parser._actions:
        if isinstance(action, argparse._StoreAction):
            action.__class__ = _Repeatable
        action.option_strings = list(dict.fromkeys(name.replace("_", "-") for name in action.option_strings))
    take_both_spellings(parser)
    return parser


def parse(kinds: Sequence[type[Any]], arguments: Sequence[str], *, prog: str, description: str) -> tuple[Any, ...]:
    """Arguments of a command line as instances of dataclasses.

    Raises:
        ArgumentError: a value is impossible.
    """
    parser = argument_parser(kinds, prog=prog, description=description)
    known = parser._option_string_actions
    speak_for(partial(_spoken_options, parser))
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            near = difflib.get_close_matches(option_of(name[2:]), [each for each in known if "_" not in each], 1)
            raise ArgumentError(f"there is no argument {name}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        return tuple(parser.parse_args_into_dataclasses(args=list(arguments), look_for_args_file=False))
    except ValueError as error:  # What transformers finds wrong.
        if isinstance(error, BgekitError):
            raise
        raise ArgumentError(" ".join(str(error).split())) from error


def _spoken_options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The options as `speak_for` takes them. What the library calls the length of a text is not one option here."""
    found = options_of(parser)
    lengths = [found[name] for name in ("max_len", "max_seq_length") if name in found]
    pooling = dict.fromkeys(("pooling", "pooling_method"), "--pooling") if "pooling" in found else {}
    return found | pooling | {"max_length": (lengths or ["--query-max-len or --passage-max-len"])[0]}


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
    "average_tokens_across_devices": "the loss is that of the global batch in any case",
    "auto_find_batch_size": "another batch size has other negatives; --grad-cache-chunk fits any batch into memory",
    "neftune_noise_alpha": "its noise goes by the length of padded batches, and nothing is padded here",
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
    "parallelism_config": "data are parallel, the network is not",
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
    defaults = {each.name: _plain(default_of(each)) for each in fields(args)}
    for refusal in REFUSED:
        if refusal.argument not in defaults or (args.judged and not refusal.reason):
            continue  # Not an argument of this release of transformers, or one that the data give a meaning.
        value = _plain(getattr(args, refusal.argument))
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
            raise ArgumentError(f"--accelerator-config is no JSON object: {error}") from error
    if isinstance(given, dict) and (unused := sorted(given.keys() - _ACCELERATOR)):
        raise ArgumentError(f"--accelerator-config with {unused[0]} is not supported: {_OWN_LOADER}")


def default_of(field: Field[Any]) -> Any:
    """The value of a dataclass's field where none is given."""
    made: Any = field.default_factory
    return made() if field.default is MISSING else field.default


def _plain(value: Any) -> Any:
    """A value as users write it: that of an enum; None for what says nothing."""
    value = getattr(value, "value", value)
    if isinstance(value, str) and value.lower() in ("false", "true"):
        value = value.lower() == "true"
    return value if value not in ("", [], {}, "no", False) else None
