"""`score` on a cluster: actors read groups of rows of the training data and score them; only numbers come back."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, DataError
from ..inference.shards import in_words
from ..mining.teacher import GROUP, Scoring
from .cluster import Actor, RayCluster
from .encoding import plain_error, share_of_cores
from .recipes import ModelRecipe

if TYPE_CHECKING:
    from typing_extensions import Self

    from .cluster import Crew

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupTask:
    """A group of rows to score.

    Attributes:
        number: Its number.
        digest: Of its pairs, so that a node that sees another file is found out.
    """

    number: int
    digest: str

    def __str__(self) -> str:
        return f"the group of rows {self.number * GROUP:,} to {(self.number + 1) * GROUP - 1:,}"


class RemoteTeacher:
    """A cross-encoder on the nodes of a cluster, for `bgekit.mining.score`; a context manager.

    Example:
        >>> from bgekit.distributed import ModelRecipe, RayCluster, RemoteTeacher
        >>> from bgekit.mining import score
        >>> with RayCluster("auto") as cluster:  # doctest: +SKIP
        ...     with RemoteTeacher(cluster, ModelRecipe("BAAI/bge-reranker-v2-m3")) as teacher:
        ...         score(teacher, "mined.jsonl", "scored.jsonl")
    """

    def __init__(self, cluster: RayCluster, model: ModelRecipe, *, allow_mixed: bool = False) -> None:
        """A teacher whose actors start when it is entered.

        Args:
            cluster: The cluster, entered.
            model: The cross-encoder.
            allow_mixed: Let nodes score that compute differently (another kind of CPU, another torch), with a warning.
        """
        self._cluster, self._model, self._allow_mixed = cluster, model, allow_mixed
        self._said: dict[str, Any] = {}
        self._kinds: list[dict[str, str]] = []
        self._stack = contextlib.ExitStack()
        self._crew: Crew[tuple[Scoring, GroupTask]] | None = None

    def __enter__(self) -> Self:
        arguments = [self._model, os.getcwd(), os.environ.get("OMP_NUM_THREADS")]
        self._crew = self._stack.enter_context(self._cluster.crew(ScoreActor, arguments, admit=self._admit))
        self._crew.ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides a score."""
        return str(self._said["fingerprint"])

    @property
    def arithmetic(self) -> dict[str, str]:
        """How the first of its actors computes."""
        return self._kinds[0]

    def score_groups(self, scoring: Scoring, first_row: int) -> Iterator[Sequence[float]]:
        """The scores of the pairs of each group from a row on, in order.

        Raises:
            DataError: a node sees another file, or the file has changed.
            ArgumentError: nodes compute differently, and may not.
        """
        assert self._crew is not None
        first = first_row // GROUP
        tasks = (
            (scoring, GroupTask(number, _digest(scoring.pairs(group))))
            for number, group in enumerate(scoring.groups(first_row), first)
        )
        waiting: dict[int, Sequence[float]] = {}
        following = first
        for (_, task), scores in self._crew.run(tasks, name=lambda each: str(each[1])):
            waiting[task.number] = scores
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def _admit(self, said: dict[str, Any], where: str) -> None:
        """See to it that an actor scores as the others do."""
        self._said = self._said or said
        if said["fingerprint"] != self._said["fingerprint"]:
            raise ArgumentError(
                f"the node {where} has another model than the others, or computes in {said['precision']} and not in "
                f"{self._said['precision']}: --dtype makes the precision the same everywhere"
            )
        here = said["arithmetic"]
        if here["class"] in {each["class"] for each in self._kinds}:
            return
        if self._kinds:
            what = f"the node {where} computes with {in_words([here])}, the others with {in_words(self._kinds)}"
            if not self._allow_mixed:
                raise ArgumentError(
                    f"{what}, and the same pair would have slightly other scores there; choose nodes of one kind, or "
                    "--allow-mixed, which says so"
                )
            logger.warning("%s", what)
        self._kinds.append(here)


class ScoreActor(Actor):
    """A process that scores groups of rows. Its model lives in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1, "bgekit-score")
        self._model: Any = None
        self._scoring: Scoring | None = None
        self._groups: Iterator[tuple[int, Any]] = iter(())
        self._next = 0

    def begin(self, arguments: tuple[ModelRecipe, str, str | None]) -> dict[str, Any]:
        """Load the model; what decides its scores.

        Raises:
            BgekitError: it cannot be loaded here.
        """
        recipe, work_folder, threads = arguments
        logging.getLogger("bgekit").setLevel(logging.ERROR)
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        with contextlib.suppress(OSError):
            os.chdir(work_folder)
        return self._thread.submit(self._load, recipe, share_of_cores()).result()

    def work(self, task: tuple[Scoring, GroupTask]) -> list[float] | None:
        """The scores of the pairs of a group; None if the process was told to stop before it was read.

        Raises:
            BgekitError: it cannot be read or scored.
        """
        return self._thread.submit(self._scores, *task).result()

    def _load(self, recipe: ModelRecipe, threads: int) -> dict[str, Any]:
        import torch

        torch.set_num_threads(max(1, min(threads, torch.get_num_threads())))
        self._model = model = recipe.load_reranker()
        return {"fingerprint": model.fingerprint, "precision": model.precision, "arithmetic": model.arithmetic}

    def _scores(self, scoring: Scoring, task: GroupTask) -> list[float] | None:
        if self._told.is_set():
            return None
        try:
            if scoring != self._scoring or task.number < self._next:
                self._scoring, self._next = scoring, task.number
                self._groups = enumerate(scoring.groups(task.number * GROUP), task.number)
            found = next((group for number, group in self._groups if number == task.number), None)
            self._next = task.number + 1
            pairs = [] if found is None else scoring.pairs(found)
            if _digest(pairs) != task.digest:
                raise DataError(
                    f"{scoring.input} on {platform.node()} is not what was planned in {task}: it has changed since, or "
                    "the node sees another file"
                )
            scores = self._model.compute_score(pairs, normalize=scoring.normalize, show_progress=False) if pairs else ()
            return [float(score) for score in scores]
        except BaseException as error:
            raise plain_error(error) from None


def _digest(pairs: Sequence[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for text in itertools.chain.from_iterable(pairs):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
