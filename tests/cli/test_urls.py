"""Verbs on object stores, with a real model and real data through a real S3 server, killed in the middle."""

import json
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from bgekit.cli.main import main
from bgekit.files.transfer import local_place
from conftest import shared

DOCUMENTS, QUERIES = 96, 12


def at(url):
    """Content by name of all files below a URL."""
    files, path = fsspec.core.url_to_fs(str(url))
    files.invalidate_cache()
    return {name.removeprefix(path).lstrip("/"): files.cat_file(name) for name in sorted(files.find(path))}


def lines_of(*names):
    return [json.loads(line) for line in shared("data", "Cranfield", *names).read_text("utf-8").splitlines()]


def data():
    """A part of Cranfield by file: documents, queries, judgements, and training rows made of these."""
    corpus = lines_of("corpus.jsonl")[:DOCUMENTS]
    texts = {row["_id"]: row["text"] for row in corpus}
    judged = [
        line.split("\t") for line in shared("data", "Cranfield", "qrels", "test.tsv").read_text().splitlines()[1:]
    ]
    pairs = [(query, document) for query, document, grade in judged if document in texts and int(grade) > 0]
    queries = [row for row in lines_of("queries.jsonl") if row["_id"] in {query for query, _ in pairs}][:QUERIES]
    known = {row["_id"]: row["text"] for row in queries}
    train = [{"query": known[query], "pos": [texts[document]]} for query, document in pairs if query in known]
    rows = {"corpus.jsonl": corpus, "queries.jsonl": queries, "train.jsonl": train}
    content = {name: "".join(json.dumps(row) + "\n" for row in each).encode() for name, each in rows.items()}
    lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t1" for query, document in pairs if query in known)]
    return content | {"qrels/test.tsv": ("\n".join(lines) + "\n").encode()}


def put(url, content):
    files, path = fsspec.core.url_to_fs(str(url))
    for name, each in content.items():
        files.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        files.pipe_file(f"{path}/{name}", each)


def killed(arguments, condition):
    """Run a command until there is something, and kill it with -9."""
    with subprocess.Popen([sys.executable, "-m", "bgekit", *arguments], stderr=subprocess.PIPE) as process:
        while not condition():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_encode_search_mine_and_eval_through_s3_give_what_they_give_on_the_disk(bucket, tmp_path, capsys, bge_small_en):
    content, model = data(), ["--model", str(bge_small_en), "--no-progress"]
    put(tmp_path / "data", content)
    put(f"{bucket}/data", content)

    def encode(place, output):
        return [
            "encode",
            f"{place}/data/corpus.jsonl",
            "-o",
            f"{place}/{output}",
            "--shard-size",
            "8",
            "--store-texts",
            *model,
        ]

    def finished(output):
        return sum(name.startswith("shard-") and name.endswith(".json") for name in at(f"{bucket}/{output}"))

    assert main(encode(tmp_path, "vectors")) == 0
    assert main(encode(bucket, "whole")) == 0
    killed(encode(bucket, "vectors"), lambda: finished("vectors") >= 2)
    assert 2 <= finished("vectors") < DOCUMENTS // 8
    assert "manifest.json" not in at(f"{bucket}/vectors")
    capsys.readouterr()
    assert main(encode(bucket, "vectors")) == 0
    assert "kept from an earlier run" in capsys.readouterr().out
    assert at(f"{bucket}/vectors") == at(f"{bucket}/whole")
    here, there = at(tmp_path / "vectors"), at(f"{bucket}/vectors")
    assert sorted(here[name] for name in here if name[:6] == "shard-") == sorted(
        there[name] for name in there if name[:6] == "shard-"
    )

    def search(place):
        assert main(["search", f"{place}/vectors", "-q", "heat conduction in slabs", "--json", *model]) == 0
        return capsys.readouterr().out

    assert search(bucket) == search(tmp_path) != ""

    def mine(place, output):
        return [
            "mine", "--input", f"{place}/data/train.jsonl", "--candidate-pool", f"{place}/data/corpus.jsonl",
            "--output", f"{place}/{output}", "--range", "2-40", "--negatives", "5", *model,
        ]  # fmt: skip

    work = local_place("runs", f"{bucket}/mined.jsonl.mining")
    assert main(mine(tmp_path, "mined.jsonl")) == 0
    killed(mine(bucket, "mined.jsonl"), lambda: work.is_dir() and any(work.glob("vectors-*/*.json")))
    assert "mined.jsonl" not in at(bucket)
    assert main(mine(bucket, "mined.jsonl")) == 0
    assert at(bucket)["mined.jsonl"] == (tmp_path / "mined.jsonl").read_bytes()
    assert {"mined.report.json", "mined.report.html"} <= set(at(bucket)) and not work.exists()

    for place in (str(tmp_path), bucket):
        assert main(["eval", "--data", f"{place}/data", "--output", f"{place}/scores", *model]) == 0
    scores = [json.loads(at(f"{place}/scores")["results.json"])["results"][0] for place in (str(tmp_path), bucket)]
    assert scores[0]["metrics"] == scores[1]["metrics"] and scores[0]["main_score"] > 30
    assert sorted(at(f"{bucket}/scores")) == ["per_item.jsonl", "report.html", "report.md", "results.json"]
