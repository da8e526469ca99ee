"""Whoever may read one file of an output may read all: modes are what the umask gives, whoever wrote the file."""

from __future__ import annotations

import json

import pytest
import torch

from bgekit.cli.main import main
from bgekit.models.card import RerankerCard
from bgekit.models.card_reading import read_card
from bgekit.networks.cross_encoder import load_trainable
from bgekit.networks.saving import write_checkpoint, write_reranker
from conftest import check_modes


@pytest.mark.usefixtures("umask")
def test_trained_weights_can_be_read_by_whom_the_umask_lets(tiny_bert, tmp_path):
    weights = {name: torch.ones(2, 2) for name in "ab"}
    write_checkpoint(tmp_path / "embedder", card=read_card(tiny_bert), source=tiny_bert, weights=weights)
    check_modes(tmp_path / "embedder")
    card = RerankerCard(name="trained", labels=1, max_length=48)
    write_reranker(tmp_path / "reranker", card=card, source=tiny_bert, network=load_trainable(tiny_bert))
    check_modes(tmp_path / "reranker")


@pytest.mark.usefixtures("umask")
def test_modes_are_mended_in_sub_folders_and_links_left_alone(tmp_path):
    from bgekit.files.atomic import usual_modes

    (tmp_path / "out" / "1_Pooling").mkdir(parents=True)
    for name in ("weights", "1_Pooling/config.json"):
        (tmp_path / "out" / name).touch(0o600)
    (tmp_path / "mine").touch(0o600)
    (tmp_path / "out" / "link").symlink_to(tmp_path / "mine")
    usual_modes(tmp_path / "out")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    (tmp_path / "out" / "link").unlink()
    check_modes(tmp_path / "out")


@pytest.mark.parametrize("umask", [0o027], indirect=True, ids=oct)
def test_vectors_indexes_and_mined_rows(umask, tiny_bert, tmp_path, texts):
    corpus, rows, out = tmp_path / "corpus.jsonl", tmp_path / "rows.jsonl", tmp_path / "out"
    lines = texts(12, longest=6)
    corpus.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(lines)))
    rows.write_text(json.dumps({"query": "a cat", "pos": [lines[0]]}) + "\n")
    model = ["--model", str(tiny_bert), "--no-progress"]
    out.mkdir()
    assert main(["encode", str(corpus), "-o", str(out / "shards"), *model]) == 0
    assert main(["search", str(corpus), "--index", str(out / "index"), "-q", "a cat", *model]) == 0
    mined = ["--input", str(rows), "--output", str(out / "mined.jsonl"), "--candidate-pool", str(corpus)]
    assert main(["mine", *mined, "--range-for-sampling", "0-5", "--negative-number", "2", *model]) == 0
    check_modes(out)
