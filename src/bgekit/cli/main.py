"""Entry of the command `bge`: find the verb, import it alone, run it, turn errors into one line.

Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Final, NoReturn

from .._version import __version__
from ..display.option_names import did_you_mean, options_of, speak_for, spoken
from ..errors import ArgumentError, BgekitError, CardError, UsageError
from .options import Parser, add_verb, check_model_names, say_what_was_held_back

#: The verbs in the order of the help. A verb's module is imported only when it is asked for.
VERBS: Final = {
    "encode": "encode the texts of files into vectors on disk",
    "search": "search files or encoded vectors by meaning",
    "index": "show an index; add documents to it and remove some",
    "map": "map texts by their vectors: neighbours, near copies, lone texts, a picture",
    "rerank": "rerank passages with a cross-encoder",
    "eval": "measure and compare models on your data or on named benchmarks",
    "calibrate": "find the similarity threshold of a model on your own data",
    "pretrain": "pre-train an encoder on plain texts, before it is fine-tuned",
    "finetune": "train an embedding model on your data",
    "finetune-reranker": "train a reranker on your data",
    "merge": "merge several models into one: averages, weights from examples, LoRA",
    "mine": "find hard negatives for training data",
    "score": "add a cross-encoder's scores to training data",
    "dedup": "remove copies from training data",
    "serve": "serve models and an index over HTTP, to the clients of OpenAI, TEI and others",
    "recipe": "run the stages of a recipe: mine, train, merge, measure",
    "demo": "search the documentation of Python's standard library, to see how it works",
    "models": "list the model families that bgekit knows",
    "info": "show what a model needs, and where that is stated",
    "completion": "print a script that lets a shell complete this command",
}
#: Those whose arguments are those of transformers' Trainer: they are parsed by its own parser, and are one module.
TRAINERS: Final = ("pretrain", "finetune", "finetune-reranker")

#: Seconds that an interrupted run may take to put things in order before it is ended.
_GRACE: Final = 2.0
#: Exit code after Ctrl-C, as shells know it.
INTERRUPTED: Final = 130
_interrupted: Final = threading.Event()
#: What becomes of the work of a verb that is interrupted: the verb's own `INTERRUPTED`.
_aftermath = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the command's name; by default those of the process, whose Ctrl-C is then handled.

    Returns:
        The exit code.
    """
    if argv is not None:
        return _guarded(list(argv))
    _handle_interrupts()
    try:
        return _guarded(sys.argv[1:])
    except BaseException:
        # Not only KeyboardInterrupt: one that strikes within an import often comes out as another error.
        if not _interrupted.is_set():
            raise
    finally:
        # The process ends: to search all objects of torch for cycles takes Python a fifth of a short command's time.
        gc.freeze()
    # Python itself would wait for threads, and in some cases end by the signal instead of with the code.
    _give_up()


def _guarded(arguments: list[str]) -> int:
    # A caller within the process keeps its own logging.
    logger = logging.getLogger("bgekit")
    handlers, level = logger.handlers[:], logger.level
    try:
        try:
            code = _run(arguments)
            sys.stdout.flush()
        finally:
            say_what_was_held_back()
        return code
    except BgekitError as error:
        if _interrupted.is_set():
            raise
        # What is wrong with data may name its fields; anything else names arguments.
        said = spoken(str(error), arguments=isinstance(error, ArgumentError | CardError))
        print(f"bge: error: {readable(said)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        if _interrupted.is_set():
            raise
        print(_last_words(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone. What Python would still flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def readable(message: str) -> str:
    """A message in one line, but for the items of a list, which are indented and have a line each.

    What is indented by four is left as it is: a mark in it points at the line above.
    """
    lines: list[str] = []
    for line in message.strip().splitlines():
        if line.startswith("    "):
            lines.append(line)
            continue
        indented, text = line.startswith("  "), " ".join(line.split())
        if indented:
            lines.append(f"  {text}")
        elif text and lines and not lines[-1].startswith("  "):
            lines[-1] += f" {text}"
        elif text:
            lines.append(text)
    return "\n".join(lines)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="bge",
        description="Text embedding models of the BGE kind: from a checkpoint to vectors and search.",
        epilog="Run `bge VERB --help` for the options of a verb.",
    )
    parser.add_argument("--version", action="version", version=f"bgekit {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    if asked is not None and asked not in VERBS:
        parser.error(f"there is no verb {asked}{did_you_mean(asked, VERBS)}")
    for verb, summary in VERBS.items():
        if verb != asked:
            subparsers.add_parser(verb, help=summary, add_help=False)
            continue
        module = importlib.import_module(f".{'training' if verb in TRAINERS else verb.replace('-', '_')}", __package__)
        global _aftermath
        _aftermath = getattr(module, "INTERRUPTED", "")
        if verb in TRAINERS:
            return int(module.train(verb, arguments[arguments.index(verb) + 1 :]))
        speak_for(partial(options_of, add_verb(subparsers, verb, module, summary)))
    args = parser.parse_args(arguments)
    if args.verb is None:
        parser.print_help()
        return 0
    if asked != "info":  # Which knows of families without any file.
        check_model_names(args)
    code: int = module.run(args)
    return code


def _last_words() -> str:
    return f"bge: interrupted; {_aftermath}" if _aftermath else "bge: interrupted"


def _give_up() -> NoReturn:
    print(_last_words(), file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


def _handle_interrupts() -> None:
    """Ctrl-C ends the program within seconds, even if a thread is deep in a computation; twice ends it at once.

    Handled also where SIGINT came ignored, as for background jobs of scripts: whoever sends it means it.
    """

    def interrupt(number: int, frame: object) -> None:
        if _interrupted.is_set():
            os._exit(INTERRUPTED)
        _interrupted.set()
        last = threading.Timer(_GRACE, _give_up)
        last.daemon = True
        last.start()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
