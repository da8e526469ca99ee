import pytest

from bgekit.errors import ArgumentError
from bgekit.evaluation.benchmarks.definitions import BENCHMARKS, CQADUPSTACK, benchmark


def test_counts_are_those_of_the_tables():
    assert benchmark("mteb-en").weights == {
        "retrieval": 15, "clustering": 11, "pair_classification": 3, "reranking": 4, "sts": 10, "summarization": 1,
        "classification": 12,
    }  # fmt: skip
    assert benchmark("c-mteb").weights == {
        "retrieval": 8, "sts": 8, "pair_classification": 2, "classification": 9, "reranking": 4, "clustering": 4,
    }  # fmt: skip
    assert [len(benchmark(name)) for name in ("mteb-en", "c-mteb", "beir", "msmarco", "miracl")] == [56, 35, 15, 3, 18]
    shared = {task.name for task in benchmark("mteb-en")} & {task.name for task in benchmark("c-mteb")}
    assert shared == {
        "STS22", "AmazonReviewsClassification", "MassiveIntentClassification", "MassiveScenarioClassification"
    }  # fmt: skip


def test_keys_are_unique_and_names_select():
    for entry in BENCHMARKS.values():
        keys = [task.key for task in entry]
        assert len(set(keys)) == len(keys)
        assert len({entry.label(task) for task in entry}) == len(keys)
    chosen = benchmark("C-MTEB").select(["sts22", "LCQMC", "amazonreviewsclassification-zh"])
    assert [task.key for task in chosen] == ["LCQMC", "STS22-zh", "AmazonReviewsClassification-zh"]
    assert len(benchmark("miracl").select(["MIRACLRetrieval"])) == 18
    assert [task.subset for task in benchmark("miracl").select(["MIRACLRetrieval-sw"])] == ["sw"]


def test_labels_have_the_subset_only_where_it_tells_tasks_apart():
    zh = benchmark("c-mteb")
    assert zh.label(zh.select(["STS22"])[0]) == "STS22"
    miracl = benchmark("miracl")
    assert miracl.label(miracl.tasks[0]) == "MIRACLRetrieval-ar"


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(
        ArgumentError, match=r"no benchmark 'mteb'; .*mteb-en .*56 tasks.*c-mteb.*beir.*msmarco.*miracl"
    ):
        benchmark("mteb")
    with pytest.raises(ArgumentError, match=r"beir has no task 'STS12'; it has ArguAna, .*TRECCOVID"):
        benchmark("beir").select(["STS12"])


def test_the_forums_count_as_one_dataset():
    (task,) = benchmark("beir").select(["CQADupstackRetrieval"])
    assert task.parts == CQADUPSTACK and len(CQADUPSTACK) == 12


@pytest.mark.slow
def test_names_subsets_and_splits_are_those_of_mteb():
    mteb = pytest.importorskip("mteb")
    for entry in BENCHMARKS.values():
        for task in entry:
            for name in task.parts or (task.name,):
                made = mteb.get_task(name)
                assert task.split in made.metadata.eval_splits, task
                assert made.metadata.type.lower().replace("pairc", "pair_c") == task.kind, task
                if task.subset:
                    assert task.subset in made.metadata.hf_subsets, task
                else:
                    assert not made.metadata.is_multilingual, task
