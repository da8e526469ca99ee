import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bgekit.errors import ArgumentError, DataError
from bgekit.evaluation.benchmarks.local_folders import benchmark_tasks
from bgekit.evaluation.benchmarks.mteb_bridge import HubTask, MtebEncoder, hub_tasks
from bgekit.evaluation.judged_model import JudgedModel, Setting
from bgekit.inference.model import Embedder
from bgekit.inference.pipeline import Encoded
from bgekit.models.card import ModelCard, Prompt

needs_mteb = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="needs bgekit[mteb]")


class Spy(Embedder):
    """Remembers what it was asked to encode, prompt and all."""

    dimension = 8
    precision = "float32"
    fingerprint = "f" * 64

    def __init__(self, **prompts):
        self.seen = []
        self.card = ModelCard(
            name="org/spy", pooling="cls", normalize=True, max_length=64, dimension=8,
            prompts={"query": Prompt(""), "document": Prompt("")} | {k: Prompt(v) for k, v in prompts.items()},
        )  # fmt: skip

    def _compute(self, blocks, prompt, max_length, batch_size):
        for texts in blocks:
            self.seen += [prompt.prefix + text for text in texts]
            yield Encoded(np.eye(8, dtype=np.float32)[[len(text) % 8 for text in texts]], len(texts))


def encode(model, kind, side=None, name="Task"):
    metadata = SimpleNamespace(type=kind, name=name)
    encoder = MtebEncoder(model)
    batches = [{"text": ["a", "bb"]}, {"text": ["ccc"]}]
    return encoder.encode(
        batches, task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=side, batch_size=2
    )


@pytest.mark.parametrize(
    ("prompts", "kind", "side", "expected"),
    [
        ({"query": "Q "}, "Retrieval", "query", "Q a"),
        ({"query": "Q "}, "Retrieval", "document", "a"),
        ({"query": "Q "}, "Reranking", "query", "Q a"),
        ({"query": "Q "}, "STS", None, "a"),
        ({"query": "Q ", "document": "D "}, "Classification", None, "Q a"),  # as E5 wants it
        ({"query": "Q ", "document": "D "}, "Retrieval", "document", "D a"),
        ({"query": "Q ", "Task": "T "}, "Retrieval", "query", "T a"),
        ({"query": "Q ", "Clustering": "C "}, "Clustering", None, "C a"),
    ],
)
def test_prompts_are_those_of_the_card(prompts, kind, side, expected):
    spy = Spy(**prompts)
    vectors = encode(spy, kind, side and SimpleNamespace(value=side))
    assert spy.seen[0] == expected and vectors.shape == (3, 8) and vectors.dtype == np.float32


def test_settings_are_kept():
    spy = Spy(query="Q ")
    vectors = encode(JudgedModel(spy, Setting(instruction=None, dimension=4)), "Retrieval", "query")
    assert spy.seen == ["a", "bb", "ccc"] and vectors.shape == (3, 4)
    reranked = Setting(reranker=SimpleNamespace(), reranker_name="r")
    with pytest.raises(ArgumentError, match="reranker"):
        MtebEncoder(JudgedModel(spy, reranked))
    assert not HubTask.rerankable


def test_similarities_are_tensors_of_the_cards_kind():
    encoder = MtebEncoder(Spy())
    a, b = np.asarray([[3.0, 4], [0, 2]]), np.asarray([[6.0, 8], [1, 0]])
    assert encoder.similarity(a, b).numpy() == pytest.approx(np.asarray([[1, 0.6], [0.8, 0]]))
    assert encoder.similarity_pairwise(a, b).numpy() == pytest.approx(np.asarray([1, 0]))
    assert float(encoder.similarity(a[0], b[1])) == pytest.approx(0.6)


@needs_mteb
def test_it_is_an_encoder_for_mteb_without_a_hub():
    from mteb.models import EncoderProtocol, SearchProtocol

    encoder = MtebEncoder(Spy(query="Q "))
    assert isinstance(encoder, EncoderProtocol) and not isinstance(encoder, SearchProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens, meta.use_instructions) == ("org/spy", 8, 64, True)


@needs_mteb
def test_hub_tasks_without_a_hub_point_to_local_data():
    (task,) = hub_tasks("mteb-en", ["SciFact"])
    assert (task.kind, task.name, task.split, task.main_metric) == ("retrieval", "SciFact", "test", "ndcg_at_10")
    tasks, notes = benchmark_tasks("c-mteb", ["STS22", "LCQMC"])
    assert [(each.kind, each.name) for each in tasks] == [("sts", "LCQMC"), ("sts", "STS22")] and notes == []
    assert len({each.fingerprint for each in [task, *tasks]}) == 3
    with pytest.raises(DataError, match=r"data of SciFact cannot be loaded .*--data-root DIR") as caught:
        task.score(JudgedModel(Spy()))
    assert "\n" not in str(caught.value)


def test_nothing_imports_mteb_early():
    code = (
        "import json, sys, bgekit.evaluation.benchmarks.mteb_bridge;"
        "print(json.dumps([m for m in ('mteb', 'datasets', 'sklearn', 'scipy', 'matplotlib') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
