"""What a recipe must know of the command line's verbs beyond what their own parsers say: inputs, outputs, resuming."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True)
class Verb:
    """A verb of the command line as a stage.

    Attributes:
        name: As it is written, in one or two words.
        output: The argument (`dest` of its parser) that names the output, None for a verb that prints its result.
        suffix: Of the output's name: "" for a folder.
        module: What launchers of several processes run; "" where one process does the work.
        beside: Ending of a further file beside the output.
        resumes: Whether it goes on with what an interrupted run has left; otherwise that is removed first.
        measures: Whether it needs the extra `eval`; others do where they are given `--eval_data`.
    """

    name: str
    output: str | None = "output"
    suffix: str = ""
    module: str = ""
    beside: str = ""
    resumes: bool = False
    measures: bool = False

    @property
    def trains(self) -> bool:
        """Whether it leaves checkpoints in its output, and goes on from them."""
        return bool(self.module)


VERBS: Final[Mapping[str, Verb]] = {
    verb.name: verb
    for verb in (
        Verb("recipe pydocs"),
        Verb("pretrain", "output_dir", module="bgekit.pretraining.run", resumes=True),
        Verb("mine", suffix=".jsonl", beside=".report.json", resumes=True),
        Verb("score", suffix=".jsonl", resumes=True),
        Verb("dedup", suffix=".jsonl"),
        Verb("finetune", "output_dir", module="bgekit.training.embedder", resumes=True),
        Verb("finetune-reranker", "output_dir", module="bgekit.training.reranker", resumes=True),
        Verb("merge"),
        Verb("calibrate", measures=True),
        Verb("eval", resumes=True, measures=True),
        Verb("encode", resumes=True),
        Verb("rerank", None, suffix=".jsonl"),
    )
}

#: Arguments (by `dest`, the same in all verbs) whose values are files or folders that are read ...
DATA: Final = frozenset((
    "input", "candidate_pool", "qrels", "queries", "train_data", "eval_data", "data", "data_root", "texts", "files",
    "deepspeed",
))  # fmt: skip
#: ... and those that are models: folders, packaged ones, or names on the hub.
MODELS: Final = frozenset(
    ("model", "models", "model_name_or_path", "base", "reranker", "first_stage", "config_name", "tokenizer_name")
)
#: Arguments that change what is said and nothing else.
TALK: Final = frozenset(("no_progress", "quiet", "verbose", "disable_tqdm"))
#: Arguments that the runner decides on.
KEPT: Final = frozenset(("help", "version", "resume_from_checkpoint", "overwrite_output_dir", "dry_run", "overwrite"))


class Grammar(Protocol):
    """The parsers of the verbs, which the command line has."""

    def options(self, verb: Verb) -> Mapping[str, argparse.Action]:
        """The arguments of a verb by every name: `--train_data`; positional ones by their `dest`."""

    def check(self, verb: Verb, arguments: Sequence[str]) -> None:
        """Parse the arguments of a verb, without running it.

        Raises:
            ArgumentError: they cannot be parsed; the message names the option.
            MissingExtraError: the verb needs an extra that is not installed.
        """
