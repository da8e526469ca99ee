"""Saved folders give equal vectors in the oldest and the newest sentence-transformers, and theirs give equal ones here.

The oldest release is 2.7.0. `make dev` puts it into `.venv/oldest-sentence-transformers`, on the transformers that is
installed; BGEKIT_ST_OLD_PYTHON can name the Python of an environment that has it with a transformers of its time.
"""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bgekit import FlagModel

pytest.importorskip("sentence_transformers")

#: Architecture, pooling. Together every pooling, with and without padding, and every kind of position.
KINDS = [
    ("bert", "cls"), ("roberta", "mean"), ("xlm-roberta", "last_token"), ("distilbert", "weighted_mean"),
    ("mpnet", "max"), ("t5", "mean"),
]  # fmt: skip


def exchange(texts, jobs):
    """Encode with what is saved in folders, and save it again; the version of sentence-transformers."""
    import numpy as np
    import sentence_transformers

    for source, answers, target in jobs:
        model = sentence_transformers.SentenceTransformer(source, device="cpu").float()
        length = model.max_seq_length
        np.savez(answers, plain=model.encode(texts), query=model.encode(texts, prompt_name="query"), length=length)
        model.save(target)
    return sentence_transformers.__version__


CHILD = f"""
import json, sys
{inspect.getsource(exchange)}
print("version", exchange(*json.load(sys.stdin)))
"""


def oldest(texts, jobs):
    """`exchange` in a process of a Python that has sentence-transformers 2.7."""
    if python := os.environ.get("BGEKIT_ST_OLD_PYTHON"):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    else:
        folder, python = Path(sys.prefix) / "oldest-sentence-transformers", sys.executable
        if not folder.is_dir():
            pytest.skip("sentence-transformers 2.7.0 is not installed (make dev does that)")
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", CHILD], input=json.dumps([texts, jobs]), env=environment,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split("version")[-1].strip()


@pytest.fixture(scope="session")
def inputs(texts):
    return [*texts(12, longest=100), "样例数据-1", "Mixed CASE Élan 文本!", ""]


@pytest.fixture(scope="session")
def models(make_model, with_dense, tmp_path_factory):
    """Name -> folder that bgekit saved."""
    root = tmp_path_factory.mktemp("saved")
    sources = {kind: make_model(kind, pooling=pooling) for kind, pooling in KINDS}
    sources["dense"] = with_dense(sources["bert"], root / "source-dense")
    for name, source in sources.items():
        FlagModel(source, query_instruction_for_retrieval="search query: ").save(root / name)
    return {name: root / name for name in sources}


@pytest.fixture(scope="session", params=[oldest, exchange], ids=["oldest", "newest"])
def exchanged(request, models, inputs, tmp_path_factory):
    """Name -> what a release made of the folders: its vectors, and the folder that it saved in turn."""
    root = tmp_path_factory.mktemp(request.param.__name__)
    jobs = {name: (str(folder), f"{root}/{name}.npz", f"{root}/{name}") for name, folder in models.items()}
    version = request.param(inputs, list(jobs.values()))
    assert (version == "2.7.0") == (request.param is oldest)
    return {name: (np.load(answers), Path(target)) for name, (_, answers, target) in jobs.items()}


NAMES = [kind for kind, _ in KINDS] + ["dense"]


@pytest.mark.parametrize("name", NAMES)
def test_our_folder_gives_equal_vectors_there(models, exchanged, inputs, name):
    theirs, _ = exchanged[name]
    model = FlagModel(models[name], use_fp16=False)
    np.testing.assert_allclose(theirs["plain"], model.encode(inputs), atol=1e-5, rtol=0)
    np.testing.assert_allclose(theirs["query"], model.encode_queries(inputs), atol=1e-5, rtol=0)
    assert int(theirs["length"]) == model.card.max_length


@pytest.mark.parametrize("name", NAMES)
def test_their_folder_gives_equal_vectors_here(exchanged, inputs, name):
    theirs, folder = exchanged[name]
    # Newer releases write Dense weights as safetensors; 2.7 pickles them.
    model = FlagModel(folder, use_fp16=False, allow_pickle=name == "dense")
    np.testing.assert_allclose(theirs["plain"], model.encode(inputs), atol=1e-5, rtol=0)
    np.testing.assert_allclose(theirs["query"], model.encode_queries(inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "pooling"), [("bert", "cls"), ("roberta", "mean")])
def test_plain_transformers(models, inputs, name, pooling):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = (kind.from_pretrained(models[name]) for kind in (AutoTokenizer, AutoModel))
    batch = tokenizer(inputs, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = network.eval()(**batch)[0]
    mask = batch["attention_mask"][..., None]
    pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    np.testing.assert_allclose(FlagModel(models[name], use_fp16=False).encode(inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["minilm", "bge_small_en", "bge_small_zh"])
def test_real_models(fixture, request, inputs, tmp_path):
    from sentence_transformers import SentenceTransformer

    source = request.getfixturevalue(fixture)
    FlagModel(source).save(tmp_path / "saved")
    model, theirs = FlagModel(tmp_path / "saved", use_fp16=False), SentenceTransformer(str(tmp_path / "saved"))
    theirs = theirs.to("cpu").float()
    np.testing.assert_allclose(theirs.encode(inputs), model.encode(inputs), atol=1e-5, rtol=0)
    np.testing.assert_allclose(theirs.encode_query(inputs), model.encode_queries(inputs), atol=1e-5, rtol=0)
    np.testing.assert_allclose(theirs.encode_document(inputs), model.encode_corpus(inputs), atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        model.encode(inputs), FlagModel(source, use_fp16=False).encode(inputs), atol=1e-6, rtol=0
    )


def test_a_copy_under_another_name_is_the_same_model(models, inputs, tmp_path):
    shutil.copytree(models["bert"], tmp_path / "bge-small-zh-v1.5")
    model, copy = (FlagModel(folder, use_fp16=False) for folder in (models["bert"], tmp_path / "bge-small-zh-v1.5"))
    np.testing.assert_array_equal(model.encode_queries(inputs), copy.encode_queries(inputs))
