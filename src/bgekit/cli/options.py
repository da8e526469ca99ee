"""Options that verbs share: model, device, input files, chunks, reranker, messages."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..display.option_names import add_option as add_option
from ..display.option_names import did_you_mean, listed_option, spoken, take_both_spellings, with_nearest
from ..display.terminal import loading, write_line
from ..errors import ArgumentError, CheckpointError, UsageError, require_extra

if TYPE_CHECKING:
    from ..data.records import RecordReader
    from ..distributed.cluster import RayCluster
    from ..inference.model import Embedder
    from ..inference.reranker import FlagReranker
    from ..inference.shards import Chunks


class Parser(argparse.ArgumentParser):
    """An argument parser that takes `--shard_size` for `--shard-size` and the reverse.

    Options are written out in full: an abbreviation would change its meaning when an option is added.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """As in argparse, by either spelling of an option; one that is unknown is what the error is about."""
        take_both_spellings(self)
        known = self._option_string_actions
        verbs = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        for argument in () if verbs else args or ():
            name = argument.partition("=")[0]
            if argument == "--":
                break
            if re.fullmatch(r"--[A-Za-z][\w-]*", name) and name not in known:
                self.error(f"there is no option {name}{did_you_mean(name, known)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """The message and where the options are shown, without all of them."""
        self.exit(2, f"usage: {self.prog} --help shows the options\n{self.prog}: error: {with_nearest(message)}\n")


def add_verb(subparsers: Any, verb: str, module: ModuleType, summary: str = "") -> Parser:
    """Add the parser of a verb: its help page is the docstring of the verb's module, after the first line.

    Args:
        subparsers: What `add_subparsers` returned.
        verb: The verb.
        module: Has `add_options`; what stands in its docstring under "Examples:" follows the options.
        summary: The verb in the list of all.
    """
    description, found, examples = (module.__doc__ or "").partition("\n\n")[2].rstrip().partition("\n\nExample")
    # Without examples, whose lines must stay, the page is as wide as the terminal.
    layout = argparse.RawDescriptionHelpFormatter if found else argparse.HelpFormatter
    epilog = f"example{examples}" if found else None
    parser: Parser = subparsers.add_parser(
        verb, help=summary, description=description, epilog=epilog, formatter_class=layout
    )
    module.add_options(parser)
    return parser


#: Modes of search, as `search.modes` has them, which takes numpy; hybrid, which is made of the others, is last.
MODES: Final = ("dense", "lexical", "bm25", "multi-vector", "hybrid")
#: Options of which files of texts and documents are read, and what of them is a record.
DOCUMENT_OPTIONS: Final = ("format", "include", "exclude", "records", "delimiter")


def add_list_option(group: argparse._ActionsContainer, *names: str, **options: Any) -> None:
    """An option that takes several values, after one another or by being repeated: `--x a b` is `--x a --x b`."""
    add_option(group, *names, nargs="+", action="extend", **options)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return value


def not_negative(text: str) -> int:
    """A whole number from 0 on."""
    return 0 if text.strip() == "0" else positive(text)


def add_model_options(parser: argparse.ArgumentParser, *, default: str | None = None, several: str = "") -> None:
    """Options of the model and how it computes; `load_model` makes a model of them.

    Args:
        parser: The verb's parser.
        default: The model used without `--model`; None makes the option required.
        several: Take several models, all with the same options; `args.model` is then a list, or None. What becomes of
            them, for the help.
    """
    group = parser.add_argument_group("model")
    what = "folder, Hugging Face id, packaged:NAME, or a hosted model"
    old = ("--model-name-or-path", "--embedder-name-or-path")
    if several:
        add_list_option(group, "-m", "--model", old=old, metavar="MODEL", help=f"{what}; {several}")
    else:
        add_option(
            group, "-m", "--model", old=old, required=default is None, default=default, metavar="MODEL",
            help=what + (f" [{default}]" if default else ""),
        )  # fmt: skip
    _add_compute_options(group)
    group.add_argument("--max-length", type=positive, metavar="TOKENS", help="cut texts here [the model's limit]")
    add_option(
        group, "--query-max-length", old=["--embedder-query-max-length"], type=positive, metavar="TOKENS",
        help="cut queries here [--max-length]",
    )  # fmt: skip
    add_option(
        group, "--passage-max-length", old=["--embedder-passage-max-length"], type=positive, metavar="TOKENS",
        help="cut documents here [--max-length]",
    )  # fmt: skip
    group.add_argument(
        "--batch-size", type=positive, metavar="N", help="maximum number of texts per batch [from the device]"
    )
    group.add_argument("--truncate-dim", type=positive, metavar="N", help="keep the first N dimensions (Matryoshka)")
    add_pooling_option(group)
    group.add_argument(
        "--no-normalize", action="store_true", help="do not scale vectors to unit length [the model's card]"
    )
    add_option(
        group, "--query-instruction", old=["--query-instruction-for-retrieval"], metavar="TEXT",
        help='text before queries, "" for none [the model\'s card]',
    )  # fmt: skip
    add_option(
        group, "--query-instruction-format", old=["--query-instruction-format-for-retrieval"], metavar="FORMAT",
        help="format with one slot {} for the instruction and one for the query [{}{}]",
    )  # fmt: skip
    add_option(
        group, "--passage-instruction", old=["--passage-instruction-for-retrieval"], metavar="TEXT",
        help='text before documents, "" for none [the model\'s card]',
    )  # fmt: skip
    add_checkpoint_options(group)


def add_pooling_option(group: argparse._ActionsContainer, *, of: str = "") -> None:
    """The option that says how a model pools, by one name in every verb and by those of FlagEmbedding.

    Args:
        group: The verb's parser, or a part of it.
        of: Whose pooling, as the help says it; the verb's model by default.
    """
    from ..models.card import POOLINGS  # Not at the top: `bge --help` has no use for it.

    add_option(
        group, "--pooling", old=["--pooling-method", "--sentence-pooling-method"], choices=POOLINGS,
        help=f"how token vectors become one{of} [what the model says]",
    )  # fmt: skip


def _add_compute_options(group: argparse._ActionsContainer) -> None:
    """Options of where and in which number format a model computes."""
    add_list_option(
        group, "--devices", old=["--device"], metavar="DEVICE",
        help="devices, such as cpu, cuda:0, mps; several share the work [all visible GPUs, else the CPU]",
    )  # fmt: skip
    group.add_argument("--fp32", action="store_true", help="compute in float32 [the device's fastest 16-bit format]")
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16", "int8"), help="compute in exactly this format"
    )


def add_checkpoint_options(group: argparse._ActionsContainer) -> None:
    """Options that say where a model's files come from, and how far they are trusted."""
    add_hub_options(group)
    group.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    group.add_argument("--allow-pickle", action="store_true", help="read weights in .bin files")


def add_hub_options(group: argparse._ActionsContainer) -> None:
    """Options of fetching files from the hub."""
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    group.add_argument("--cache-dir", metavar="DIR", help="where files from the hub are kept")


def check_model_names(args: Any) -> None:
    """Check, before torch is imported, the models of a verb whose names are nearly those of known ones.

    Raises:
        UsageError: there is no such model, and a known one was meant.
    """
    from ..models.families import nearest_id

    for option in ("model", "models", "model_name_or_path", "reranker", "first_stage"):
        given = getattr(args, option, None) or ()
        for name in (given,) if isinstance(given, str) else given:
            if os.path.exists(os.path.expanduser(name)) or name.startswith("packaged:"):
                continue
            near = nearest_id(name)
            if near is None:
                continue
            if near.endswith(f"/{name}"):
                # Names without an owner are those of a few models of the hub's first days, and none of the table.
                raise UsageError(
                    f"{name} is not a folder here, and a name on the hub has an owner; did you mean {near}?"
                )
            from ..models.hub import resolve

            same: dict[str, Any] = {each: getattr(args, each, None) for each in ("revision", "cache_dir")}
            try:  # A model of that name may be there all the same.
                resolve(name, card_only=True, **same)
            except CheckpointError as error:
                raise UsageError(str(error)) from error


def load_model(args: argparse.Namespace) -> Embedder:
    """The model that the options of `add_model_options` describe."""
    with loading(args.model, show=not args.no_progress):
        from ..inference import load_model as load

        return load(args.model, **model_arguments(args))


def model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `FlagModel` that the options of `add_model_options` stand for, as far as they were given."""
    return given(
        args,
        "devices", "batch_size", "max_length", "query_max_length", "passage_max_length", "truncate_dim", "dtype",
        "query_instruction_format", "revision", "cache_dir",
        pooling_method=args.pooling,
        query_instruction_for_retrieval=args.query_instruction,
        passage_instruction_for_retrieval=args.passage_instruction,
        # What is off goes unsaid: a hosted model has no weights that it could be about.
        use_fp16=False if args.fp32 else None,
        normalize_embeddings=False if args.no_normalize else None,
        trust_remote_code=args.trust_remote_code or None,
        allow_pickle=args.allow_pickle or None,
    )  # fmt: skip


def given(args: argparse.Namespace, *same: str, **others: Any) -> dict[str, Any]:
    """Arguments of the library for options that were given; without the rest, the library's defaults count.

    Args:
        args: What was parsed.
        same: Options that the library calls the same.
        others: Values by the library's names; None for what was not given.
    """
    values = {name: getattr(args, name) for name in same} | others
    return {name: value for name, value in values.items() if value is not None}


def add_reranker_options(parser: argparse.ArgumentParser) -> None:
    """Options of a reranker and how it computes; `load_reranker` makes one of them."""
    group = parser.add_argument_group("model")
    add_option(
        group, "-m", "--model", old=["--model-name-or-path", "--reranker", "--reranker-name-or-path"], required=True,
        metavar="MODEL", help="a cross-encoder: folder, Hugging Face id, or packaged:NAME",
    )  # fmt: skip
    _add_compute_options(group)
    add_pair_length_options(group, "--max-length", "--query-max-length")
    add_option(
        group, "--batch-size", old=["--reranker-batch-size"], type=positive, metavar="N",
        help="maximum number of pairs per batch [from the device]",
    )  # fmt: skip
    group.add_argument(
        "--windows", action="store_true",
        help="score long passages in overlapping windows; the best one counts [cut them]",
    )  # fmt: skip
    add_option(
        group, "--query-instruction", old=["--query-instruction-for-rerank"], metavar="TEXT",
        help='text before queries, "" for none [what the model says]',
    )  # fmt: skip
    add_option(
        group, "--passage-instruction", old=["--passage-instruction-for-rerank"], metavar="TEXT",
        help='text before passages, "" for none [what the model says]',
    )  # fmt: skip
    add_checkpoint_options(group)


def add_pair_length_options(group: argparse._ActionsContainer, *own: str) -> None:
    """Options of how long a reranker's pairs and queries are; `load_reranker` obeys them.

    Args:
        group: The verb's parser, or a part of it.
        own: Names of the two where no embedder has them.
    """
    usual = ("--reranker-max-length", "--reranker-query-max-length")
    sentences = (
        "maximum length of query and passage together [512, or the reranker's limit]",
        "maximum length of a query [3/4 of that]",
    )
    for name, old, sentence in zip(own or usual, usual, sentences, strict=True):
        add_option(group, name, old=[old] if own else [], type=positive, metavar="TOKENS", help=sentence)


def load_reranker(args: argparse.Namespace, name: str) -> FlagReranker:
    """The reranker `name`, with the options of `add_reranker_options`; behind an embedder with those they share."""
    with loading(name, show=not args.no_progress):
        from .. import FlagReranker

        return FlagReranker(name, **reranker_arguments(args))


def reranker_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `FlagReranker` that these options stand for, as far as they were given."""
    same = ["dtype", "devices", "cache_dir", "trust_remote_code", "allow_pickle"]
    others: dict[str, Any] = {}
    if hasattr(args, "reranker_max_length"):
        others = {"max_length": args.reranker_max_length, "query_max_length": args.reranker_query_max_length}
    if hasattr(args, "windows"):  # The embedder's own are not the reranker's.
        same += ["revision", "max_length", "query_max_length", "batch_size"]
        others = {
            "long_passages": "windows" if args.windows else None,
            "query_instruction_for_rerank": args.query_instruction,
            "passage_instruction_for_rerank": args.passage_instruction,
        }
    return given(args, *same, use_fp16=not args.fp32, **others)


def add_document_options(group: argparse._ActionsContainer) -> None:
    """Options of which texts and documents are read, and what of them is a record; see `document_arguments`."""
    from ..data.documents import UNITS
    from ..data.formats import FORMATS
    from ..data.markup import DOCUMENTS

    group.add_argument(
        "--format", choices=(*FORMATS, *DOCUMENTS),
        help="format of all files [seen from each file's name, or its first bytes]",
    )  # fmt: skip
    add_list_option(
        group, "--include", metavar="PATTERN", help="files to read in folders, also with other endings, such as '*.rst'"
    )
    add_list_option(
        group, "--exclude", metavar="PATTERN", help="files and folders to skip in folders, such as 'drafts/'"
    )
    group.add_argument(
        "--records", choices=UNITS,
        help="what one record is [a line of txt, with --chunk the file; of other documents the file]",
    )  # fmt: skip
    group.add_argument("--delimiter", metavar="C", help="separator of csv columns, such as ';' or tab [the header's]")


def document_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `read_records` from the options of `add_document_options`."""
    return {name: getattr(args, name) for name in DOCUMENT_OPTIONS}


def add_input_options(parser: argparse.ArgumentParser, *, title: str = "input", ids: bool = True) -> None:
    """Options of which records files have; `open_records` obeys them.

    Args:
        parser: The verb's parser.
        title: Title of the options in the help.
        ids: Whether ids matter.
    """
    group = parser.add_argument_group(title)
    add_document_options(group)
    add_text_options(group)
    group.add_argument("--text-field", metavar="NAME", help="field or column of the text [text, content, contents]")
    group.add_argument("--title-field", metavar="NAME", help='field put before the text, "" for none [title]')
    if ids:
        group.add_argument(
            "--id-field", metavar="NAME", help="field of the id [_id, id; without one, the number of the row from 0]"
        )
    group.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise",
        help="stop at a line that cannot be used, or skip and list it [raise]",
    )  # fmt: skip


def add_keep_option(group: argparse._ActionsContainer) -> None:
    """The option of columns that are kept as metadata; `open_records` obeys it."""
    group.add_argument(
        "--keep", nargs="*", action="extend", metavar="COLUMN",
        help="columns to keep for results and conditions; '*' for all but text, title and id [none]",
    )  # fmt: skip


def add_text_options(group: argparse._ActionsContainer) -> None:
    """Options of how text files are written; `text_arguments` are arguments of whatever reads them."""
    from ..data.formats import QUOTINGS

    group.add_argument(
        "--encoding", metavar="NAME", help="encoding of text files, such as gb18030, big5, utf-16 [utf-8]"
    )
    group.add_argument(
        "--quoting", choices=QUOTINGS, default="auto",
        help="whether quotes in csv and tsv enclose fields [auto: in csv they do, in tsv the content tells]",
    )  # fmt: skip


def text_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Dialect` from the options of `add_text_options`."""
    return {"encoding": args.encoding, "quoting": args.quoting}


def open_records(
    args: argparse.Namespace, files: Sequence[str], *, joining: Sequence[str] | None = None
) -> RecordReader:
    """The records of some files, read as the options of `add_input_options` say; there is at least one.

    Args:
        args: What was parsed.
        files: The files.
        joining: Columns of the index that the records join: these are kept, too, where files have them, and records
            without an id are numbered within their file, behind its name. None if they join none.
    """
    from ..data.records import read_records

    # To cut lines into passages helps nobody. Not every verb cuts.
    cut = hasattr(args, "chunk") and chosen_chunks(args) is not None
    # Calibration has no use for ids.
    fields = {name: getattr(args, name, None) for name in ("text_field", "title_field", "id_field", "keep")}
    reading = document_arguments(args) | text_arguments(args) | fields | {"on_error": args.on_error}
    records = read_records(files, **reading | {"records": args.records or ("file" if cut else None)})
    if joining is not None:
        records.name_rows()
        records.keep(records.kept, where_there=joining)
    records.require()
    return records


def add_chunk_options(parser: argparse.ArgumentParser) -> None:
    """Options of splitting long documents; `chosen_chunks` reads them."""
    group = parser.add_argument_group("long documents")
    group.add_argument(
        "--chunk", action=argparse.BooleanOptionalAction, help="split into overlapping passages instead of cutting"
    )
    group.add_argument(
        "--chunk-size", type=positive, metavar="TOKENS", help="maximum length of a passage [the model's limit]"
    )
    group.add_argument(
        "--chunk-overlap", type=not_negative, metavar="TOKENS",
        help="tokens shared by neighbouring passages [1/8 of --chunk-size]",
    )  # fmt: skip


def add_ray_options(parser: argparse.ArgumentParser, *, mixed: bool = True) -> None:
    """Options of computing on many machines; `ray_cluster` obeys them.

    Args:
        parser: The verb's parser.
        mixed: Whether one of them lets nodes of different kinds be mixed; otherwise the verb has its own.
    """
    group = parser.add_argument_group("many machines")
    group.add_argument(
        "--ray", metavar="ADDRESS",
        help="compute on a cluster of Ray: its address, auto, or local, which starts one here; all nodes must see "
        "inputs, output and model folders under the same paths",
    )  # fmt: skip
    group.add_argument(
        "--ray-actors", type=positive, metavar="N", help="processes that compute [one per GPU, else one per node]"
    )
    group.add_argument(
        "--ray-resources", metavar="JSON",
        help='what each of them gets, such as \'{"CPU": 8}\' [a GPU, else all cores of its node]',
    )  # fmt: skip
    if mixed:
        group.add_argument(
            "--allow-mixed", dest="mixed_nodes", action="store_true", default=None,
            help="let nodes with other kinds of CPU or torch compute, too, and say so [refuse them]",
        )  # fmt: skip


def ray_cluster(args: argparse.Namespace) -> RayCluster | None:
    """The cluster that the options of `add_ray_options` name, to be entered; None for this machine alone.

    Raises:
        ArgumentError: an option is of no use.
        MissingExtraError: the package `ray` is not installed.
    """
    if args.ray is None:
        for name in ("ray_actors", "ray_resources", "mixed_nodes"):
            if getattr(args, name, None) is not None:
                raise ArgumentError(f"{listed_option(name)} goes with --ray")
        return None
    if args.devices:
        raise ArgumentError("--devices is of one machine: with --ray each process has what --ray-resources says")
    require_extra("ray", "ray")
    from ..distributed.cluster import RayCluster, parsed_resources

    resources = None if args.ray_resources is None else parsed_resources(args.ray_resources)
    return RayCluster(args.ray, actors=args.ray_actors, resources=resources)


def chosen_chunks(args: argparse.Namespace) -> Chunks | None:
    """Settings for splitting documents, None for no splitting; naming a size or an overlap asks for it, too."""
    if not args.chunk and args.chunk_size is None and args.chunk_overlap is None:
        return None
    from ..inference.shards import Chunks

    return Chunks(args.chunk_size, args.chunk_overlap)


def require_training() -> None:
    """Name the extra `train` if a package of it is missing, before transformers' Trainer fails without it."""
    require_extra("train", "accelerate", "matplotlib")


def require_evaluation() -> None:
    """Name the extra `eval` if a package of it is missing, before stages run whose results it would measure."""
    require_extra("eval", "pytrec_eval", "scipy", "sklearn", "matplotlib")


def near_threshold(args: argparse.Namespace) -> float | None:
    """Jaccard similarity of near copies by `--near-duplicates` and `--near-threshold`; None if they do not count."""
    if args.near_duplicates:
        return 0.8 if args.near_threshold is None else float(args.near_threshold)
    if args.near_threshold is not None:
        raise ArgumentError("--near-threshold goes with --near-duplicates")
    return None


def add_training_files(parser: argparse.ArgumentParser, made: str) -> None:
    """Options of the file of training data that a verb reads, and of the one that it makes.

    Args:
        parser: The verb's parser.
        made: What is made, for the help.
    """
    add_option(parser, "--input", old=["--input-file"], required=True, metavar="FILE", help="training data")
    add_option(parser, "-o", "--output", old=["--output-file"], required=True, metavar="FILE", help=made)
    add_overwrite_option(parser)


def add_overwrite_option(group: argparse._ActionsContainer, what: str = "output") -> None:
    """The option that lets a verb replace what is there; without it every verb refuses to."""
    group.add_argument("--overwrite", action="store_true", help=f"replace an existing {what}")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is said while a verb runs; `set_up_logging` obeys them."""
    group = parser.add_argument_group("messages")
    group.add_argument("--no-progress", action="store_true", help="no progress bar")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors and results")
    group.add_argument("--verbose", action="store_true", help="print more details")


def set_up_logging(args: argparse.Namespace) -> None:
    """Send log lines of bgekit to stderr, as quietly or verbosely as asked for; who is quiet shows no bar, either."""
    if args.quiet:
        args.no_progress = True
    log_to_stderr(logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING)


def log_to_stderr(level: int) -> None:
    """Send log lines of bgekit from a level on to stderr."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("bge: %(levelname)s: %(message)s"))
    for known in (logging.WARNING, logging.INFO):
        logging.addLevelName(known, logging.getLevelName(known).lower())
    root = logging.getLogger("bgekit")
    root.handlers[:] = [handler]
    root.setLevel(level)


class _StderrHandler(logging.Handler):
    """Writes to stderr without breaking a progress bar that stands there; what was warned of once is not repeated."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()
        #: Lines for the end.
        self.held: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = spoken(self.format(record))
        if record.levelno < logging.WARNING:
            write_line(line)
        elif line not in self._said:
            self._said.add(line)
            if getattr(record, "at_end", False):
                self.held.append(line)
            else:
                write_line(line)


def say_what_was_held_back() -> None:
    """Write what was kept for the end of a verb: texts that were cut or mended."""
    for handler in logging.getLogger("bgekit").handlers:
        if isinstance(handler, _StderrHandler):
            while handler.held:
                write_line(handler.held.pop(0))


def count_changes_itself() -> None:
    """Leave that to the verb, whose last sentence counts the texts of earlier runs, too."""
    for handler in logging.getLogger("bgekit").handlers:
        handler.addFilter(lambda record: not getattr(record, "at_end", False))
