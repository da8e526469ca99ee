"""A cluster of Ray: its nodes, the actors on them, and the loop that gives them tasks until none is left.

A task is small (the description of a shard), and so is its result: neither texts nor vectors go through Ray's object
store. An actor has a few tasks at once, so that it reads the next one while it computes, and no more (back-pressure).
What an actor that died had is given to others, and an actor is started where a node has room and none. Ray restarts
nothing by itself here, as it does not know what was finished.

A process that is told to stop (SIGTERM) finishes what it has read, hands back the rest, and is then ended. A node that
is told to stop ends its processes at once (Ray does it): what they had goes to others, and is no task's fault.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ..errors import ArgumentError, WorkerError, check_count, import_extra

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)
LOCAL: Final = "local"
#: Tasks that an actor has at once: the engine computes one, has the next ready, and reads a third.
AHEAD: Final = 3
#: Seconds between two looks at the nodes of the cluster, and at most between two looks at what is done.
_LOOK, _POLL = 5.0, 1.0
#: Seconds after which an actor that no node had room for is given up, and after which it is tried again.
_PATIENCE, _AGAIN = 120.0, 600.0
#: Processes that a task may end, alone in them, before it is the task that is at fault; and starts that may fail.
_DEATHS: Final = 3
#: Why Ray says that a node has gone (`NodeDeathInfo`), where somebody wanted it: SIGTERM, preemption, not needed.
_WANTED: Final = frozenset((1, 3, 4))
#: What Ray says of an actor that died, beside why.
_WHICH: Final = re.compile(r"(class_name|actor_id|pid|name|namespace|ip): |The actor is ")
#: Bytes of the object store of a cluster that is started here: what crosses it is small.
_STORE: Final = 200 << 20
Task = TypeVar("Task")


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's name of it.
        address: Its address, for people.
        resources: What it has in all, by Ray's names.
    """

    id: str
    address: str
    resources: Mapping[str, float]

    def fits(self, wanted: Mapping[str, float]) -> int:
        """How many actors that want these resources it has room for."""
        wanted = {name: amount for name, amount in wanted.items() if amount}
        return min((int(self.resources.get(name, 0.0) // amount) for name, amount in wanted.items()), default=1)


def parsed_resources(text: str) -> dict[str, float]:
    """The resources of an actor, given as JSON.

    Raises:
        ArgumentError: it is no JSON object of names and amounts.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f'resources are a JSON object such as {{"CPU": 4}}, not {text!r} ({error})') from error
    if not isinstance(found, dict) or not all(
        isinstance(amount, int | float) and not isinstance(amount, bool) and amount >= 0 for amount in found.values()
    ):
        raise ArgumentError(f'resources are a JSON object of amounts such as {{"CPU": 4}}, not {text!r}')
    return found


class RayCluster:
    """A connection to a cluster of Ray; a context manager.

    Raises:
        MissingExtraError: on entry, without the package `ray`.
        WorkerError: on entry, when the cluster cannot be reached.

    Example:
        >>> from bgekit.distributed import ModelRecipe, RayCluster, encode_on_cluster
        >>> from bgekit.data import read_records
        >>> with RayCluster("local") as cluster:  # doctest: +SKIP
        ...     recipe = ModelRecipe("BAAI/bge-small-en-v1.5")
        ...     report = encode_on_cluster(cluster, recipe, read_records("corpus.jsonl"), "vectors")
    """

    def __init__(
        self, address: str = LOCAL, *, actors: int | None = None, resources: Mapping[str, float] | None = None
    ) -> None:
        """A cluster by its address.

        Args:
            address: `local` starts one on this machine for as long as it is used; else what `ray.init` takes, such as
                `auto`, `10.0.0.1:6379` or `ray://head:10001`.
            actors: How many processes compute; by default one for each GPU, or one for each node where there is none.
            resources: What each of them gets, by Ray's names; by default a GPU, or all cores of a node.

        Raises:
            ArgumentError: the number of actors is not positive.
        """
        check_count("actors", actors, "processes")
        self.address, self._actors, self._resources = address, actors, resources
        self.ray: Any = None
        self._started = False

    def __enter__(self) -> Self:
        self.ray = import_extra("ray", "ray")
        if self.ray.is_initialized():  # The caller's own connection stays as it is.
            return self
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address == LOCAL:
            options |= {"include_dashboard": False, "object_store_memory": _STORE, "num_cpus": cores()}
        try:
            self.ray.init(self.address, **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            raise WorkerError(f"the cluster at {self.address} cannot be reached: {error}") from error
        self._started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self.ray.shutdown()
            self._started = False

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        return [
            Node(each["NodeID"], each["NodeManagerAddress"], each["Resources"])
            for each in self.ray.nodes()
            if each["Alive"]
        ]

    def was_stopped(self, node: Node) -> bool:
        """Whether a node has gone because it was told to."""
        return any(each["NodeID"] == node.id and each.get("DeathReason") in _WANTED for each in self.ray.nodes())

    def places(self) -> list[tuple[Node, dict[str, float]]]:
        """The node of each actor that there is to be, and what it gets.

        Raises:
            WorkerError: no node can ever have one.
        """
        nodes = self.nodes()
        if self._resources is not None:
            wanted = dict(self._resources)
            found = [(node, wanted) for node in nodes for _ in range(node.fits(wanted))]
        elif self._actors is None:
            gpus = [(node, {"GPU": 1.0}) for node in nodes for _ in range(int(node.resources.get("GPU", 0)))]
            found = gpus or [(node, {"CPU": node.resources["CPU"]}) for node in nodes if node.resources.get("CPU")]
        else:
            found = _spread(nodes, self._actors)
        if not found:
            there = "; ".join(f"{node.address}: {_in_words(node.resources)}" for node in nodes) or "no nodes"
            wanted_words = _in_words(self._resources or {"CPU": 1.0})
            raise WorkerError(
                f"no node of the cluster at {self.address} has {wanted_words} ({there}): --ray-resources asks for less"
            )
        if self._actors is None:
            return found
        # In turn, so that few actors are on many nodes.
        turns: dict[str, int] = Counter()
        order = []
        for node, wanted in found:
            turns[node.id] += 1
            order.append((turns[node.id], node, wanted))
        order.sort(key=lambda each: each[0])
        return [(node, wanted) for _, node, wanted in order[: self._actors]]

    def crew(self, actor: type, begin: Sequence[Any], **options: Any) -> Crew[Any]:
        """Actors on the nodes; a context manager."""
        return Crew(self, actor, begin, **options)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_actor() -> bool:
    """Whether this is a process that Ray has started for an actor."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


class Actor:
    """What the actors of a crew share. One that is told to stop (SIGTERM) finishes what it computes, and no more."""

    def __init__(self) -> None:
        self._told = threading.Event()
        # Ray makes actors in the main thread, and ends a process at once by this signal.
        if in_actor() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stop())

    def hello(self) -> str:
        """The name of its machine."""
        return platform.node()

    def stop(self) -> None:
        """Hand back all tasks that are not begun, by None for their result."""
        self._told.set()


def _spread(nodes: Sequence[Node], count: int) -> list[tuple[Node, dict[str, float]]]:
    """So many places on nodes, each with an equal share of its node's GPUs or else cores."""
    kind = "GPU" if any(node.resources.get("GPU") for node in nodes) else "CPU"
    of_kind = [node for node in nodes if node.resources.get(kind, 0) >= 1]
    if not of_kind:
        return []
    if kind == "GPU":
        return [(node, {"GPU": 1.0}) for node in of_kind for _ in range(int(node.resources["GPU"]))]
    shares = [count // len(of_kind) + (number < count % len(of_kind)) for number in range(len(of_kind))]
    return [
        (node, {"CPU": max(1.0, float(node.resources["CPU"] // share))})
        for node, share in zip(of_kind, shares, strict=True)
        for _ in range(min(share, int(node.resources["CPU"])))
    ]


def _in_words(resources: Mapping[str, float]) -> str:
    shown = {name: amount for name, amount in resources.items() if name in ("CPU", "GPU") or ":" not in name}
    return ", ".join(
        f"{amount:g} {name}" for name, amount in shown.items() if name not in ("memory", "object_store_memory")
    )


@dataclass
class _Member(Generic[Task]):
    """An actor on its way: it was asked for, says hello when it has a place, begins, works, and may leave."""

    handle: Any
    node: Node
    slot: int
    asked: float
    waiting: Any
    state: str = "asked"
    tasks: dict[Any, Task] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class _Death:
    """Why an actor died, and whether it was told to."""

    reason: str
    told: bool


class Crew(Generic[Task]):
    """Actors on the nodes of a cluster, each with a few tasks at once; a context manager.

    The class of the actors has `hello()`, which answers at once, `begin(*arguments)`, which makes it ready and says
    what it is, and `work(task)`, which runs in several threads and returns None for a task that it hands back.
    """

    def __init__(
        self, cluster: RayCluster, actor: type, begin: Sequence[Any], *,
        admit: Callable[[Any, str], None] = lambda said, who: None, changed: Callable[[int], None] = lambda nodes: None,
    ) -> None:  # fmt: skip
        """Actors that are started when it is entered.

        Args:
            cluster: The cluster.
            actor: Their class.
            begin: Arguments of its `begin`, which go through the object store once.
            admit: Called with what `begin` of an actor returned, and where it is, before it gets work; raises to refuse
                all of them.
            changed: Called with the number of nodes that compute, when that changes.
        """
        self._cluster, self._class, self._begin_with = cluster, actor, begin
        self._admit, self._changed = admit, changed
        self._members: list[_Member[Task]] = []
        self._looked = -math.inf
        self._failed_starts = 0
        self._given_up: dict[tuple[str, int], float] = {}
        self._shown = 0
        self._begin: Any = None

    def __enter__(self) -> Self:
        ray = self._cluster.ray
        self._begin = ray.put(tuple(self._begin_with))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._members:
            self._end(member)
        self._members = []

    def ready(self) -> None:
        """Wait for the first actor that is ready.

        Raises:
            WorkerError: there is none.
        """
        self._first()

    def ask(self, method: str) -> Any:
        """The answer of an actor that is ready to a method without arguments; of another one if it dies.

        Raises:
            WorkerError: there is none.
        """
        ray = self._cluster.ray
        while True:
            member = self._first()
            try:
                return ray.get(getattr(member.handle, method).remote())
            except ray.exceptions.RayTaskError as error:
                raise _own(error, member.node) from error
            except ray.exceptions.RayError as error:
                for _ in self._dead(member, _reason(error)):
                    pass

    def _first(self) -> _Member[Task]:
        while True:
            self._look()
            for member in self._members:
                if member.state == "ready":
                    return member
            for _ in self._hear(_POLL):
                pass

    def run(self, tasks: Iterable[Task], *, name: Callable[[Task], str] = str) -> Iterator[tuple[Task, Any]]:
        """Each task with its result, as they are done. One may be done twice; its first result counts.

        Args:
            tasks: The tasks, taken as there is room for them. They are told apart by their equality.
            name: What a task is, for messages.

        Raises:
            WorkerError: a task ended its process again and again, or no process is left.
            BgekitError: what a task raised.
        """
        source, exhausted = iter(tasks), False
        back: deque[Task] = deque()
        deaths: Counter[Task] = Counter()
        done: set[Task] = set()

        def held(task: Task) -> bool:
            return any(task in each.tasks.values() for each in self._members)

        def following() -> Task | None:
            nonlocal exhausted
            if back:
                return back.popleft()
            task = None if exhausted else next(source, None)
            exhausted = exhausted or task is None
            return task

        while True:
            self._look()
            for member in self._members:
                while member.state == "ready" and not member.alone and len(member.tasks) < AHEAD:
                    # One that may have ended a process has one for itself.
                    if member.tasks and back and deaths[back[0]]:
                        break
                    task = following()
                    if task is None:
                        break
                    member.alone = bool(deaths[task])
                    member.tasks[member.handle.work.remote(task)] = task
            if exhausted and not back:
                under_way = {task for member in self._members for task in member.tasks.values()}
                if not under_way - done:  # Who still computes what another has done is not waited for.
                    return
                self._help(done)
            for member, task, result, death in self._hear(_POLL):
                if death is None:
                    member.alone = False
                    if result is None:
                        self._leave(member)
                        if task not in done and not held(task):
                            back.append(task)
                    elif task not in done:
                        yield task, result
                        done.add(task)
                        if task in back:  # It was given twice, and who had it first died.
                            back.remove(task)
                    if not held(task):
                        done.discard(task)
                    if member.state == "leaving" and not member.tasks:
                        self._members.remove(member)
                        self._end(member)
                        self._looked = -math.inf
                    continue
                lost = [task for task in member.tasks.values() if task not in done and not held(task)]
                if not lost:
                    continue
                if not death.told:
                    deaths[lost[0]] += 1
                if deaths[lost[0]] > _DEATHS:
                    raise WorkerError(
                        f"{name(lost[0])} ended its process {deaths[lost[0]]} times, last on "
                        f"{member.node.address}: {death.reason}"
                    )
                back.extendleft(reversed(lost))

    def _help(self, done: Collection[Task]) -> None:
        """Give idle actors tasks that one other has: the end does not wait for the slowest, or for one that hangs."""
        held = Counter(task for member in self._members for task in member.tasks.values())
        alone = [task for task, count in held.items() if count == 1 and task not in done]
        idle = [member for member in self._members if member.state == "ready" and not member.tasks]
        for member, task in zip(idle, reversed(alone), strict=False):
            member.tasks[member.handle.work.remote(task)] = task

    def _look(self) -> None:
        """Start actors where nodes have room for one and there is none; give up those that find none."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        self._given_up = {place: since for place, since in self._given_up.items() if now - since < _AGAIN}
        taken = {(member.node.id, member.slot) for member in self._members} | self._given_up.keys()
        slots: Counter[str] = Counter()
        places = self._cluster.places()
        for node, wanted in places:
            place = (node.id, slots[node.id])
            slots[node.id] += 1
            # Where nodes come and go, places may move; their number counts.
            if place not in taken and len(self._members) < len(places):
                self._start(node, place[1], wanted)
        for member in list(self._members):
            if member.state == "asked" and now - member.asked > _PATIENCE:
                self._end(member)
                self._members.remove(member)
                self._given_up[member.node.id, member.slot] = now
                logger.warning("%s has no room for an actor: its resources are taken by others", member.node.address)
        if not self._members:
            free = _in_words(self._cluster.ray.available_resources())
            raise WorkerError(
                f"no node of the cluster at {self._cluster.address} has room for an actor (free: {free or 'nothing'}): "
                "wait for other jobs, or ask for less with --ray-resources"
            )

    def _start(self, node: Node, slot: int, wanted: Mapping[str, float]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._cluster.ray
        others = {name: amount for name, amount in wanted.items() if name not in ("CPU", "GPU")}
        options = {
            "num_cpus": wanted.get("CPU", 0), "num_gpus": wanted.get("GPU", 0), "resources": others,
            "max_restarts": 0, "max_task_retries": 0, "max_concurrency": AHEAD + 1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
        }  # fmt: skip
        handle = ray.remote(self._class).options(**options).remote()
        self._members.append(_Member(handle, node, slot, time.monotonic(), handle.hello.remote()))

    def _end(self, member: _Member[Task]) -> None:
        self._cluster.ray.kill(member.handle, no_restart=True)

    def _hear(self, seconds: float) -> Iterator[tuple[_Member[Task], Task, Any, _Death | None]]:
        """What is done: member, task, result, and why the member died (its tasks are still with it); or nothing."""
        ray = self._cluster.ray
        owners = {ref: member for member in self._members for ref in (member.waiting, *member.tasks) if ref is not None}
        if not owners:
            time.sleep(min(seconds, 0.1))
            return
        heard, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        if not heard:
            heard, _ = ray.wait(list(owners), num_returns=1, timeout=seconds)
        for ref in heard:
            member = owners[ref]
            if member not in self._members:  # It died a moment ago.
                continue
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise _own(error, member.node) from error
            except ray.exceptions.RayError as error:
                yield from self._dead(member, _reason(error))
                continue
            if ref == member.waiting:
                self._went_on(member, answer)
            else:
                yield member, member.tasks.pop(ref), answer, None

    def _went_on(self, member: _Member[Task], answer: Any) -> None:
        if member.state == "asked":
            member.state, member.waiting = "beginning", member.handle.begin.remote(self._begin)
            return
        self._admit(answer, member.node.address)
        member.state, member.waiting, self._failed_starts = "ready", None, 0
        self._show()

    def _leave(self, member: _Member[Task]) -> None:
        """Give an actor nothing any more; it is ended when what it finishes is done."""
        if member.state != "leaving":
            member.state = "leaving"
            logger.warning("an actor on %s was told to stop: others do what it had not begun", member.node.address)
            self._show()

    def _dead(self, member: _Member[Task], reason: str) -> Iterator[tuple[_Member[Task], Task, Any, _Death]]:
        self._members.remove(member)
        self._end(member)
        self._looked = -math.inf
        stopped = self._cluster.was_stopped(member.node)
        death = _Death(reason, stopped or member.state == "leaving")
        what = f"{member.node.address} was told to stop" if stopped else (
            f"an actor on {member.node.address} has ended ({reason})"
        )  # fmt: skip
        logger.warning("%s%s", what, _again(len(member.tasks)))
        if member.state in ("asked", "beginning") and not death.told:
            self._failed_starts += 1
            if self._failed_starts > _DEATHS:
                raise WorkerError(f"{self._failed_starts} actors ended before they were ready: {reason}")
        self._show()
        if member.tasks:
            yield member, next(iter(member.tasks.values())), None, death

    def _show(self) -> None:
        nodes = len({member.node.id for member in self._members if member.state == "ready"})
        if nodes != self._shown:
            self._shown = nodes
            self._changed(nodes)


def _again(count: int) -> str:
    return f": {count} {'task is' if count == 1 else 'tasks are'} done again" if count else ""


def _reason(error: BaseException) -> str:
    """The first lines of what Ray says."""
    lines = [line for each in str(error).splitlines() if (line := each.strip()) and not _WHICH.match(line)]
    return " ".join(lines[:2]) or repr(error)


def _own(error: Any, node: Node) -> BaseException:
    """The error of a task: ours as it was raised there, any other with where it was."""
    from ..errors import BgekitError

    cause = getattr(error, "cause", None)
    if isinstance(cause, BgekitError):
        return cause
    last = str(error).strip().splitlines()[-1]
    return WorkerError(f"an actor on {node.address} failed: {last}")
