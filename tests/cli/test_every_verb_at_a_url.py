"""Every verb with inputs, and where it takes them outputs, at URLs; and what is refused there, in one line."""

import json
import re
import shutil

import fsspec
import pytest

from bgekit.cli.main import VERBS, main
from bgekit.data.records import Record
from bgekit.errors import DataError
from bgekit.serving import config
from conftest import WORDS

#: Where the inputs are: in memory, through fsspec.
URL = "memory://verbs"


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _text(n):
    return f"{WORDS[n % 50]} {WORDS[n * 7 % 50]} {WORDS[n * 3 % 41]} {n}"


CORPUS = [{"_id": f"d{n}", "title": "", "text": _text(n), "year": 2000 + n} for n in range(40)]
QUERIES = [{"_id": f"q{n}", "text": _text(n)[:12]} for n in range(12)]
QRELS = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(12))
ROWS = [
    {"query": _text(n)[:12], "pos": [_text(n)], "neg": [_text(n + 20), _text(n + 21)], "query_id": f"q{n}"}
    for n in range(12)
]
PAIRS = [
    {"sentence1": _text(n), "sentence2": f"{_text(n)} again" if n % 2 else _text(n + 17), "label": n % 2}
    for n in range(400)
]
FILES = {
    "corpus.jsonl": _lines(CORPUS),
    "texts/a.txt": "".join(f"{_text(n)}\n" for n in range(30)),
    "train.jsonl": _lines(ROWS + ROWS[:2]),
    "copies.jsonl": _lines(ROWS + ROWS[:2]),
    "pairs.jsonl": _lines(PAIRS),
    "groups.jsonl": _lines({"query": row["query"], "passages": row["pos"] + row["neg"]} for row in ROWS),
    "gone.txt": "d1\nd2\n",
    "pool/a.jsonl": _lines(CORPUS),
    "queries.jsonl": _lines(QUERIES),
    "qrels.tsv": QRELS,
    "judged/corpus.jsonl": _lines(CORPUS),
    "judged/queries.jsonl": _lines(QUERIES),
    "judged/qrels/test.tsv": QRELS,
    "benchmark/SciFact/corpus.jsonl": _lines(CORPUS),
    "benchmark/SciFact/queries.jsonl": _lines(QUERIES),
    "benchmark/SciFact/qrels/test.tsv": QRELS,
    "recipe.yaml": "stages:\n  clean: {verb: dedup, arguments: {input: PLACE/copies.jsonl}}\n",
}
STEP = "--max-steps 1 --save-strategy no --report-to none --disable-tqdm true --use-cpu --cache-path HERE/cache"

#: Verbs with inputs at PLACE -> what is compared: a file of HERE, or what is printed.
READS = {
    "encode AT/corpus.jsonl -o HERE/vectors --model BERT": "vectors/shard-00000.npy",
    "encode AT/texts -o HERE/vectors --model BERT --chunk": "vectors/shard-00000.npy",
    "search AT/corpus.jsonl --model BERT --json -q cat": "",
    "search AT/texts/*.txt --model BERT --json -q cat --index HERE/docs.index": "",
    "search AT/index -q cat --json": "",
    "search --index AT/index -q cat --json --where year<2020": "",
    "search AT/vectors --model BERT -q cat --json": "",
    "search AT/vectors --model BERT -q cat --json --index HERE/docs.index --index-type int8": "",
    "index add INDEX AT/texts": "",
    "index remove INDEX --ids AT/gone.txt": "",
    "map AT/corpus.jsonl --model BERT -o HERE/map.parquet": "map.parquet",
    "map AT/index -o HERE/map.parquet": "map.parquet",
    "map AT/vectors -o HERE/map.parquet": "map.parquet",
    "rerank AT/groups.jsonl --model RERANKER": "",
    "rerank AT/corpus.jsonl --model RERANKER -q cat": "",
    "eval --data AT/judged --model BERT": "",
    "eval --benchmark beir --data-root AT/benchmark --tasks SciFact --model BERT": "",
    "eval --data AT/judged --model BERT --modes dense bm25 hybrid --weights AT/weights.json": "",
    "calibrate --data AT/pairs.jsonl --model BERT --recall 0.5": "",
    "calibrate --texts AT/pool --model BERT --false-positive-rate 0.2": "",
    "calibrate --hybrid --data AT/judged --model BERT": "",
    f"pretrain --train-data AT/texts --model BERT --max-length 32 --output-dir HERE/out {STEP}":
        "out/model.safetensors",
    f"finetune --train-data AT/train.jsonl --eval-data AT/judged --model BERT --output-dir HERE/out {STEP}":
        "out/model.safetensors",
    f"finetune-reranker --train-data AT/train.jsonl --model RERANKER --max-length 32 --output-dir HERE/out {STEP}":
        "out/model.safetensors",
    "merge --model BERT BERT2 --data AT/train.jsonl --output HERE/merged": "merged/model.safetensors",
    "merge --model BERT BERT2 --eval-data AT/judged --search-points 2 --output HERE/merged": "merged/model.safetensors",
    "mine --model BERT --input AT/train.jsonl --candidate-pool AT/pool --qrels AT/qrels.tsv --queries AT/queries.jsonl "
    "--negatives 3 --range 0-20 -o HERE/mined.jsonl": "mined.jsonl",
    "mine --labelled-pairs --input AT/pairs.jsonl -o HERE/rows.jsonl": "rows.jsonl",
    "score --model RERANKER --input AT/train.jsonl -o HERE/scored.jsonl": "scored.jsonl",
    "dedup --input AT/copies.jsonl -o HERE/rows.jsonl": "rows.jsonl",
}  # fmt: skip


