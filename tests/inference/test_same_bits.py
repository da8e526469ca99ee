"""The bits of a vector, and of a score, depend on the text alone: real models, real texts, every company."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgekit import FlagModel, FlagReranker
from bgekit.data import read_records
from bgekit.inference import encode_to_shards, load_shards
from bgekit.networks import cpu_inference
from bgekit.networks.cpu_inference import KERNELS
from precisions import BFLOAT16, INT8

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
FORMATS = ("float32", BFLOAT16, INT8)
Shared = Callable[..., Path]


def real_texts(shared_path: Shared, count: int) -> list[str]:
    """Texts of 1 to 512 tokens, half of them English and half Chinese."""
    draw, texts = random.Random(0), []
    for name in ("Cranfield", "CMRC2018Retrieval"):
        lines = itertools.islice((shared_path("data", name) / "corpus.jsonl").open(encoding="utf-8"), count)
        found = [json.loads(line)["text"] for line in lines]
        # Cut anywhere: what matters is that all lengths are there, the longest beyond 512 tokens.
        texts += [text[: max(1, int(len(text) * draw.random() ** 2))] for text in found[: count // 2 - 3]]
        texts += [" ".join(found[:40])[:6000], found[0][:1], found[1][:9]]
    return texts


@pytest.fixture(params=KERNELS)
def kind_of_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of CPU in turn, as if this were one."""
    monkeypatch.setattr(cpu_inference, "kernels", lambda: KERNELS[request.param])
    return str(request.param)


@pytest.fixture(scope="module")
def cross_encoder(bge_small_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker on the real transformer, with a head drawn at random."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("reranker")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(bge_small_en, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bge_small_en).save_pretrained(folder)
    return folder


def check(compute: Callable[..., Any], inputs: Sequence[Any], examples: int, most: int) -> None:
    """Compare each input alone with the same in random company, order and batch size."""
    alone = np.stack([np.asarray(compute([one])[0]) for one in inputs])

    @settings(max_examples=examples, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.integers(0, len(inputs) - 1), min_size=1, max_size=most, unique=True),
        st.sampled_from([None, 1, 3, 32, 1000]),
    )
    def in_company(rows: list[int], batch_size: int | None) -> None:
        together = np.asarray(compute([inputs[row] for row in rows], batch_size=batch_size))
        differing = [row for row, vector in zip(rows, together, strict=True) if not np.array_equal(vector, alone[row])]
        assert not differing, f"{len(differing)} of {len(rows)} differ, the first is {inputs[differing[0]]!r:.60}"

    in_company()
    order = list(range(len(inputs)))
    random.Random(1).shuffle(order)
    assert np.array_equal(np.asarray(compute([inputs[row] for row in order])), alone[order])


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_vector_depends_on_its_text_alone(
    dtype: str, kind_of_cpu: str, bge_small_en: Path, shared_path: Shared
) -> None:
    model = FlagModel(bge_small_en, dtype=dtype, devices="cpu")
    check(model.encode, real_texts(shared_path, 24), examples=4, most=20)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_score_depends_on_its_pair_alone(
    dtype: str, kind_of_cpu: str, cross_encoder: Path, shared_path: Shared
) -> None:
    texts = real_texts(shared_path, 16)
    reranker = FlagReranker(cross_encoder, dtype=dtype, devices="cpu")
    check(reranker.compute_score, list(zip(texts[::-1], texts, strict=True)), examples=3, most=16)


def test_pooling_by_all_tokens_and_a_head_keep_the_bits(bge_small_en: Path, shared_path: Shared) -> None:
    for pooling in ("mean", "weighted_mean", "max", "last_token"):
        model = FlagModel(bge_small_en, pooling_method=pooling, devices="cpu")
        check(model.encode, real_texts(shared_path, 20), examples=2, most=20)


def test_threads_that_call_at_once_get_the_same_bits(bge_small_en: Path, shared_path: Shared) -> None:
    model = FlagModel(bge_small_en, devices="cpu")
    texts = real_texts(shared_path, 16)
    alone = [model.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        assert np.array_equal(np.stack(list(threads.map(model.encode, texts))), np.stack(alone))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads: int, bge_small_en: Path, shared_path: Shared) -> None:
    texts = real_texts(shared_path, 12)
    expected = FlagModel(bge_small_en, devices="cpu").encode(texts)
    code = (
        "import json, sys, torch; from bgekit import FlagModel\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "model = FlagModel(sys.argv[1], devices='cpu')\n"
        "vectors = [model.encode(text) for text in json.load(sys.stdin)]\n"
        "print(torch.get_num_threads(), json.dumps([vector.tobytes().hex() for vector in vectors]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, bge_small_en, str(threads)],
        input=json.dumps(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    used, found = run.stdout.split(maxsplit=1)
    assert int(used) == threads
    assert json.loads(found) == [vector.tobytes().hex() for vector in expected]


def test_shards_of_any_size_and_a_resumed_run_hold_the_same_bits(
    bge_small_en: Path, shared_path: Shared, tmp_path: Path
) -> None:
    texts = real_texts(shared_path, 24)
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    model = FlagModel(bge_small_en, devices="cpu")
    expected = np.stack([model.encode_corpus(text) for text in texts])
    for size, batch_size in ((7, None), (24, 5), (1, None)):
        folder = tmp_path / f"shards-{size}"
        encode_to_shards(model, read_records(source), folder, shard_size=size, batch_size=batch_size)
        assert np.array_equal(load_shards(folder).vectors(), expected)
    last = sorted((tmp_path / "shards-7").glob("shard-*.json"))[-1]
    last.unlink()
    last.with_suffix(".npy").unlink()
    encode_to_shards(model, read_records(source), tmp_path / "shards-7", shard_size=7)
    assert np.array_equal(load_shards(tmp_path / "shards-7").vectors(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_500_texts_by_every_way_there_is(
    dtype: str, language: str, cross_encoder: Path, shared_path: Shared, tmp_path: Path
) -> None:
    """Two to four minutes each on two cores: alone, in company, on two workers, by `bge encode`, and as pairs."""
    texts = list(dict.fromkeys(real_texts(shared_path, 500)))
    folder = shared_path("models", f"bge-small-{language}-v1.5")
    model = FlagModel(folder, dtype=dtype, devices="cpu")
    check(model.encode, texts, examples=20, most=200)
    expected = model.encode(texts)
    with FlagModel(folder, dtype=dtype, devices=["cpu", "cpu"]) as two:
        more = [*texts, *(f"text number {number}" for number in range(2100))]
        assert np.array_equal(two.encode(more)[: len(texts)], expected)
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for size in ("64", "1000"):
        subprocess.run(
            [sys.executable, "-m", "bgekit", "encode", source, "-o", tmp_path / size, "--model", folder,
             "--dtype", dtype, "--shard-size", size, "--kind", "plain", "--devices", "cpu", "--quiet"], check=True,
        )  # fmt: skip
        assert np.array_equal(load_shards(tmp_path / size).vectors(), expected)
    if language == "en":
        reranker = FlagReranker(cross_encoder, dtype=dtype, devices="cpu")
        check(reranker.compute_score, list(zip(texts[::-1], texts, strict=True))[:200], examples=5, most=100)
