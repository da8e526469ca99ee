"""Which tokens are hidden, against plain loops written from the papers' words."""

import numpy as np
import pytest
import torch

from bgekit.inference.tokenization import load_tokenizer
from bgekit.pretraining.masking import corrupt, draw_words, visible
from bgekit.pretraining.token_store import Words


def words_of(sizes):
    """[CLS], words of some sizes, [SEP]."""
    return np.array([-1, *np.repeat(np.arange(len(sizes)), sizes), -1])


def test_words_are_hidden_whole_and_special_tokens_never():
    generator = np.random.default_rng(0)
    for _ in range(200):
        words = words_of(generator.integers(1, 6, size=generator.integers(1, 30)))
        drawn = set(draw_words(words, 0.3, generator).tolist())
        for word in range(words.max() + 1):
            places = set(np.flatnonzero(words == word).tolist())
            assert places <= drawn or not places & drawn
        assert not drawn & {0, len(words) - 1}


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
def test_the_share_is_exact_on_average_whatever_the_words(share):
    generator = np.random.default_rng(1)
    for sizes in ([1], [3], [1, 1, 1], [4, 1, 1, 7, 2], [1] * 40 + [6] * 5):
        words = words_of(sizes)
        counts = [len(draw_words(words, share, generator)) for _ in range(4000)]
        error = np.std(counts) / np.sqrt(len(counts))
        assert abs(np.mean(counts) - share * sum(sizes)) < 4 * error + 1e-9, sizes


def test_long_words_are_hidden_as_often_as_short_ones():
    generator = np.random.default_rng(2)
    words = words_of([1] * 20 + [5] * 20)
    hidden = np.zeros(len(words))
    for _ in range(3000):
        hidden[draw_words(words, 0.3, generator)] += 1
    assert np.allclose(hidden[1:21].mean() / 3000, 0.3, atol=0.02)
    assert np.allclose(hidden[21:-1].mean() / 3000, 0.3, atol=0.02)


def test_of_the_hidden_tokens_80_percent_are_masked_and_10_random():
    generator = np.random.default_rng(3)
    ids = np.full(20_000, 7)
    places = np.arange(0, 20_000, 2)
    seen = corrupt(ids, places, 4, np.arange(100, 200), generator)
    assert (seen[1::2] == 7).all() and (ids == 7).all()
    assert abs((seen[places] == 4).mean() - 0.8) < 0.02
    assert abs((seen[places] >= 100).mean() - 0.1) < 0.01
    assert abs((seen[places] == 7).mean() - 0.1) < 0.01


def loops(words, seed, share):
    """The paper's M for one text: i sees the first key and the tokens drawn for it, and not itself."""

    def mixed(value):
        for _ in range(2):
            value = (((value >> 16) ^ value) * 0x45D9F3B) % 2**32
        return (value >> 16) ^ value

    table = []
    for i in range(len(words)):
        row = []
        for j in range(len(words)):
            drawn = words[j] >= 0 and mixed(mixed(seed ^ mixed(i + 1)) ^ mixed(words[j] + 2)) < share * 2**32
            row.append(j == 0 or (j != i and not drawn))
        table.append(row)
    return table


def test_the_decoders_mask_is_that_of_plain_loops():
    generator = np.random.default_rng(4)
    words = np.stack([words_of([1, 2, 1, 3]), words_of([4, 1, 1, 1])])
    seeds = generator.integers(2**32, size=2)
    found = visible(torch.tensor(words), torch.tensor(seeds), 0.5)
    for text in range(2):
        assert found[text].tolist() == loops(words[text].tolist(), int(seeds[text]), 0.5)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.7])
def test_each_position_sees_its_own_draw_of_whole_words(share):
    words = torch.tensor(words_of([1, 2, 3] * 20))[None].repeat(50, 1)
    seeds = torch.tensor(np.random.default_rng(5).integers(2**32, size=50))
    seen = visible(words, seeds, share)
    length = words.shape[1]
    assert seen[:, :, 0].all() and not torch.diagonal(seen, dim1=1, dim2=2)[:, 1:].any()
    assert seen[:, :-1, -1].all()  # [SEP] tells nothing.
    other = ~torch.eye(length, dtype=torch.bool)
    for first, second in ((2, 3), (4, 5), (4, 6)):  # Pieces of a word are seen together, but for the own position.
        rows = [row for row in range(length) if row not in (first, second)]
        assert torch.equal(seen[:, rows, first], seen[:, rows, second])
    inner = (seen & other)[:, 1:-1, 1:-1].double().sum((1, 2)) / (length - 2) / (length - 3)
    assert abs(float(inner.mean()) - (1 - share)) < 0.01
    # Rows are independent: two agree as often as chance has it.
    alike = (seen[:, 1, 10:] == seen[:, 3, 10:]).double().mean()
    assert abs(float(alike) - (share**2 + (1 - share) ** 2)) < 0.06
    assert not torch.equal(seen[0], seen[1])


def starts(folder, text):
    backend = load_tokenizer(folder).backend_tokenizer
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.tokens, Words(backend).starts(text, encoding).tolist()


def test_words_of_wordpiece(models):
    tokens, begins = starts(models("bert"), "The catx, 中文 model's")
    assert begins == [not token.startswith("##") for token in tokens]
    assert {"中", "文", "'", "the"} <= {token for token, begin in zip(tokens, begins, strict=True) if begin}


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_words_of_other_tokenizers(models, kind):
    blank = "Ġ" if kind == "roberta" else "▁"
    tokens, begins = starts(models(kind), "embedding searching xyzzy lower")
    assert begins == [token.startswith(blank) for token in tokens]
    tokens, begins = starts(models(kind), "模型向量检索龘龘")
    if kind == "xlm-roberta":
        first = 2 if tokens[0] == blank else 1  # A blank alone and the character after it are one word.
        assert begins[0] and all(begins[first:])
    else:  # A character is a word, however many tokens its bytes take.
        backend = load_tokenizer(models(kind)).backend_tokenizer
        spans = [span for span in backend.encode("模型向量检索龘龘", add_special_tokens=False).offsets]
        assert begins == [place == 0 or span[0] >= spans[place - 1][1] for place, span in enumerate(spans)]
        assert 1 < sum(begins) < len(begins)


def test_what_is_too_long_is_no_word(models):
    tokens, begins = starts(models("bert"), "a " + "q" * 40)
    assert len(tokens) == 41 and all(begins)
