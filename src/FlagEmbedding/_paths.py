"""The module paths of FlagEmbedding 1.2 to 1.4: what is here forwards, the rest says what to do.

One finder serves `from FlagEmbedding.flag_models import FlagModel`, `python -m FlagEmbedding.reranker.run ...` and
torchrun; there are no files of these names.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

PACKAGE: Final = "FlagEmbedding"

#: Modules that are run -> the verb of the command line that does their work, with their arguments.
_RUNS: Final = {
    "BGE_M3.run": "finetune",
    "baai_general_embedding.finetune.run": "finetune",
    "baai_general_embedding.finetune.hn_mine": "mine",
    "baai_general_embedding.retromae_pretrain.run": "pretrain",
    "retromae_pretrain.run": "pretrain",
    "reranker.run": "finetune-reranker",
    "finetune.embedder.encoder_only.base.__main__": "finetune",
    "finetune.embedder.encoder_only.m3.__main__": "finetune",
    "finetune.embedder.decoder_only.base.__main__": "finetune",
    "finetune.reranker.encoder_only.base.__main__": "finetune-reranker",
}
#: Modules that are imported for their names, which `FlagEmbedding` itself has or speaks of.
_IMPORTS: Final = (
    "bge_m3",
    "flag_models",
    "flag_reranker",
    "inference.auto_embedder",
    "inference.auto_reranker",
    "inference.embedder.encoder_only.base",
    "inference.embedder.encoder_only.m3",
    "inference.embedder.decoder_only",
    "inference.reranker.encoder_only.base",
)
#: Names of classes within them -> the class that it is here.
_CLASSES: Final = {"BaseEmbedder": "FlagModel", "M3Embedder": "BGEM3FlagModel", "BaseReranker": "FlagReranker"}

_M3: Final = (
    "`bge finetune` trains the dense vectors of BGE-M3, and with --unified_finetuning true its sparse and multi-vector "
    "outputs, too (as `python -m FlagEmbedding.BGE_M3.run` does here); BGEM3FlagModel(name) computes all three"
)
_LANGUAGE_MODEL: Final = (
    "rerankers on language models are not in bgekit; FlagReranker(name) takes every cross-encoder with a "
    "classification head, and `bge finetune-reranker` trains one"
)
_TRAINING: Final = "embedders are trained by `bge finetune`, or `python -m bgekit.training.embedder`"
_RERANKERS: Final = "rerankers are trained by `bge finetune-reranker`, or `python -m bgekit.training.reranker`"
_OWN_DATA: Final = "`bge eval --data FOLDER --model MODEL` measures on files in the layout of FlagEmbedding"
#: Beginnings of paths that are not here -> what to do; the longest that fits counts.
_ELSEWHERE: Final = {
    "BGE_M3": _M3,
    "BGE_M3.split_data_by_length": "`bge finetune --group_by_length true` makes batches of similar lengths of any file",
    "baai_general_embedding": f"{_TRAINING}; `bge mine` and `bge pretrain` do the rest",
    "baai_general_embedding.finetune.eval_msmarco": _OWN_DATA,
    "baai_general_embedding.retromae_pretrain": "`bge pretrain`, or `python -m bgekit.pretraining.run`, does it",
    "retromae_pretrain": "`bge pretrain`, or `python -m bgekit.pretraining.run`, does it",
    "reranker": _RERANKERS,
    "llm_reranker": _LANGUAGE_MODEL,
    "llm_embedder": "use FlagModel(name) with the instruction of your task as query_instruction_for_retrieval",
    "visual": "models that see images are not in bgekit",
    "utils": "that was made for the original's own code",
    "abc": "the base class of embedders is bgekit.Embedder; rerankers have none",
    "abc.finetune.embedder": _TRAINING,
    "abc.finetune.reranker": _RERANKERS,
    "abc.evaluation": _OWN_DATA,
    "evaluation": "`bge eval --benchmark NAME --model MODEL` knows mteb-en, c-mteb, beir, msmarco and miracl; "
    + _OWN_DATA,
    "evaluation.mteb": "`bge eval --benchmark mteb-en --model MODEL` (or c-mteb) does it",
    "evaluation.beir": "`bge eval --benchmark beir --model MODEL` does it",
    "evaluation.msmarco": "`bge eval --benchmark msmarco --model MODEL` does it",
    "evaluation.miracl": "`bge eval --benchmark miracl --model MODEL` does it",
    "evaluation.custom": _OWN_DATA,
    "finetune": f"{_TRAINING}; {_RERANKERS}",
    "finetune.embedder": _TRAINING,
    "finetune.embedder.encoder_only.m3": _M3,
    "finetune.embedder.decoder_only.icl": f"{_TRAINING}, without in-context examples",
    "finetune.reranker": _RERANKERS,
    "finetune.reranker.decoder_only": _LANGUAGE_MODEL,
    "inference": "FlagModel(name) and FlagReranker(name) find out what a model is",
    "inference.embedder.decoder_only.icl": "use FlagModel(name) for its vectors without in-context examples",
    "inference.embedder.decoder_only.pseudo_moe": "models with experts by domain are not in bgekit",
    "inference.reranker.decoder_only": _LANGUAGE_MODEL,
}


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


_LEAVES: Final = frozenset((*_RUNS, *_IMPORTS))
_PACKAGES: Final = frozenset(
    [parent for path in _LEAVES for parent in _parents(path)] + ["inference.embedder.decoder_only"]
)


def advice(path: str) -> str | None:
    """What to do instead of importing a path below `FlagEmbedding`; None where the original has no such path."""
    return next((_ELSEWHERE[known] for known in [path, *_parents(path)[::-1]] if known in _ELSEWHERE), None)


def _asked(below: str) -> str:
    """The path that `python -m` is to run, of which `below` is a part."""
    given = (each.removeprefix(f"{PACKAGE}.") for each in sys.orig_argv if each.startswith(f"{PACKAGE}."))
    return next((each for each in given if each == below or each.startswith(f"{below}.")), below)


def run(path: str) -> int:
    """Do the work of a module that was started by its path, with the arguments of the process.

    Returns:
        The exit code.
    """
    from bgekit.recipes.spec import VERBS

    verb = _RUNS[path]
    if not VERBS[verb].module:
        from bgekit.cli.main import main

        sys.argv.insert(1, verb)
        return main()
    from bgekit.training.loop.training_run import launched

    return launched(_trainer(verb))


def _trainer(verb: str) -> Callable[[], int]:
    def start() -> int:
        from bgekit.cli.options import require_training
        from bgekit.recipes.spec import VERBS

        require_training()
        return int(importlib.import_module(VERBS[verb].module).main())

    return start


def attribute(path: str, name: str) -> Any:
    """An attribute of a module that forwards.

    Raises:
        NotOfferedError: the original may have had it; the message says what to do.
        AttributeError: it is none that a program could mean.
    """
    if name.startswith("__"):
        raise AttributeError(f"module '{PACKAGE}.{path}' has no attribute {name!r}")
    package = importlib.import_module(PACKAGE)
    if name == "main" and path in _RUNS:
        return lambda: run(path)
    if path in _IMPORTS or path in _PACKAGES:
        name = _CLASSES.get(name, name)
        if name in package.__all__ or name in package.MISSING:
            return getattr(package, name)
    raise package.not_offered(f"{path}.{name}", advice(path) or "")


class Finder(MetaPathFinder, InspectLoader):
    """Finds the original's modules: some as modules that forward, the others as errors that say what to do."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        package, _, below = fullname.partition(".")
        if package != PACKAGE:
            return None
        if below in _PACKAGES or below in _LEAVES:
            return ModuleSpec(fullname, self, origin="bgekit", is_package=self.is_package(fullname))
        # Python is looking for what to run, parents first; that may be somebody's package which only imports this one.
        running = sys.argv[:1] == ["-m"] and any(f"{each}.".startswith(f"{fullname}.") for each in sys.orig_argv)
        asked = _asked(below) if running else below
        sentence = advice(asked)
        if sentence is None:
            return None
        error = importlib.import_module(PACKAGE).not_offered(asked, sentence)
        if running:
            sys.exit(f"error: {error}")  # One line, no traceback.
        raise error

    def is_package(self, fullname: str) -> bool:
        """See `importlib.abc.InspectLoader`."""
        return fullname.partition(".")[2] in _PACKAGES

    def get_source(self, fullname: str) -> str:
        """The text of a module that forwards: `python -m` runs it, imports ask it for names."""
        path = fullname.partition(".")[2]
        lines = [
            f"from {PACKAGE} import _paths",
            "def __getattr__(name):",
            f"    return _paths.attribute({path!r}, name)",
        ]
        if path in _IMPORTS or path in _PACKAGES:
            lines.insert(0, f"__all__ = {list(importlib.import_module(PACKAGE).__all__)!r}")
        if path in _RUNS:
            lines += ["if __name__ == '__main__':", f"    raise SystemExit(_paths.run({path!r}))"]
        return "\n".join(lines) + "\n"


def install() -> None:
    """Let Python find the paths; calling it again does nothing."""
    if not any(type(finder).__name__ == "Finder" and type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.append(Finder())
