"""Masks against plain loops written from the papers' words, the network against transformers' own models and a dense
reference in float64.
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bgekit.inference.tokenization import load_tokenizer
from bgekit.pretraining import retromae as network_module
from bgekit.pretraining.initial_model import PretrainModelArguments, initial_model
from bgekit.pretraining.retromae import (
    Masking,
    PretrainingTrainer,
    RetroMAE,
    corrupt,
    draw_words,
    loss_of,
    visible,
)
from bgekit.pretraining.token_store import Reading, Tokenization, Words, read_texts

KINDS = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "mpnet")


@pytest.fixture
def made(models, texts, tmp_path):
    """A network and a batch of texts of many lengths: `made("bert")`."""

    def make(kind, share=0.5):
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(9, longest=40)))
        with initial_model(PretrainModelArguments(str(models(kind))), 64) as start:
            tokens = Tokenization.of(start.tokenizer, kind)
            data = read_texts([str(path)], tokens, Reading(64 - tokens.special), str(tmp_path / "cache"))
            torch.manual_seed(0)
            network = RetroMAE(start.lm, share).eval()
        with torch.no_grad():  # So that attention matters.
            for parameter in network.decoder.parameters():
                parameter.normal_(0, 0.2)
        return network, Masking(tokens, 0.3, 0)(data, range(len(data)), [0] * len(data)), start

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoders_loss_is_that_of_the_published_model(made, models, kind):
    network, batch, start = made(kind)
    import transformers

    published = transformers.AutoModelForMaskedLM.from_pretrained(models(kind)).eval()
    published.load_state_dict(start.lm.state_dict())
    if kind in ("modernbert",):
        published.set_attn_implementation("eager")
    lengths, column = batch.masked.lengths, 0
    padded = torch.full((len(lengths), max(lengths)), published.config.pad_token_id)
    labels = torch.full_like(padded, -100)
    hidden = set(batch.hidden.tolist())
    for row, length in enumerate(lengths):
        padded[row, :length] = batch.masked.input_ids[column : column + length]
        for place in range(length):
            if column + place in hidden:
                labels[row, place] = batch.original.input_ids[column + place]
        column += length
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        expected = published(input_ids=padded, attention_mask=mask, labels=labels)
        found = network(batch)
    assert float(found[0]) / len(hidden) == pytest.approx(float(expected.loss), rel=1e-5)
    right = (expected.logits.argmax(-1) == labels).sum()
    assert int(found[2]) == int(right)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_decoder_is_the_papers_row_by_row(made, kind):
    """Enhanced decoding with loops over positions: H1, H2, M, attention, residuals, loss of all but first and last."""
    network, batch, _ = made(kind)
    network = network.double()
    decoder, layer = network.decoder, network.transformer.embeddings
    padding = network.transformer.config.pad_token_id
    heads, width = decoder.heads, layer.position_embeddings.weight.shape[1]
    start, total, right = 0, 0.0, 0
    with torch.no_grad():
        hidden = network.backbone(batch.masked, "all")
        found = network(batch)
        for text, length in enumerate(batch.original.lengths):
            ids = batch.original.input_ids[start : start + length]
            words = batch.words[start : start + length].tolist()
            places = torch.arange(length) + (padding + 1 if kind == "roberta" else 0)
            h, p = hidden[start], layer.position_embeddings.weight[places]
            e = layer.LayerNorm(layer.word_embeddings.weight[ids] + p + layer.token_type_embeddings.weight[0])
            keys = torch.stack([h, *e[1:]])
            table = loops(words, int(batch.seeds[text]), 0.5)
            for i in range(1, length - 1):
                h1 = h + p[i]
                query = decoder.query(h1).view(heads, -1)
                seen = [j for j in range(length) if table[i][j]]
                k, v = (part(keys[seen]).view(len(seen), heads, -1) for part in (decoder.key, decoder.value))
                mixed = []
                for head in range(heads):
                    scores = torch.stack([query[head] @ k[j, head] for j in range(len(seen))]) / math.sqrt(
                        width / heads
                    )
                    mixed.append(sum(weight * v[j, head] for j, weight in enumerate(scores.softmax(0))))
                state = decoder.attention_norm(h1 + decoder.output(torch.cat(mixed)))
                state = decoder.norm(state + decoder.narrow(decoder.activation(decoder.widen(state))))
                logits = network.head(state)
                total += float(cross_entropy(logits, ids[i]))
                right += int(logits.argmax() == ids[i])
            start += length
    assert float(found[1]) == pytest.approx(total, rel=1e-9)
    assert int(found[3]) == right
    assert len(batch.content) == sum(batch.original.lengths) - 2 * len(batch.original.lengths)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "mpnet"])
def test_neighbours_and_parts_change_nothing(made, kind, monkeypatch):
    """Sequences computed apart, few pairs at a time, few logits at a time: the same sums and gradients."""
    network, batch, _ = made(kind)
    network = network.double()

    def gradients():
        network.zero_grad()
        sums = network(batch)
        sums[:2].sum().backward()
        return sums.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    sums, expected = gradients()
    # Data-parallel training waits for a gradient of every parameter.
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(expected)
    monkeypatch.setattr(network_module, "_LOGITS", network.vocabulary * 7)
    monkeypatch.setattr(network_module, "_PAIRS", 1)
    again, found = gradients()
    assert torch.allclose(sums, again, rtol=1e-10)
    for name, gradient in expected.items():
        assert torch.allclose(gradient, found[name], rtol=1e-8, atol=1e-10), name


def test_an_empty_part_has_no_loss_and_gradients_of_zero(made, models):
    network, _, start = made("bert")
    tokens = Tokenization.of(start.tokenizer, "tiny")
    empty = Masking(tokens, 0.3, 0)(None, [], [])
    sums = network.train()(empty)
    sums[:2].sum().backward()
    assert sums.tolist() == [0, 0, 0, 0] and empty.counts == (0, 0)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_micro_batches_weigh_by_their_tokens(made, models, texts, tmp_path):
    """The gradient of a step is that of its tokens, however they are cut into micro-batches."""
    network, whole, start = made("bert")
    network = network.double()
    tokens = Tokenization.of(start.tokenizer, "tiny")
    data = read_texts([str(tmp_path / "texts.jsonl")], tokens, Reading(62), str(tmp_path / "cache"))
    masking = Masking(tokens, 0.3, 0)
    parts = [masking(data, rows, [0] * len(rows)) for rows in ([0], [1, 2, 3, 4, 5], [6, 7, 8])]
    trainer = SimpleNamespace(_since=None, args=SimpleNamespace(device=torch.device("cpu")))
    sampled = PretrainingTrainer.get_batch_samples(trainer, iter(parts), 3, torch.device("cpu"))[0]
    assert [sum(counts) for counts in zip(*(part.counts for part in parts), strict=True)] == list(whole.counts)

    def gradient(batches):
        network.zero_grad()
        for batch in batches:
            (loss_of(network(batch), batch).loss / len(batches)).backward()
        return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    expected = gradient([whole])
    for name, found in gradient(sampled).items():
        assert torch.allclose(found, expected[name], rtol=1e-9, atol=1e-12), name


def test_masks_depend_on_seed_visit_and_row_alone(models, texts, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(texts(6)))
    tokens = Tokenization.of(load_tokenizer(models("bert")), "tiny")
    data = read_texts([str(path)], tokens, Reading(62), str(tmp_path / "cache"))
    masking = Masking(tokens, 0.3, 0)
    whole, part = masking(data, [0, 1, 2], [0, 0, 0]), masking(data, [2], [0])
    assert torch.equal(whole.masked.input_ids[-part.tokens :], part.masked.input_ids)
    assert whole.seeds[2] == part.seeds[0]
    for other in (masking(data, [2], [1]), Masking(tokens, 0.3, 1)(data, [2], [0])):
        assert not torch.equal(other.masked.input_ids, part.masked.input_ids) and other.seeds[0] != part.seeds[0]
    assert np.isin(whole.hidden.numpy(), whole.content.numpy()).all()


def test_half_precision_and_checkpointing(made):
    network, batch, _ = made("bert")
    plain = network(batch)[:2].detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = network(batch)
    assert half.dtype == torch.float32 and torch.allclose(half[:2], plain, rtol=0.02)
    network.train().gradient_checkpointing_enable()
    network(batch)[:2].sum().backward()
    again = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.gradient_checkpointing_disable()
    network.zero_grad()
    network(batch)[:2].sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, again[name], atol=1e-4), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "modernbert"])
def test_the_decoders_positions_are_the_encoders(made, kind):
    network, batch, _ = made(kind)
    seen = {}
    table = network.transformer.embeddings.position_embeddings

    def remember(*given):
        seen["places"] = given[1][0].flatten()

    with table.register_forward_hook(remember):
        network.backbone(batch.original, "all")
        of_encoder = {place.item() for place in seen["places"]}
        network._embedded(batch.original)
    assert {place.item() for place in seen["places"]} <= of_encoder
    assert len(seen["places"]) == batch.tokens


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
