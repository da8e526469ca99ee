"""`bge map`, as it is called."""

import json
import sys

import pytest
from pyarrow import parquet

from bgekit.cli.main import main

TEXTS = ["the cat is small", "a dog runs fast by the river", "python code and class", "the cat is small"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text(
        "".join(json.dumps({"_id": f"d{row}", "text": text, "kind": row % 2}) + "\n" for row, text in enumerate(TEXTS))
    )
    return path


@pytest.fixture
def bge(capsys):
    def call(*arguments):
        code = main([*map(str, arguments), "--no-progress"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def test_a_file_its_index_and_its_shards(bge, corpus, tiny_bert, tmp_path):
    file, index = tmp_path / "out dir" / "map.parquet", tmp_path / "index"
    code, out, err = bge("map", corpus, "--model", tiny_bert, "--output", file, "--neighbors", 2)
    assert code == 0, err
    assert out.startswith(f"mapped 4 texts to {file}: 32 dimensions, 2 nearest texts of each (exact); ")
    assert f"embedding-atlas '{file}' --text text --vector vector --neighbors neighbors" in out
    table = parquet.read_table(file)
    assert table["id"].to_pylist() == ["d0", "d1", "d2", "d3"] and table["text"].to_pylist() == TEXTS
    neighbors = table["neighbors"].to_pylist()
    assert neighbors[0]["ids"][:2] == [0, 3] and neighbors[0]["distances"][:2] == [0, pytest.approx(0, abs=1e-6)]
    assert table["near_copy"].to_pylist()[0] and table["near_copy"].to_pylist()[3]
    # An index needs no model, and gives the same map; so do shards.
    assert bge("search", corpus, "-m", tiny_bert, "--index", index, "-q", "x")[0] == 0
    again, shards = tmp_path / "again.parquet", tmp_path / "shards"
    assert bge("map", index, "-o", again, "--neighbors", 2, "--quiet")[:2] == (0, "")
    assert parquet.read_table(again).equals(table)
    assert bge("encode", corpus, "-o", shards, "--model", tiny_bert, "--store-texts")[0] == 0
    assert bge("map", shards, "-o", again, "--neighbors", 2, "--overwrite")[0] == 0
    assert parquet.read_table(again).equals(table)


def test_a_picture(bge, corpus, tiny_bert, tmp_path):
    file, plot = tmp_path / "map.parquet", tmp_path / "map.png"
    code, out, err = bge("map", corpus, "-m", tiny_bert, "-o", file, "--plot", plot, "--color", "kind")
    assert code == 0, err
    assert parquet.read_table(file)["kind"].to_pylist() == [0, 1, 0, 1]
    assert f"picture in {plot}" in out
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_wrong_usage_is_told_before_there_is_work(bge, corpus, tiny_bert, tmp_path):
    def error(*arguments):
        code, _, err = bge("map", *arguments)
        assert code == 1
        return err

    file, index = tmp_path / "map.parquet", tmp_path / "index"
    assert "ends in .parquet" in error(corpus, "-m", "none", "-o", tmp_path / "map.csv")
    assert "--model is needed" in error(corpus, "-o", file)
    assert "give --plot FILE.png" in error(corpus, "-m", "none", "-o", file, "--color", "label")
    assert ".png or .svg" in error(corpus, "-m", "none", "-o", file, "--plot", "map.jpg")
    assert "--near-threshold is a cosine" in error(corpus, "-m", "none", "-o", file, "--near-threshold", "95")
    copy = tmp_path / "texts.parquet"
    assert "would replace what is mapped" in error(copy, "-m", "none", "-o", copy)
    assert "docs.json" in error(tmp_path / "docs.json", "-m", "none", "-o", file)
    assert bge("search", corpus, "-m", tiny_bert, "--index", index, "-q", "x")[0] == 0
    assert "leave out --model and --chunk" in error(index, "-m", "none", "--chunk", "-o", file)
    assert "give it alone" in error(index, corpus, "-o", file)
    said = error(index, "-o", file, "--plot", tmp_path / "a.png", "--color", "label")
    assert "no such column; it has id, text, vector" in said
    assert not file.exists()


def test_help_needs_no_torch():
    code = "import sys; from bgekit.cli.main import main; main(['map', '--help'])"
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nexcept SystemExit:\n    assert 'torch' not in sys.modules"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "bge map SOURCE... -o FILE.parquet" in done.stdout
