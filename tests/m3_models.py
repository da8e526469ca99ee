"""Random models of BGE-M3's kind: XLM-R with a tokenizer of its kind and the two heads, as FlagEmbedding has them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_sentencepiece(folder: Path, texts: Iterable[str], pieces: int = 1000) -> int:
    """A tokenizer like XLM-R's, with pieces learnt from some texts; the number of its tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import XLMRobertaTokenizer

    learner = Tokenizer(models.Unigram())
    learner.normalizer = normalizers.NFKC()
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=pieces, show_progress=False, unk_token="<unk>")
    learner.train_from_iterator(texts, trainer)
    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    learnt = [(piece, score) for piece, score in json_vocabulary(learner) if piece not in dict(specials)]
    tokenizer = XLMRobertaTokenizer(vocab=[*specials, *learnt, ("<mask>", 0.0)], model_max_length=8192)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def json_vocabulary(tokenizer: Any) -> list[tuple[str, float]]:
    import json

    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def make_m3(
    folder: Path, texts: Iterable[str], *, dim: int | None = None, positions: int = 514, vocabulary: int = 0,
    hidden: int = 64, layers: int = 2, heads: int = 4, wide: int = 128, spread: float = 0.15,
) -> Path:  # fmt: skip
    """A random model of the kind.

    Args:
        folder: Where to make it.
        texts: What its tokenizer learns from.
        dim: Width of its multi-vectors, that of its token vectors by default.
        positions: Rows of its table of positions, two more than tokens of a text.
        vocabulary: Rows of its table of words, at least the tokenizer's.
        hidden: Width of token vectors.
        layers: Layers.
        heads: Attention heads.
        wide: Width of the feed-forward networks.
        spread: Standard deviation of the matrices: large enough for attention to matter.
    """
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from bgekit.networks.heads import TokenHeads, write_heads

    folder.mkdir(parents=True, exist_ok=True)
    size = max(vocabulary, write_sentencepiece(folder, texts))
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=wide, max_position_embeddings=positions, type_vocab_size=1, layer_norm_eps=1e-5,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = XLMRobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, spread)
    model.save_pretrained(folder)
    made = TokenHeads(hidden, sparse=True, multi_vector=dim or hidden)
    write_heads(made, folder)
    return folder
