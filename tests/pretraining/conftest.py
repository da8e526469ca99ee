"""Tiny models and texts for pre-training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import WORDS, make_tiny

#: Without dropout, so that what should be equal is.
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_tokenizer(folder: Path, kind: str) -> None:
    """A byte-level BPE as RoBERTa has it, or a Unigram with blanks as XLM-R has it; both with the ids of theirs."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    lines = [
        " ".join(WORDS),
        "embeddings searching the models",
        "中文模型向量检索样例数据文档查询",
        "lower newer widest.",
    ] * 3
    if kind == "roberta":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), specials, strict=True))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", model_max_length=64,
        **{f"{role}_token": token for role, token in names.items()},
    ).save_pretrained(folder)  # fmt: skip


def make_roberta(folder: Path, kind: str) -> Path:
    """A tiny RoBERTa or XLM-R, whose padding token has the id 1."""
    import torch
    import transformers

    from bgekit.inference.tokenization import load_tokenizer

    folder.mkdir(parents=True)
    make_tokenizer(folder, kind)
    name = "RobertaConfig" if kind == "roberta" else "XLMRobertaConfig"
    config = getattr(transformers, name)(
        vocab_size=len(load_tokenizer(folder)), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        type_vocab_size=1, **STILL,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of a kind: `bert`, `roberta`, `xlm-roberta`, `distilbert`, `modernbert`, `mpnet`."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("start") / f"tiny-{kind}"
            roberta = kind in ("roberta", "xlm-roberta")
            still = STILL if kind in ("bert", "mpnet") else {}
            made[kind] = make_roberta(folder, kind) if roberta else make_tiny(folder, kind, **still)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Real texts that every machine has, as jsonl."""
    from itertools import islice

    from bgekit.demo import standard_library

    path = tmp_path_factory.mktemp("texts") / "docs.jsonl"
    lines = (json.dumps({"text": record.text[:400]}) for record in islice(standard_library(), 400))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)
