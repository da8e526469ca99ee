"""`bge models` and `bge info`."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bgekit.cli.main import main
from bgekit.models.families import FAMILIES


def test_models_shows_every_family_and_name(capsys):
    assert main(["models"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for family in FAMILIES:
        assert family.title in out
        for name in family.names:
            assert name in out


def test_models_filter(capsys):
    assert main(["models", "--filter", "BGE-small-zh-v1.5"]) == 0
    out = capsys.readouterr().out
    assert "BAAI/bge-small-zh-v1.5 (512, 24 million parameters)" in " ".join(out.split())
    assert "57.82 (c-mteb)" in out and "languages zh" in out
    assert "cls, unit length" in out
    assert "为这个句子生成表示以用于检索相关文章：" in out
    assert "licence MIT" in " ".join(out.split())
    assert "e5" not in out
    assert main(["models", "--filter", "no such thing"]) == 1


def test_models_of_several_licences_and_sizes(capsys):
    assert main(["models", "--filter", "bge-en-icl"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "BAAI/bge-en-icl (4096, 7.1 billion parameters)" in out
    assert "licence Apache-2.0" in out
    for family in FAMILIES:
        assert family.licences.keys() | family.parameters.keys() <= set(family.names)


def test_models_json(capsys):
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["title"] for row in rows] == [family.title for family in FAMILIES]
    row = next(row for row in rows if row["title"] == "BGE v1.5, English")
    assert row["models"][1] == {
        "name": "bge-base-en-v1.5", "id": "BAAI/bge-base-en-v1.5", "dimension": 768, "parameters": 109000000,
        "licence": "MIT", "published": {"mteb-en": 63.55},
    }  # fmt: skip
    assert row["pooling"] == "cls"
    assert row["query_prompt"] == ["Represent this sentence for searching relevant passages: ", ""]


def test_info_of_a_folder(tiny_bert, capsys):
    assert main(["info", str(tiny_bert)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(tiny_bert))
    rows = {line[2:17].strip(): line[17:].split() for line in out.splitlines()[2:]}
    assert rows["pooling"] == ["cls", "checkpoint"]
    assert rows["max length"] == ["64", "checkpoint"]
    assert rows["query prompt"] == ["none", "default"]
    # What is as it nearly always is, and how the weights are computed with, are not said.
    assert rows["weights in"] == ["float32", "checkpoint"]
    assert not rows.keys() & {"include prompt", "default prompt", "dense", "dtype"}
    assert main(["info", str(tiny_bert), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["dtype"] == "float32"


@pytest.mark.parametrize("name", ["mine", "bge-reranker-base"])
def test_info_of_a_reranker_in_a_folder(tiny_reranker, tmp_path, name, capsys):
    folder = tmp_path / name
    shutil.copytree(tiny_reranker, folder)
    assert main(["info", str(folder)]) == 0
    rows = {line[2:17].strip(): line[17:].split() for line in capsys.readouterr().out.splitlines()[3:]}
    assert rows["labels"][0] == "1" and rows["max length"][0] == "64"
    assert main(["info", str(folder), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)["card"]
    assert card["kind"] == "reranker" and card["architecture"] == "bert"
    assert "bge rerank" in card["use"]


def test_info_says_what_the_family_table_adds(tiny_bert, tmp_path, capsys):
    folder = tmp_path / "bge-small-en-v1.5"
    shutil.copytree(tiny_bert, folder)
    assert main(["info", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folder"] == str(folder)
    assert report["card"]["query prompt"] == ["Represent this sentence for searching relevant passages: ", ""]
    assert report["sources"]["query prompt"] == "family table (BGE v1.5, English)"
    assert report["sources"]["pooling"] == "checkpoint"


def test_info_of_a_model_that_is_not_here_but_known(capsys):
    assert main(["info", "BAAI/bge-large-zh-v1.5"]) == 0
    out = capsys.readouterr().out
    assert "The table of known families says this of it" in out
    assert "1024" in out


@pytest.mark.parametrize(
    ("name", "expected"), [("BAAI/bge-reranker-base", "FlagReranker"), ("text-embedding-3-small", "1536")]
)
def test_info_of_other_kinds(name, expected, capsys):
    assert main(["info", name]) == 0
    assert expected in capsys.readouterr().out


@pytest.fixture
def hub(tiny_bert):
    """A hub on this machine with one model, in fp16 as its config says; its address, and what was asked of it."""
    files = {path.relative_to(tiny_bert).as_posix(): path.read_bytes() for path in tiny_bert.rglob("*.*")}
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"dtype": "float16"}).encode()
    files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    files |= dict.fromkeys(("onnx/model.onnx", "pytorch_model.bin", "modeling.py"), b"x" * 1000)
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def digest(data):
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def answer(self, body):
            path = self.path.partition("?")[0]
            if "/tree/" in path:
                content = json.dumps(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                        for name, data in files.items()
                    ]
                ).encode()
            elif path.startswith("/api/models/owner/tiny"):
                siblings = [{"rfilename": name} for name in files]
                content = json.dumps({"id": "owner/tiny", "sha": commit, "siblings": siblings}).encode()
            else:
                name = path.split(f"/{commit}/")[-1]
                asked.append(name)
                content = files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{digest(content)}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_info_of_a_model_on_the_hub_fetches_no_weights(hub, tmp_path):
    address, asked = hub
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(*command):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    report = json.loads(run("-m", "bgekit", "info", "owner/tiny", "--json"))
    names = {"config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"}
    assert set(asked) == {*names, "tokenizer_config.json"}
    assert report["card"]["pooling"] == "cls" and report["card"]["max_length"] == 64
    assert (report["card"]["dtype"], report["sources"]["dtype"]) == ("float16", "config.json")
    # Later the model itself is fetched into the same folder.
    program = "from bgekit.models.hub import resolve; print(resolve('owner/tiny'))"
    folder = run("-c", program).strip()
    assert folder == report["folder"]
    assert {"model.safetensors", "tokenizer.json"} <= set(asked)
    assert not {"onnx/model.onnx", "pytorch_model.bin", "modeling.py"} & set(asked)


def test_info_of_nothing(tmp_path, capsys):
    assert main(["info", str(tmp_path / "nope")]) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_info_of_the_packaged_model(minilm, capsys):
    assert main(["info", minilm]) == 0
    assert "mean" in capsys.readouterr().out
