"""`bge encode` as a program, with a real (tiny) model."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bgekit.cli.main import main
from bgekit.inference.shards import load_shards
from precisions import BFLOAT16

BGE = [sys.executable, "-m", "bgekit", "encode"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture
def corpus(tmp_path, texts):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts(300))))
    return path


@pytest.fixture(scope="session")
def slow_model(make_model):
    """A model slow enough to be interrupted at work."""
    return make_model("bert", name="slow", num_hidden_layers=24)


def start(*arguments, **options):
    return subprocess.Popen(
        [*BGE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def encode(*arguments):
    """`bge encode` in this process, where nothing interrupts it; its exit code."""
    return main(["encode", *map(str, arguments)])


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "bge encode does not get on"
        time.sleep(0.01)


def test_encode(corpus, tiny_bert, tmp_path, capsys, texts):
    from bgekit import FlagModel

    out = tmp_path / "out"
    code = main(["encode", str(corpus), "-o", str(out), "--model", str(tiny_bert), "--shard-size", "128", "--fp32"])
    assert code == 0
    said = capsys.readouterr()
    assert f"300 texts in 3 shards in {out}; 300 encoded in" in said.out
    assert "were cut at the maximum length" in said.out
    assert f"next: bge search {out} --model {tiny_bert}" in said.out
    # Off a terminal there is a line every 30 seconds, and what was cut is said once.
    assert "texts/s" not in said.err and "too long" not in said.err
    shards = load_shards(out)
    assert shards.ids == [f"d{n}" for n in range(300)]
    assert shards.manifest["precision"] == "float32"
    expected = FlagModel(tiny_bert, use_fp16=False).encode_corpus(texts(300))
    np.testing.assert_allclose(shards.vectors(), expected, atol=1e-5)
    assert shards.manifest["truncated"]["count"] == len(expected.truncated) > 0


def test_quiet_and_no_progress(corpus, tiny_bert, tmp_path, capsys):
    common = ["encode", str(corpus), "--model", str(tiny_bert)]
    assert main([*common, "-o", str(tmp_path / "a"), "--no-progress"]) == 0
    said = capsys.readouterr()
    assert "texts/s" in said.out
    assert "%|" not in said.err
    assert main([*common, "-o", str(tmp_path / "b"), "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_standard_input_gzipped(corpus, tiny_bert, tmp_path):
    data = gzip.compress(corpus.read_bytes())
    command = [*BGE, "-", "-o", str(tmp_path / "out"), "--model", str(tiny_bert), "--no-progress"]
    subprocess.run(command, input=data, check=True, timeout=120, capture_output=True)
    assert len(load_shards(tmp_path / "out")) == 300


def test_a_bad_line(corpus, tiny_bert, tmp_path, capsys):
    with corpus.open("a") as file:
        file.write('{"text": 5}\n')
    common = ["encode", str(corpus), "-o", str(tmp_path / "out"), "--model", str(tiny_bert), "--no-progress"]
    assert main(common) == 1
    assert f"bge: error: {corpus}, line 301: the field text must be a string" in capsys.readouterr().err
    assert main([*common, "--on-error", "skip"]) == 0
    said = capsys.readouterr()
    assert "1 line skipped" in said.out
    assert f"skipped {corpus}, line 301" in said.err
    assert load_shards(tmp_path / "out").manifest["skipped"]["lines"][0]["line"] == 301


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--shard-size", "7"], "shard_size was 1024 and is 7 now"),
        (["--fp32", "--kind", "query"], "kind was 'document' and is 'query' now"),
        (["--query-instruction", "find: "], "model prompts was"),
        (["--pooling", "mean"], "model pooling was 'cls' and is 'mean' now"),
    ],
)
def test_other_settings_are_refused(corpus, tiny_bert, tmp_path, capsys, change, message):
    common = ["encode", str(corpus), "-o", str(tmp_path / "out"), "--model", str(tiny_bert), "--quiet"]
    assert main(common) == 0
    assert main([*common, *change]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "--overwrite" in error
    assert main([*common, *change, "--overwrite"]) == 0


def test_what_can_fail_at_once_does(tmp_path, corpus, capsys, monkeypatch):
    def no_model(*_):
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("bgekit.cli.options.load_model", no_model)
    assert main(["encode", str(tmp_path / "nope.jsonl"), "-o", str(tmp_path / "out"), "-m", "x"]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert main(["encode", str(corpus), "-o", str(corpus), "-m", "x"]) == 1
    assert "is a file; the output must be a folder" in capsys.readouterr().err


def test_an_unknown_model_leaves_no_folder(corpus, tmp_path, capsys):
    assert main(["encode", str(corpus), "-o", str(tmp_path / "out"), "-m", str(tmp_path / "nope")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_chunks(tiny_bert, tmp_path):
    pytest.importorskip("bgekit.data.chunking")
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"_id": "a", "text": "cat dog bird " * 100}) + '\n{"_id": "b", "text": "tree"}\n')
    out = tmp_path / "out"
    command = ["encode", str(path), "-o", str(out), "-m", str(tiny_bert), "--quiet", "--store-texts"]
    assert main([*command, "--chunk", "--chunk-size", "40", "--chunk-overlap", "10"]) == 0
    shards = load_shards(out)
    assert len(shards) > 8
    assert shards.ids[:2] == ["a#0", "a#1"]
    assert shards.ids[-1] == "b#0"
    assert shards.manifest["truncated"]["count"] == 0
    assert shards.manifest["settings"]["chunk_size"] == 40
    assert main([*command, "--overwrite", "--chunk-size", "63"]) == 1


# --- interruptions


@pytest.fixture(scope="session")
def reference(slow_model, texts, tmp_path_factory):
    """A corpus, and what a run that nothing disturbs makes of it."""
    folder = tmp_path_factory.mktemp("reference")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(texts(300)))
    assert encode(corpus, "-o", folder / "whole", "--model", slow_model, "--shard-size", "20", "--quiet") == 0
    return corpus, contents(folder / "whole")


@POSIX
@pytest.mark.parametrize("finished", [0, 2, 11])
def test_kill_and_rerun(reference, slow_model, tmp_path, finished):
    corpus, whole = reference
    out = tmp_path / "out"
    options = ["--model", slow_model, "--shard-size", "20", "--quiet"]
    process = start(corpus, "-o", out, *options)
    wait_for(lambda: out.exists() and len(list(out.glob("shard-*.json"))) >= finished, process)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    assert encode(corpus, "-o", out, *options) == 0
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert contents(out) == whole


@POSIX
@pytest.mark.parametrize("moment", ["start", "work"])
def test_ctrl_c(corpus, slow_model, tmp_path, moment, capsys):
    out = tmp_path / "out"
    options = ["--model", slow_model, "--shard-size", "20"]
    process = start(corpus, "-o", out, *options)
    shards = 1 if moment == "work" else 0
    wait_for(lambda: out.exists() and len(list(out.glob("shard-*.json"))) >= shards, process)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < 3
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("bge: interrupted; the same command continues from the shards")
    assert "Traceback" not in said
    if moment == "work":
        assert not list(out.glob("*.tmp"))
        kept = len(list(out.glob("shard-*.json")))
        assert encode(corpus, "-o", out, *options) == 0
        assert f"{20 * kept} kept from an earlier run" in capsys.readouterr().out


@POSIX
def test_ctrl_c_reaches_background_jobs_of_scripts(corpus, slow_model, tmp_path):
    """Shells start those with SIGINT ignored."""
    out = tmp_path / "out"
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start(corpus, "-o", out, "--model", slow_model, "--shard-size", "20", **ignored)
    wait_for(lambda: out.exists(), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@POSIX
def test_second_writer(corpus, slow_model, tmp_path):
    out = tmp_path / "out"
    process = start(corpus, "-o", out, "--model", slow_model, "--shard-size", "20")
    try:
        wait_for(lambda: (out / ".lock").exists() and (out / ".lock").read_text(), process)
        second = subprocess.run(
            [*BGE, corpus, "-o", out, "--model", slow_model], capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 1
        assert f"is being written by process {process.pid}" in second.stderr
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_packaged_model(minilm, tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("A cat sat on a mat.\nThe feline rested on the rug.\nShares fell sharply on Monday.\n")
    assert main(["encode", str(path), "-o", str(tmp_path / "out"), "--model", minilm]) == 0
    vectors = load_shards(tmp_path / "out").vectors()
    scores = vectors @ vectors.T
    assert scores[0, 1] > scores[0, 2] + 0.3


@pytest.fixture(scope="session")
def wide_model(make_model):
    """Layers of real width: their sums are rounded otherwise when other numbers of threads share them."""
    return make_model("bert", name="wide", hidden_size=384, num_attention_heads=12, intermediate_size=1536)


@pytest.mark.parametrize("precision", ["float32", BFLOAT16])
def test_a_short_rest_has_the_same_bytes_when_it_is_encoded_alone(wide_model, texts, precision):
    """A whole run computes the last shard behind others, a resumed run perhaps by itself."""
    from bgekit import FlagModel

    model = FlagModel(wide_model, dtype=precision, devices="cpu")
    before = texts(40, longest=20)
    for seed in range(1, 13):
        rest = texts(seed, seed=seed, longest=20)
        behind_others = [encoded.vectors for encoded in model.encode_blocks([before, rest])][1]
        (alone,) = (encoded.vectors for encoded in model.encode_blocks([rest]))
        assert alone.tobytes() == behind_others.tobytes(), seed


def run(*arguments):
    return main(["encode", *map(str, arguments), "--fp32", "--no-progress"])


def test_a_run_that_came_to_nothing_binds_nobody(corpus, tiny_bert, tmp_path, capsys):
    rows = [{"body": "a good line"}] * 3
    corpus.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"other": 1}]))
    command = (corpus, "-o", tmp_path / "out", "--model", tiny_bert)
    assert run(*command, "--text-field", "text") == 1
    assert not (tmp_path / "out").exists()  # Seen in the first line, before there is any work.
    assert run(*command, "--text-field", "body", "--shard-size", 64) == 1
    assert (tmp_path / "out" / "manifest.json").exists()
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(*command, "--text-field", "body", "--max-length", 32, "--store-texts") == 0
    assert len(load_shards(tmp_path / "out")) == 3
    capsys.readouterr()
    assert run(*command, "--text-field", "body", "--max-length", 16, "--store-texts") == 1
    err = capsys.readouterr().err
    assert "max_length was 32 and is 16 now" in err and "fingerprint" not in err


def test_a_manifest_of_something_else_is_not_replaced(corpus, tiny_bert, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text('{"name": "an app"}')
    assert run(corpus, "-o", tmp_path / "out", "--model", tiny_bert) == 1
    assert "not a manifest of encoded shards" in capsys.readouterr().err
    assert manifest.read_text() == '{"name": "an app"}'


@pytest.mark.parametrize("verb", ["encode", "search", "calibrate", "rerank"])
def test_an_empty_file_is_an_error_that_names_it(verb, tiny_bert, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    more = {"encode": [empty, "-o", tmp_path / "out"], "search": [empty, "-q", "x"], "calibrate": ["--texts", empty],
            "rerank": [empty]}  # fmt: skip
    assert main([verb, *map(str, more[verb]), "--model", str(tiny_bert)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"bge: error: {empty}: there is no ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_in_another_encoding(tiny_bert, tmp_path, capsys):
    path = tmp_path / "gbk.txt"
    path.write_bytes("样例文档\n模型向量检索\n".encode("gbk"))
    assert run(path, "-o", tmp_path / "out", "--model", tiny_bert, "--on-error", "skip") == 1
    assert "it looks like Chinese in GBK or GB18030: --encoding gb18030 reads it" in capsys.readouterr().err
    assert run(path, "-o", tmp_path / "out", "--model", tiny_bert, "--encoding", "gb18030", "--store-texts") == 0
    assert "模型向量检索" in (tmp_path / "out" / "shard-00000.ids.jsonl").read_text(encoding="utf-8")


def test_an_unquoted_tsv_keeps_its_lines(tiny_bert, tmp_path, capsys):
    path = tmp_path / "tatoeba.tsv"
    path.write_text('id\ttext\n1\t"Who is it?\n2\tNobody.\n3\t"Me," she said.\n')
    assert run(path, "-o", tmp_path / "out", "--model", tiny_bert) == 0
    assert "3 texts in 1 shard" in capsys.readouterr().out
    assert run(path, "-o", tmp_path / "csv", "--model", tiny_bert, "--quoting", "csv") == 1
    assert "--quoting none" in capsys.readouterr().err


def test_columns_are_kept(tiny_bert, tmp_path):
    path, shards = tmp_path / "a.csv", tmp_path / "v"
    path.write_text("text,year\na cat,2020\na dog,\n")
    arguments = ["encode", str(path), "-o", str(shards), "--model", str(tiny_bert), "--no-progress", "--keep", "year"]
    assert main(arguments) == 0
    assert load_shards(shards).metadata.to_pylist() == [{"year": 2020}, {"year": None}]
