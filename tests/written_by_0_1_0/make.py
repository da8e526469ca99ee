"""Writes what release 0.1.0 leaves on disk, small: run by the sources of that release, in an empty folder.

git worktree add /tmp/old 90c2c01
PYTHONPATH=/tmp/old/src:/tmp/old/tests python make.py && tar cJf written.tar.xz *
"""

import json
import os
import pickle
import shutil
from pathlib import Path

TEXTS = [f"the {a} {b} by the {c}" for a in ("red", "green", "blue") for b in ("cat", "dog") for c in ("tree", "house")]
QUESTIONS = ["a red cat", "house"]
#: A run of four steps; stopped after two it goes on with the same arguments.
RUN = [
    "--model_name_or_path", "model", "--train_data", "train.jsonl", "--cache_path", "cache", "--use_cpu",
    "--per_device_train_batch_size", "4", "--train_group_size", "2", "--learning_rate", "1e-3", "--save_steps", "2",
    "--logging_steps", "1", "--report_to", "none", "--disable_tqdm", "true", "--max_steps", "4", "--output_dir", "run",
]  # fmt: skip


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopped(records):
    """Records that end in an error in the middle."""
    for number, record in enumerate(records):
        if number == 11:
            raise Stop
        yield record


def main() -> None:
    """A model, shards (whole and interrupted), an index, vectors, and a training run with its first checkpoint."""
    # Names of 0.1.0; here, so that the tests can take what stands above.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np
    from bgekit.encoding.records import read_records
    from bgekit.encoding.shards import encode_to_shards
    from bgekit.search.building import index_records

    from bgekit import FlagModel
    from bgekit.search.index import SearchIndex
    from bgekit.training.embedder import main as finetune
    from conftest import make_tiny

    make_tiny(Path("model"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = FlagModel("model", devices="cpu", use_fp16=False)
    lines = [json.dumps({"id": f"d{at}", "text": text}) + "\n" for at, text in enumerate(TEXTS)]
    Path("corpus.jsonl").write_text("".join(lines))
    encode_to_shards(model, read_records("corpus.jsonl"), "shards", shard_size=5)
    try:
        encode_to_shards(model, stopped(read_records("corpus.jsonl")), "interrupted", shard_size=2)
    except Stop:
        pass
    index_records(model, read_records("corpus.jsonl"), "index")
    vectors = model.encode(TEXTS)
    hits = [[hit.id for hit in row] for row in SearchIndex.load("index").ask(model, QUESTIONS, top_k=3)]
    Path("hits.json").write_text(json.dumps(hits))
    np.save("vectors.npy", np.asarray(vectors))
    Path("vectors.pickle").write_bytes(pickle.dumps(vectors))
    rows = [{"query": text, "pos": [f"pos {text}"], "neg": [f"neg {text} {n}" for n in range(3)]} for text in TEXTS]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune(RUN) == 0
    state = json.loads(Path("run/checkpoint-4/trainer_state.json").read_text())
    Path("losses.json").write_text(json.dumps([entry["loss"] for entry in state["log_history"] if "loss" in entry]))
    for path in Path("run").iterdir():
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