#: The same, with those marked that train or load several models.
READS_MARKED = [
    pytest.param(command, marks=pytest.mark.slow if command.startswith(("pretrain", "finetune", "merge")) else ())
    for command in READS
]

#: Verbs with outputs at TO -> what is compared.
WRITES = {
    "encode HERE/corpus.jsonl -o TO/vectors --model BERT --store-texts": "vectors",
    "mine --model BERT --input HERE/train.jsonl --negatives 2 --range 0-20 -o TO/out/mined.jsonl": "out/mined.jsonl",
    "mine --labelled-pairs --input HERE/pairs.jsonl -o TO/rows.jsonl": "rows.jsonl",
    "score --model RERANKER --input HERE/train.jsonl -o TO/scored.jsonl": "scored.jsonl",
    "dedup --input HERE/train.jsonl -o TO/rows.jsonl": "rows.jsonl",
    "eval --data HERE/judged --model BERT -o TO/scores": "scores/per_item.jsonl",
    "demo --write-corpus TO/pydocs.jsonl": "pydocs.jsonl",
}

#: What is refused at a URL -> why.
REFUSED = {
    "encode HERE/corpus.jsonl -o vectors --model AT/model": "models are read from the local disk",
    "rerank HERE/groups.jsonl --model AT/model": "models are read from the local disk",
    "info AT/model": "models are read from the local disk",
    "search HERE/corpus.jsonl --model NONE -q cat --index AT/new": "an index is made on the local disk only",
    "search HERE/corpus.jsonl --model NONE -q cat -o AT/found.jsonl": "this is written on the local disk only",
    "search --index AT/index -q cat --index-type int8": "an index is changed on the local disk only",
    "search --index AT/index -q cat --parts bm25": "an index is changed on the local disk only",
    "index add AT/index HERE/corpus.jsonl": "indexes are changed and shown on the local disk only",
    "index remove AT/index --where year=2000": "indexes are changed and shown on the local disk only",
    "index info AT/index": "indexes are changed and shown on the local disk only",
    "index compact AT/index": "indexes are changed and shown on the local disk only",
    "map HERE/corpus.jsonl --model NONE -o AT/map.parquet": "this is written on the local disk only",
    "map HERE/corpus.jsonl --model NONE -o map.parquet --plot AT/map.png": "this is written on the local disk only",
    "eval --data HERE/judged --model NONE -o AT/scores --keep-vectors": "keeps them in a local folder",
    "calibrate --data HERE/pairs.jsonl --model NONE -o AT/out": "this is written on the local disk only",
    "calibrate --data HERE/pairs.jsonl --model NONE --save AT/saved": "models are saved on the local disk only",
    "calibrate --hybrid --data HERE/judged --index AT/index": "an index keeps its weights on the local disk only",
    "calibrate --hybrid --data HERE/judged --model NONE -o AT/w.json": "this is written on the local disk only",
    "pretrain --train-data HERE/texts --model NONE --output-dir AT/out": "trained models are saved on the local disk",
    "finetune --train-data HERE/train.jsonl --model NONE --output-dir AT/out": "trained models are saved on the local",
    "finetune-reranker --train-data HERE/train.jsonl --model NONE --output-dir AT/out": "trained models are saved on",
    "merge --model BERT BERT2 --output AT/merged": "models are saved on the local disk only",
    "mine --model NONE --input HERE/train.jsonl -o mined.jsonl --work-folder AT/work": "this is written on the local",
    "recipe run HERE/recipe.yaml --work AT/runs": "this is written on the local disk only",
    "recipe pydocs -o AT/pydocs": "this is written on the local disk only",
    "demo --index AT/pydocs": "an index is made on the local disk only",
}

#: Those that have neither inputs nor outputs, or a test of their own below.
OTHERS = {"models", "completion", "serve"}


