"""Mining from files to files, with an embedder whose vectors come from the texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bgekit.mining.mining as run_module
from bgekit.errors import ArgumentError, DataError, OutputError
from bgekit.inference.embedder import FlagModel
from bgekit.inference.similarity import unit
from bgekit.mining.dense import _DeviceTopK
from bgekit.mining.mining import Mining, mine
from bgekit.mining.negatives import Choice

pytestmark = pytest.mark.usefixtures("quick_figures")
POOL = [f"passage {number}" for number in range(120)]
ROWS = [{"query": f"query {number}", "pos": [f"passage {number}"], "neg": ["old"]} for number in range(8)]


def ranked(model, query, texts):
    scores = unit(model.vector(query)) @ unit(np.stack([model.vector(text) for text in texts])).T
    order = np.argsort(-scores, kind="stable")
    return [texts[place] for place in order], scores[order]


def normal(text):
    return "".join(text.casefold().split())


def test_raw_ranks(mined, embedder):
    rows, report = mined(ROWS, POOL, range=(10, 30), negatives=5)
    for source, row in zip(ROWS, rows, strict=True):
        ranking, scores = ranked(embedder(), row["query"], POOL)
        assert row["pos"] == source["pos"]
        assert len(set(row["neg"])) == 5
        assert set(row["neg"]) <= set(ranking[10:30]) - set(source["pos"])
        expected = [scores[ranking.index(text)] for text in row["neg"]]
        assert row["neg_scores"] == pytest.approx(expected, abs=2e-6)
        assert row["pos_scores"] == pytest.approx([scores[ranking.index(source["pos"][0])]], abs=2e-6)
    assert report["negatives"] == 40
    assert report["filled"] == 0
    assert sum(count for _, _, count in report["ranks"]) == 40
    assert [ends for *ends, _ in report["ranks"]] == [[11, 20], [21, 30]]
    suspected = sum(score >= row["pos_scores"][0] for row in rows for score in row["neg_scores"])
    assert report["suspected_false"]["count"] == suspected > 0
    assert len(report["samples"]) == 5


def test_the_whole_range_is_taken_when_it_is_wanted(mined, embedder):
    rows, _ = mined(ROWS, POOL, range=(3, 20), negatives=17, fill=False, sampling="top")
    for row in rows:
        ranking, _ = ranked(embedder(), row["query"], POOL)
        assert row["neg"] == [text for text in ranking[3:20] if text not in row["pos"]]


def test_random_corpora(mined):
    for seed in range(15):
        generator = np.random.default_rng(seed)
        words = lambda: " ".join(generator.choice(["a", "B", "c  d", "e"], generator.integers(1, 4)))  # noqa: B023, E731
        rows = [{"query": words(), "pos": [words()], "neg": [words(), words()]} for _ in range(12)]
        result, _ = mined(rows, [words() for _ in range(40)] if seed % 2 else None, range=(1, 9), negatives=6)
        for row in result:
            taken = [normal(text) for text in (row["query"], *row["pos"])]
            chosen = [normal(text) for text in row["neg"]]
            assert not set(taken) & set(chosen)
            assert len(set(chosen)) == len(chosen)


def test_seed(mined, tmp_path, monkeypatch):
    outputs = {}
    for name, seed, block in (("a", 1, 2048), ("b", 1, 3), ("c", 2, 2048)):
        monkeypatch.setattr(run_module, "BLOCK", block)
        mined(ROWS, POOL, name=f"{name}.jsonl", seed=seed, range=(2, 60))
        outputs[name] = (tmp_path / f"{name}.jsonl").read_bytes(), (tmp_path / f"{name}.report.json").read_bytes()
    assert outputs["a"] == outputs["b"]
    assert outputs["a"][0] != outputs["c"][0]


def test_guards(mined):
    def scores(**guards):
        rows, report = mined(ROWS, POOL, range=(0, 120), negatives=20, fill=False, **guards)
        return rows, report

    rows, report = scores(margin=0.1)
    assert all(score <= row["pos_scores"][0] - 0.1 + 1e-6 for row in rows for score in row["neg_scores"])
    assert report["left_out"]["margin"] > 0
    rows, _ = scores(max_positive_ratio=0.9)
    for row in rows:
        positive = row["pos_scores"][0]
        assert all(score <= positive - 0.1 * abs(positive) + 1e-6 for score in row["neg_scores"])
    rows, report = scores(max_score=-0.1)
    assert max(score for row in rows for score in row["neg_scores"]) <= -0.1
    assert report["suspected_false"]["share"] < 0.5


def test_fill(mined):
    rows, report = mined(ROWS, POOL, range=(0, 4), negatives=9, max_score=0.5)
    assert all(len(set(row["neg"])) == 9 and not set(row["pos"]) & set(row["neg"]) for row in rows)
    assert all(score <= 0.5 for row in rows for score in row["neg_scores"])
    assert report["filled"] == report["miners"]["fill"] > 0
    rows, report = mined(ROWS, POOL, range=(0, 4), negatives=9, fill=False)
    assert all(3 <= len(row["neg"]) <= 4 for row in rows)
    assert (report["filled"], report["rows_with_too_few"]) == (0, 8)


def test_without_a_pool_the_passages_of_all_rows_are_candidates(mined):
    rows, report = mined(ROWS, range=(0, 50), negatives=20)
    assert report["settings"]["candidates"] == 9
    for source, row in zip(ROWS, rows, strict=True):
        assert set(row["neg"]) == {text for each in ROWS for text in (*each["pos"], "old")} - set(source["pos"])


def test_existing_negatives(mined):
    source = [{**ROWS[0], "neg": ["OLD", "old", "passage  0", "older"], "neg_scores": [1, 2, 3, 4], "pos_scores": [5],
               "type": "normal", "more": {"a": 1}}]  # fmt: skip
    (replaced,), _ = mined(source, POOL, range=(0, 50), negatives=3)
    assert "OLD" not in replaced["neg"]
    assert (replaced["more"], replaced["type"], len(replaced["neg_scores"])) == ({"a": 1}, "normal", 3)
    (kept,), report = mined(source, [*POOL, " old"], range=(0, 121), negatives=3, keep_existing=True)
    assert kept["neg"][:2] == ["OLD", "older"]
    assert (len(kept["neg"]), len(kept["neg_scores"]), report["kept"]) == (5, 5, 2)
    assert " old" not in kept["neg"]
    (bare,), _ = mined(source, POOL, range=(0, 50), negatives=3, scores=False)
    assert not {"pos_scores", "neg_scores"} & bare.keys()


def test_row_prompts(mined, embedder):
    model = embedder()
    model.sees_prompts = True
    rows, _ = mined([{**ROWS[0], "prompt": "other: "}, ROWS[1]], POOL, range=(0, 10), negatives=10, models=[model])
    for row, query in zip(rows, ("other: query 0", "q: query 1"), strict=True):
        assert set(row["neg"]) == set(ranked(model, query, POOL)[0][:10]) - set(row["pos"])


def test_random_and_bm25_need_no_model(mined):
    rows, report = mined(ROWS, POOL, models=[], miners=("random",), negatives=7)
    assert all(len(set(row["neg"])) == 7 and "neg_scores" not in row for row in rows)
    assert report["miners"] == {"random": 56}
    pool = [f"query number {number} and {'more ' * number}" for number in range(30)]
    rows, report = mined(ROWS, pool, models=[], miners=("bm25",), negatives=7, range=(0, 10))
    assert report["miners"] == {"bm25": 56}
    assert all(len(row["neg_scores"]) == 7 for row in rows)


def test_several_miners(mined, embedder):
    other = embedder(name="other")
    other.salt = "other"
    pool = [f"query {number % 8} of {number}" for number in range(100)]
    rows, report = mined(
        ROWS, pool, models=[embedder(), other], miners=("dense", "bm25"), shares=(2, 1, 1), negatives=8, range=(0, 40)
    )
    assert sum(report["miners"].values()) == 64
    assert report["miners"]["table"] >= report["miners"]["other"] >= 14
    assert all(len(row["neg"]) == 8 for row in rows)


def test_reranker(mined):
    class Longest:
        fingerprint = "longest"

        def compute_score(self, pairs, *, show_progress):
            return [len(passage) for _, passage in pairs]

    rows, report = mined(ROWS, POOL, range=(0, 120), negatives=12, reranker=Longest(), max_reranker_score=10)
    assert all(len(text) <= 10 for row in rows for text in row["neg"])
    assert all(len(row["neg"]) == 12 for row in rows)
    assert report["left_out"]["max_reranker_score"] > 0


def test_a_reranker_that_refuses_nearly_everything_is_not_asked_for_ever(mined):
    class Never:
        fingerprint = "never"
        pairs = 0

        def compute_score(self, pairs, *, show_progress):
            self.pairs += len(pairs)
            return [float(passage == "passage 119") - 0.5 for _, passage in pairs]

    reranker = Never()
    pool = [f"passage {number}" for number in range(5000)]
    rows, report = mined(ROWS, pool, range=(0, 20), negatives=2, reranker=reranker, max_reranker_score=-1.0)
    assert all(row["neg"] == [] for row in rows)
    assert report["left_out"]["max_reranker_score"] == reranker.pairs
    assert len(ROWS) * 40 < reranker.pairs <= len(ROWS) * 42


def test_titles_of_a_pool_are_not_put_before_its_texts(mined, write, tmp_path, embedder):
    pool = write("titled.jsonl", [{"title": "Cats", "body": text} for text in POOL])
    task = Mining(write("in.jsonl", ROWS), str(tmp_path / "out.jsonl"), pool=(pool,), choice=Choice(first=0, last=120),
                  text_field="body")  # fmt: skip
    mine(task, [embedder()])
    for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()):
        assert set(row["neg"]) < set(POOL) - set(row["pos"])


def test_maximum_lengths_of_roles_count(mined, tiny_bert, tmp_path):
    outputs = []
    for lengths in ({}, {"passage_max_length": 3}, {"query_max_length": 3}):
        with FlagModel(tiny_bert, devices="cpu", **lengths) as model:
            mined(ROWS, POOL, models=[model], work=str(tmp_path / "work"), range=(0, 50))
        outputs.append((tmp_path / "out.jsonl").read_bytes())
    assert len(set(outputs)) == 3


@pytest.mark.draws
def test_a_full_disk_leaves_the_earlier_report(mined, tmp_path, monkeypatch):
    mined(ROWS, POOL)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}
    assert before.keys() == {"out.jsonl", "out.report.json", "out.report.html"}
    monkeypatch.setattr("bgekit.mining.mining._chunks", lambda parts: _full())
    with pytest.raises(OutputError, match=r"cannot write .*out\.jsonl: no room"):
        mined(ROWS, POOL, seed=9)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out.*") if path.is_file()} == before


def _full():
    yield b"half a li"
    raise OSError(28, "no room")


def test_hnsw(mined):
    pytest.importorskip("faiss")
    exact, _ = mined(ROWS, POOL, range=(0, 20), negatives=20, sampling="top", fill=False)
    found, _ = mined(ROWS, POOL, range=(0, 20), negatives=20, sampling="top", fill=False, index="hnsw")
    assert exact == found


def test_goes_on_after_a_failure(mined, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(run_module, "BLOCK", 3)
    mined(ROWS, POOL, name="whole.jsonl")

    def stop(done, total):
        if done == 6:
            raise OSError("the power is gone")

    with pytest.raises(OSError, match="power"):
        mined(ROWS, POOL, name="broken.jsonl", advance=stop)
    assert not (tmp_path / "broken.jsonl").exists()
    model = embedder()
    mined(ROWS, POOL, name="broken.jsonl", models=[model])
    assert model.encoded == 2  # The queries of the last block.
    assert (tmp_path / "broken.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "broken.report.json").read_bytes() == (tmp_path / "whole.report.json").read_bytes()
    assert not list(tmp_path.glob("*.mining"))


def test_goes_on_with_another_range_in_a_work_folder(mined, tmp_path, embedder):
    mined(ROWS, POOL, work=str(tmp_path / "work"))
    model = embedder()
    mined(ROWS, POOL, work=str(tmp_path / "work"), range=(0, 5), models=[model])
    assert model.encoded == len(ROWS)


def test_bad_input(mined, tmp_path, embedder):
    with pytest.raises(DataError, match=r"in.jsonl, line 2: pos is empty"):
        mined([ROWS[0], {"query": "q", "pos": []}], POOL)
    with pytest.raises(DataError, match=r"in.jsonl, line 1: a scored pair"):
        mined([{"query": "q", "pos": ["p"], "score": 1}], POOL)
    (tmp_path / "pool.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    task = Mining(str(tmp_path / "in.jsonl"), str(tmp_path / "o"), pool=(str(tmp_path / "pool.jsonl"),))
    (tmp_path / "in.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DataError, match=r"pool.jsonl, line 2"):
        mine(task, [embedder()])
    with pytest.raises(ArgumentError, match="also an input"):
        mine(Mining(task.input, task.input), [embedder()])
    with pytest.raises(ArgumentError, match=r"call it .jsonl"):
        mine(Mining(task.input, str(tmp_path / "o.jsonl.gz")), [embedder()])
    with pytest.raises(ArgumentError, match="2 miners"):
        mine(Mining(task.input, task.output, miners=("dense", "random"), choice=Choice(shares=(4,))), [embedder()])
    with pytest.raises(ArgumentError, match="give one"):
        mine(Mining(task.input, task.output, miners=("bm25",)), [embedder(), embedder()])
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(ArgumentError, match=device):
            mine(Mining(task.input, task.output, search_device=device), [embedder()])
    with pytest.raises(ArgumentError, match="range"):
        Choice(first=5, last=5)
    assert not Path(task.output).exists()


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_copies_are_ranked_by_their_place_wherever_vectors_are_compared(monkeypatch, precision):
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: precision)
    generator = np.random.default_rng(5)
    several = unit(generator.normal(size=(30, 129)))
    rows = generator.integers(0, 30, 1203)
    queries = unit(several[:5] + 0.1 * generator.normal(size=(5, 129)))
    expected = [np.lexsort((np.arange(1203), -(several.astype(float) @ query)[rows]))[:70] for query in queries]
    best = _DeviceTopK(queries, 70, cosine=False, device="cpu")
    for first in range(0, 1203, 64):
        best.add(first, several[rows[first : first + 64]])
    for (scores, found), wanted in zip(best.found(), expected, strict=True):
        assert found.tolist() == wanted.tolist()
        assert (np.diff(scores) <= 0).all()
