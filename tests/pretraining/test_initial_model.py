"""A model for another tokenizer."""

import numpy as np
import pytest
import torch
import transformers

from bgekit.inference.tokenization import load_tokenizer
from bgekit.pretraining.initial_model import adapt


def load(folder):
    return transformers.AutoModelForMaskedLM.from_pretrained(folder).eval(), load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_the_same_tokenizer_changes_nothing(models, kind):
    lm, tokenizer = load(models(kind))
    with torch.no_grad():
        lm.get_output_embeddings().bias.normal_()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    counts = adapt(lm, tokenizer, tokenizer)
    assert counts["composed"] == counts["unknown"] == 0
    for name, value in lm.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("old", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("new", ["bert", "roberta", "xlm-roberta"])
def test_shared_words_keep_their_embeddings(models, old, new):
    if old == new:
        return
    lm, old_tokenizer = load(models(old))
    _, new_tokenizer = load(models(new))
    before = lm.get_input_embeddings().weight.detach().clone()
    adapt(lm, old_tokenizer, new_tokenizer)
    table = lm.get_input_embeddings().weight.detach()
    assert len(table) == len(new_tokenizer) == lm.config.vocab_size == len(lm.get_output_embeddings().bias)
    assert lm.get_output_embeddings().weight.data_ptr() == lm.get_input_embeddings().weight.data_ptr()
    mark = {"bert": "", "roberta": "Ġ", "xlm-roberta": "▁"}
    then, now = old_tokenizer.get_vocab(), new_tokenizer.get_vocab()
    shared = [word for word in ("the", "a", "in", "is", "to") if mark[old] + word in then and mark[new] + word in now]
    assert shared
    for word in shared:
        assert torch.equal(table[now[mark[new] + word]], before[then[mark[old] + word]]), word
    for role in ("cls", "sep", "pad", "mask", "unk"):
        numbers = [getattr(each, f"{role}_token_id") for each in (old_tokenizer, new_tokenizer)]
        assert torch.equal(table[numbers[1]], before[numbers[0]]), role
        assert getattr(lm.config, f"{role}_token_id") == numbers[1]
    assert lm.get_input_embeddings().padding_idx == new_tokenizer.pad_token_id  # The row without a gradient.


def test_new_words_begin_as_the_mean_of_their_pieces(models):
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    lm, tokenizer = load(models("bert"))
    before = lm.get_input_embeddings().weight.detach().clone()
    bigger = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    size = len(tokenizer)
    vocab = {**tokenizer.get_vocab(), "treehouse": size, "##quick": size + 1, "鱼": size + 2}
    bigger.model = WordPiece(vocab, unk_token="[UNK]")
    roles = [f"{role}_token" for role in ("cls", "sep", "pad", "mask", "unk")]
    named = {role: getattr(tokenizer, role) for role in roles}
    new = transformers.PreTrainedTokenizerFast(tokenizer_object=bigger, **named)
    counts = adapt(lm, tokenizer, new)
    table, then = lm.get_input_embeddings().weight.detach(), tokenizer.get_vocab()
    pieces = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("treehouse"))
    assert torch.allclose(table[vocab["treehouse"]], before[pieces].mean(0))
    assert torch.allclose(table[vocab["##quick"]], before[[then[f"##{letter}"] for letter in "quick"]].mean(0))
    assert torch.allclose(table[vocab["鱼"]], before.mean(0))
    assert (counts["composed"], counts["unknown"]) == (2, 1)


def test_positions_of_roberta_follow_the_padding_token(models):
    """Position k of a text has the embedding that it had, though the padding token's id moves it in the table."""
    lm, old = load(models("roberta"))
    _, new = load(models("bert"))
    assert (old.pad_token_id, new.pad_token_id) == (1, 0)
    before = lm.base_model.embeddings.position_embeddings.weight.detach().clone()
    adapt(lm, old, new)
    after = lm.base_model.embeddings.position_embeddings.weight.detach()
    assert np.allclose(after[1:65], before[2:66])
    assert lm.base_model.embeddings.padding_idx == 0