def test_no_verb_is_left_out():
    tested = {command.split()[0] for command in (*READS, *WRITES, *REFUSED)}
    assert tested == set(VERBS) - OTHERS


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_bert):
    """A folder of inputs, which are at the URL, too."""
    folder = tmp_path_factory.mktemp("verbs") / "verbs"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content.replace("PLACE", str(folder)))
    model, corpus, judged = ["--model", str(tiny_bert), "--quiet"], str(folder / "corpus.jsonl"), str(folder / "judged")
    assert main(["search", corpus, *model, "--keep", "year", "-q", "cat", "--index", str(folder / "index")]) == 0
    assert main(["encode", corpus, *model, "-o", str(folder / "vectors"), "--store-texts"]) == 0
    assert main(["calibrate", "--hybrid", "--data", judged, *model, "-o", str(folder / "weights.json")]) == 0
    for name in folder.rglob("*"):
        if name.is_file():
            content = name.read_bytes()
            if name.suffix == ".yaml":
                content = content.replace(str(folder).encode(), URL.encode())
            _files().pipe_file(f"{URL}/{name.relative_to(folder)}", content)
    return folder


def _files():
    return fsspec.filesystem("memory")


@pytest.fixture
def run(place, tiny_bert, make_model, tiny_reranker, tmp_path, monkeypatch, capsys):
    """A command with its names filled in: its exit code, and what it prints."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("bgekit.demo.standard_library", lambda: [Record("json", "json reads JSON")])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "index", tmp_path / "docs.index")
    capsys.readouterr()

    def run(command, **names):
        words = {
            "BERT2": str(make_model("bert", seed=1)), "BERT": str(tiny_bert), "RERANKER": str(tiny_reranker),
            "INDEX": str(tmp_path / "docs.index"), "NONE": "/nowhere/model", **names,
        }  # fmt: skip
        code = main([re.sub("|".join(words), lambda found: words[found[0]], each) for each in command.split()])
        return code, *capsys.readouterr()

    return run


def _content(path, what):
    """The bytes of a file, or of all files of a folder whose names say what is in them."""
    files, root = fsspec.core.url_to_fs(f"{path}/{what}")
    if files.isfile(root):
        return files.cat_file(root)
    return sorted(files.cat_file(name) for name in files.find(root) if "/shard-" in name)


@pytest.mark.parametrize("command", READS_MARKED)
def test_inputs(command, run, place, tmp_path):
    found = []
    for name, at in (("local", str(place)), ("remote", URL)):
        here = tmp_path / name
        here.mkdir()
        if " INDEX " in command and at == URL:
            shutil.rmtree(tmp_path / "docs.index")
            shutil.copytree(place / "index", tmp_path / "docs.index")
        code, out, err = run(command, AT=at, HERE=str(here))
        assert code == 0, err
        what = READS[command]
        found.append((here / what).read_bytes() if what else out.replace(str(here), "").replace(at, ""))
    assert found[0] == found[1]


@pytest.mark.parametrize("command", WRITES)
def test_outputs(command, run, place, tmp_path):
    to = "memory://written/" + command.split()[0]
    for each in (str(tmp_path / "out"), to):
        code, _, err = run(command, TO=each, HERE=str(place))
        assert code == 0, err
    assert _content(to, WRITES[command]) == _content(tmp_path / "out", WRITES[command])
    assert not list(tmp_path.glob("memory:*"))


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_refused_is_said_in_one_line(command, run, place, tmp_path):
    before = set(_files().store)
    code, _, err = run(command, AT=URL, HERE=str(place))
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("bge: error: ") and URL in last and REFUSED[command] in last
    assert "/nowhere/model" not in err  # Before a model is looked for.
    assert set(_files().store) == before and not list(tmp_path.glob("memory:*"))


def test_a_recipe_at_a_url_is_planned(run):
    code, out, err = run(f"recipe run {URL}/recipe.yaml --dry-run")
    assert code == 0, err
    assert f"bge dedup --input {URL}/copies.jsonl" in out


@pytest.mark.slow
def test_a_recipe_at_a_url_runs_its_stages_on_inputs_there(bucket, tmp_path, capsys):
    files, path = fsspec.core.url_to_fs(bucket)
    files.pipe_file(f"{path}/copies.jsonl", FILES["copies.jsonl"].encode())
    files.pipe_file(f"{path}/recipe.yaml", FILES["recipe.yaml"].replace("PLACE", bucket).encode())
    assert main(["recipe", "run", f"{bucket}/recipe.yaml", "--work", str(tmp_path / "runs")]) == 0, capsys.readouterr()
    assert (tmp_path / "runs" / "clean.jsonl").read_text() == _lines(ROWS)


def test_what_bge_serve_reads():
    _files().pipe(
        {f"{URL}/serve.yaml": b"models: {small: /models/small}\nlazy: true\n", f"{URL}/keys.txt": b"# mine\nk1\n"}
    )
    assert config.read_config(f"{URL}/serve.yaml") == ({"small": "/models/small"}, {"small": {}}, {"lazy": True})
    assert config.read_keys(f"{URL}/keys.txt") == ["k1"]
    with pytest.raises(DataError, match=f"{URL}/none.txt cannot be read: it does not exist"):
        config.read_keys(f"{URL}/none.txt")
