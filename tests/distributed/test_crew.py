"""The loop that gives tasks to actors: order of blame, deaths, nodes that come and go, and what is never waited for."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from bgekit.distributed import cluster as clusters
from bgekit.distributed.cluster import RayCluster, parsed_resources
from bgekit.errors import ArgumentError, DataError, WorkerError
from distributed.fake_ray import FakeRay, RayError


@pytest.fixture(autouse=True)
def strategies(monkeypatch):
    """The one class of Ray that is imported where an actor starts."""
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    strategy = lambda node, *, soft: SimpleNamespace(node=node)  # noqa: E731
    sys.modules["ray.util.scheduling_strategies"].NodeAffinitySchedulingStrategy = strategy
    monkeypatch.setattr(clusters, "_POLL", 0.0)
    monkeypatch.setattr(clusters, "_LOOK", 0.0)


class Doubler:
    def hello(self):
        return "here"

    def begin(self, arguments):
        return "ready"

    def tokenizer(self):
        return "words"

    def work(self, task):
        if task == "bad":
            raise DataError("corpus.jsonl, line 7: no text")
        return task * 2


def cluster_of(ray, **options):
    cluster = RayCluster("auto", **options)
    cluster.ray = ray
    return cluster


def results(ray, tasks, **options):
    with cluster_of(ray, **options).crew(Doubler, []) as crew:
        return list(crew.run(tasks))


def test_every_task_is_done_once():
    assert sorted(results(FakeRay("ab"), range(50))) == [(task, task * 2) for task in range(50)]


def test_an_actor_has_few_tasks_at_once_and_they_are_read_as_they_are_needed():
    taken = []
    tasks = (taken.append(task) or task for task in range(50))
    with cluster_of(FakeRay("ab")).crew(Doubler, []) as crew:
        done = crew.run(tasks)
        next(done)
        assert len(taken) <= 2 * clusters.AHEAD


def test_tasks_of_an_actor_that_dies_are_done_by_others():
    deaths = []

    def hurt(actor, method, argument):
        if method == "work" and argument == (20,) and not deaths:
            deaths.append(actor)
            raise RayError("The worker process was killed")

    assert sorted(results(FakeRay("ab", hurt), range(50))) == [(task, task * 2) for task in range(50)]
    assert len(deaths) == 1


def test_a_task_that_ends_every_process_is_named():
    def hurt(actor, method, argument):
        if method == "work" and argument == (20,):
            raise RayError("The worker died: out of memory")

    with pytest.raises(WorkerError, match=r"20 ended its process 4 times, last on [ab]: .*out of memory"):
        results(FakeRay("ab", hurt), range(50))


def test_what_is_asked_of_an_actor_that_dies_another_one_answers():
    asked = []

    def hurt(actor, method, argument):
        if method == "tokenizer":
            asked.append(actor)
            if len(asked) == 1:
                raise RayError("The worker was killed")

    with cluster_of(FakeRay("ab", hurt)).crew(Doubler, []) as crew:
        assert crew.ask("tokenizer") == "words"
    assert len(set(asked)) == 2


def test_an_error_of_a_task_is_raised_as_it_was_there():
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 7: no text"):
        results(FakeRay("ab"), [1, 2, "bad", 3])


def test_a_node_that_comes_gets_an_actor_and_one_that_goes_is_done_without():
    ray = FakeRay("a")
    seen = []
    with cluster_of(ray).crew(Doubler, [], changed=seen.append) as crew:
        found = []
        for number, each in enumerate(crew.run(range(60))):
            found.append(each)
            if number == 10:
                ray.nodes_there.append("b")
            if number == 30:
                ray.nodes_there.remove("a")
                next(member for member in crew._members if member.node.id == "a").handle.dead = True
    assert sorted(found) == [(task, task * 2) for task in range(60)]
    assert seen == [1, 2, 1]


def test_an_actor_that_is_told_to_stop_hands_its_tasks_back_and_is_ended_when_it_has_none(caplog):
    told = []

    class Stopping(Doubler):
        def work(self, task):
            if task == 20 and not told:
                told.append(self)
            return None if self in told else super().work(task)

    ray = FakeRay("ab")
    with cluster_of(ray).crew(Stopping, []) as crew:
        found = sorted(crew.run(task for task in range(50)))
        assert [actor.object for actor in ray.killed] == told
    assert found == [(task, task * 2) for task in range(50)]
    assert [record.message for record in caplog.records] == [
        f"an actor on {'ab'[ray.killed[0].number]} was told to stop: others do what it had not begun"
    ]


def test_a_task_is_not_to_blame_for_nodes_that_are_told_to_stop(caplog):
    names = iter("bcdefg")
    ray = FakeRay("a")

    def hurt(actor, method, argument):
        if method == "work" and argument == (3,) and (following := next(names, None)):
            ray.stopped += ray.nodes_there
            ray.nodes_there[:] = [following]
            raise RayError("The actor died unexpectedly\n\tclass_name: Doubler\nIts node has died: received SIGTERM")

    ray.hurt = hurt
    assert sorted(results(ray, range(9))) == [(task, task * 2) for task in range(9)]
    assert [record.message for record in caplog.records][:2] == [
        "a was told to stop: 3 tasks are done again", "b was told to stop: 3 tasks are done again",
    ]  # fmt: skip
    assert len(caplog.records) == 6


def test_the_end_does_not_wait_for_the_slowest():
    ray = FakeRay("ab")

    def hurt(actor, method, argument):
        if method == "work" and actor.number == 0:
            actor.stuck = True

    ray.hurt = hurt
    with cluster_of(ray).crew(Doubler, []) as crew:
        assert sorted(crew.run(range(12))) == [(task, task * 2) for task in range(12)]


def test_a_cluster_that_never_has_room_is_an_error(monkeypatch):
    monkeypatch.setattr(clusters, "_PATIENCE", -1.0)

    def hurt(actor, method, argument):
        raise AssertionError("no actor has a place")

    ray = FakeRay("a", hurt)
    ray.wait = lambda refs, **_: ([], [])
    with pytest.raises(WorkerError, match=r"no node of the cluster at auto has room .*--ray-resources"):
        results(ray, [1])


def test_more_than_any_node_has_is_an_error_at_once():
    with pytest.raises(WorkerError, match=r"no node of the cluster at auto has 64 CPU \(a: 1 CPU\)"):
        results(FakeRay("a"), [1], resources={"CPU": 64})


def test_actors_that_cannot_begin_are_not_started_for_ever():
    def hurt(actor, method, argument):
        if method == "begin":
            raise RayError("The worker died: illegal instruction")

    with pytest.raises(WorkerError, match=r"4 actors ended before they were ready: .*illegal instruction"):
        results(FakeRay("a", hurt), [1])


@pytest.mark.parametrize(
    ("options", "cores", "expected"),
    [
        ({}, 8.0, [("a", {"CPU": 8.0}), ("b", {"CPU": 8.0})]),
        ({"actors": 1}, 8.0, [("a", {"CPU": 8.0})]),
        ({"actors": 3}, 8.0, [("a", {"CPU": 4.0}), ("b", {"CPU": 8.0}), ("a", {"CPU": 4.0})]),
        ({"resources": {"CPU": 3}}, 8.0, [("a", {"CPU": 3})] * 2 + [("b", {"CPU": 3})] * 2),
        ({"actors": 2, "resources": {"CPU": 3}}, 8.0, [("a", {"CPU": 3}), ("b", {"CPU": 3})]),
        ({"actors": 9}, 2.0, [("a", {"CPU": 1.0}), ("b", {"CPU": 1.0})] * 2),
    ],
)
def test_where_actors_are_and_what_they_get(options, cores, expected):
    places = cluster_of(FakeRay("ab", cores=cores), **options).places()
    assert [(node.id, wanted) for node, wanted in places] == expected


@pytest.mark.parametrize("text", ["{", "[1]", '{"CPU": "4"}', '{"CPU": -1}', '{"CPU": true}'])
def test_resources_that_are_none(text):
    with pytest.raises(ArgumentError, match="resources are a JSON object"):
        parsed_resources(text)
