import json

import pytest

from bgekit.errors import ArgumentError, DataError
from bgekit.evaluation.benchmarks.definitions import MeanTask, mean_scores
from bgekit.evaluation.benchmarks.local_folders import benchmark_tasks, find_tasks
from bgekit.evaluation.tasks.base import Items, Scores


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_facts(folder, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(facts))


def write_sts(folder, split="test", **facts):
    write(folder / f"{split}.jsonl", *({"sentence1": "a", "sentence2": f"b{i}", "score": i} for i in range(3)))
    if facts:
        write_facts(folder, task_type="sts", main_metric="cosine_spearman", splits={split: 3}, **facts)


def write_classes(folder, **facts):
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", *({"text": f"t{i}", "label": i % 2} for i in range(6)))
    if facts:
        write_facts(folder, task_type="classification", main_metric="accuracy", splits={"test": 6}, **facts)


def write_beir(folder, split="test"):
    write(folder / "corpus.jsonl", *({"_id": f"d{i}", "title": "", "text": f"text {i}"} for i in range(4)))
    write(folder / "queries.jsonl", {"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"})
    (folder / "qrels").mkdir()
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")


def test_tasks_are_found_by_folder(tmp_path):
    write_sts(tmp_path / "stsbenchmark")
    write_sts(tmp_path / "STS22-en")
    write_sts(tmp_path / "STS22-zh")
    write_sts(tmp_path / "STS12Extra")
    write_classes(tmp_path / "AmazonCounterfactualClassification-en")
    found = find_tasks("mteb-en", data_root=tmp_path)
    assert [task.name for task in found.tasks] == ["STS22", "STSBenchmark", "AmazonCounterfactualClassification"]
    assert found.tasks[2].samples_per_label == 32
    assert {task.language for task in found.tasks} == {"en"}
    assert len(found.missing) == 53 and "STS12" in found.missing and "STS17-en-en" in found.missing
    assert str(found).startswith("3 of 56 tasks are there; missing: ArguAna,")
    assert [task.name for task in find_tasks("c-mteb", data_root=tmp_path).tasks] == ["STS22"]


def test_dataset_json_says_name_subset_and_language(tmp_path):
    write_sts(tmp_path / "one", name="STSB", language="zh")
    write_classes(tmp_path / "two", name="AmazonReviewsClassification", subset="zh", language="zh")
    write_classes(tmp_path / "MassiveIntentClassification", name="MassiveIntentClassification", language="en")
    assert [task.name for task in find_tasks("c-mteb", data_root=tmp_path).tasks] == [
        "STSB", "AmazonReviewsClassification"
    ]  # fmt: skip
    assert [task.name for task in find_tasks("mteb-en", data_root=tmp_path).tasks] == ["MassiveIntentClassification"]


def test_beir_folders_get_the_protocol_of_their_task(tmp_path):
    write_beir(tmp_path / "fiqa")
    write_beir(tmp_path / "scifact")
    write_beir(tmp_path / "quora")
    tasks, notes = benchmark_tasks("beir", data_root=tmp_path)
    assert [(task.name, task.skip_identical_ids) for task in tasks] == [
        ("FiQA2018", True), ("QuoraRetrieval", True), ("SciFact", False)
    ]  # fmt: skip
    assert notes[0].startswith("beir: 3 of 15 tasks are there; missing: ArguAna, ")


def test_forums_and_languages_are_folders_below(tmp_path):
    from bgekit.evaluation.benchmarks.definitions import CQADUPSTACK

    for name in CQADUPSTACK[:11]:
        write_beir(tmp_path / "cqadupstack" / name.removeprefix("CQADupstack").removesuffix("Retrieval").lower())
    assert find_tasks("beir", data_root=tmp_path).tasks == []
    write_beir(tmp_path / CQADUPSTACK[11])
    (task,) = find_tasks("beir", data_root=tmp_path).tasks
    assert isinstance(task, MeanTask) and [part.name for part in task.parts] == list(CQADUPSTACK)
    write_beir(tmp_path / "MIRACLRetrieval" / "sw", split="dev")
    write_beir(tmp_path / "MIRACLRetrieval-zh", split="dev")
    found = find_tasks("miracl", data_root=tmp_path)
    assert len(found.missing) == 16
    assert [(task.name, task.language) for task in found.tasks] == [
        ("MIRACLRetrieval-sw", "sw"), ("MIRACLRetrieval-zh", "zh")
    ]  # fmt: skip


def test_data_that_does_not_say_its_language_is_none_of_many(tmp_path):
    write_beir(tmp_path / "MIRACLRetrieval", split="dev")
    assert find_tasks("miracl", data_root=tmp_path).tasks == []


def test_what_was_asked_for_must_be_there(tmp_path):
    write_sts(tmp_path / "STSBenchmark")
    with pytest.raises(ArgumentError, match="has no task 'SciFakt'"):
        benchmark_tasks("mteb-en", ["SciFakt"], tmp_path)
    with pytest.raises(DataError, match=r"no folder for SciFact of mteb-en.*SciFact, or where dataset\.json"):
        benchmark_tasks("mteb-en", ["SciFact", "STSBenchmark"], tmp_path)
    with pytest.raises(DataError, match=r"(?s)no folder for 35 tasks of c-mteb:\n  T2Retrieval\n.*and 25 more"):
        benchmark_tasks("c-mteb", data_root=tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        benchmark_tasks("c-mteb", data_root=tmp_path / "nothing")


def test_another_kind_under_the_name_is_refused(tmp_path):
    write_sts(tmp_path / "SciFact")
    with pytest.raises(DataError, match="should hold the one retrieval task SciFact, split test"):
        benchmark_tasks("beir", ["SciFact"], tmp_path)


def test_means_over_parts_weigh_parts_not_items():
    import numpy as np

    one = Scores({"m": 0.5}, Items(["a", "b"], "mean", {"value": np.asarray([0.25, 0.75])}))
    two = Scores({"m": 0.1, "other": 1.0}, Items(["a"], "mean", {"value": np.asarray([0.1])}))
    mean = mean_scores([one, two], ["x", "y"])
    assert mean.metrics == {"m": pytest.approx(0.3)}
    assert mean.items.ids == ["x/a", "x/b", "y/a"]
    assert mean.items.columns["value"].mean() == pytest.approx(0.3)


def test_shared_data(shared_path):
    root = shared_path("data")
    english = find_tasks("mteb-en", data_root=root)
    assert {task.name for task in english.tasks} == {
        "SciFact", "STS12", "STS13", "STS14", "STS15", "STSBenchmark", "AmazonCounterfactualClassification"
    }  # fmt: skip
    chinese = find_tasks("c-mteb", data_root=root)
    assert {task.name for task in chinese.tasks} == {"LCQMC", "PAWSX", "STSB", "AFQMC", "Ocnli", "Cmnli"}
    assert {task.main_metric for task in chinese.tasks} == {"cosine_spearman", "max_ap"}
