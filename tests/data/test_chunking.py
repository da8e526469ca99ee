"""Passages are parts of the text, cover every token, fit the size, and overlap as asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgekit.data import chunking
from bgekit.data.chunking import Passage, chunk_records, chunk_text, document_of
from bgekit.data.markup import Document
from bgekit.data.records import Record, titled
from bgekit.errors import ArgumentError, DataError

SENTENCE = "The cat and the dog read a book by the river. "


@pytest.fixture(scope="session")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def spans(tokenizer, text: str) -> list[tuple[int, int]]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def count(tokenizer, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def check(tokenizer, text: str, passages: list[Passage], size: int, overlap: int) -> None:
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert count(tokenizer, passage.text) <= size
    for start, end in spans(tokenizer, text):
        assert any(passage.start <= start and end <= passage.end for passage in passages), text[start:end]
    for left, right in itertools.pairwise(passages):
        assert left.start < right.start
        assert left.end < right.end
        assert count(tokenizer, text[right.start : left.end]) <= overlap


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("abc cat the .!\n 中文。模，🙂é\t'\""), max_size=400),
    size=st.integers(1, 40),
    share=st.floats(0, 0.99),
)
def test_passages_are_parts_that_fit_and_cover_everything(tokenizer, text, size, share):
    overlap = int(size * share)
    check(tokenizer, text, chunk_text(text, tokenizer, size, overlap), size, overlap)


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.sampled_from("cat dog river. library! the\n\n embedding".split(" ")), max_size=300))
def test_texts_of_words(tokenizer, words):
    text = " ".join(words)
    passages = chunk_text(text, tokenizer, 20, 5)
    check(tokenizer, text, passages, 20, 5)
    assert all(passage.text.strip() == passage.text for passage in passages[1:-1])


def test_a_short_text_stays_as_it_is(tokenizer):
    assert chunk_text("  a cat \n", tokenizer, 5, 1) == [Passage("  a cat \n", 0, 9)]
    assert chunk_text("", tokenizer, 5, 1) == [Passage("", 0, 0)]
    assert chunk_text(" \n", tokenizer, 5, 1) == [Passage(" \n", 0, 2)]


def test_passages_end_with_sentences_and_begin_with_words(tokenizer):
    size = 5 * count(tokenizer, SENTENCE) + 3
    passages = chunk_text(SENTENCE * 20, tokenizer, size, 4)
    assert len(passages) > 3
    assert all(passage.text.endswith(".") for passage in passages)
    words = set(SENTENCE.split())
    assert all(passage.text.split()[0] in words for passage in passages)


def test_paragraphs_are_better_than_sentences(tokenizer):
    one = count(tokenizer, SENTENCE)
    text = f"{SENTENCE * 7}\n\n{SENTENCE * 6}"
    first = chunk_text(text, tokenizer, 8 * one + 1, 0)[0]
    assert first.text == (SENTENCE * 7).rstrip()


def test_chinese_ends_with_sentences(tokenizer):
    text = "中文模型文档检索样例。" * 20
    passages = chunk_text(text, tokenizer, 30, 5)
    assert all(passage.text.endswith("。") for passage in passages)
    check(tokenizer, text, passages, 30, 5)


def test_a_word_longer_than_a_passage(tokenizer):
    text = "x" * 95 + " a cat"
    check(tokenizer, text, chunk_text(text, tokenizer, 10, 3), 10, 3)


def test_long_texts_are_tokenised_in_parts_with_the_same_result(tokenizer, monkeypatch):
    text = (SENTENCE * 30 + "\n\n" + "cat " * 40) * 3
    whole = chunk_text(text, tokenizer, 50, 10)
    monkeypatch.setattr(chunking, "_SLAB", 300)
    assert chunk_text(text, tokenizer, 50, 10) == whole


def test_surrogates_stay_for_the_encoder_to_count(tokenizer):
    text = "cat \ud800 dog " * 20
    passages = chunk_text(text, tokenizer, 10, 2)
    assert len(passages) > 3
    assert all(passage.text == text[passage.start : passage.end] for passage in passages)
    assert any("\ud800" in passage.text for passage in passages)


def test_the_tokenizer_keeps_its_settings(tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(7)
    try:
        assert len(chunk_text(SENTENCE * 10, tokenizer, 20, 0)) > 5
        assert tokenizer.backend_tokenizer.truncation["max_length"] == 7
    finally:
        tokenizer.backend_tokenizer.no_truncation()


def test_records_get_numbered_ids(tokenizer):
    records = [Record("a", SENTENCE * 5, "f.txt", 1), Record("b#1", "cat", "f.txt", 2)]
    found = list(chunk_records(records, tokenizer, 20, 3))
    assert [record.id for record in found[:2]] == ["a#0", "a#1"]
    assert found[-1] == Record("b#1#0", "cat", "f.txt", 2)
    assert document_of("b#1#0") == ("b#1", 0)
    assert {(record.file, record.line) for record in found[:-1]} == {("f.txt", 1)}


def test_records_before_one_that_cannot_be_read_come_first(tokenizer):
    def records() -> Iterator[Record]:
        yield from (Record(str(number), "cat") for number in range(70))
        raise DataError("line 71")

    found = []
    with pytest.raises(DataError, match="line 71"):
        found.extend(record.id for record in chunk_records(records(), tokenizer, 5, 1))
    # `extend` keeps what came before the error.
    assert found == [f"{number}#0" for number in range(70)]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_impossible_sizes(tokenizer, size, overlap):
    with pytest.raises(ArgumentError, match="from 0 to below the size"):
        chunk_text("cat", tokenizer, size, overlap)


@cache
def train(kind: str):
    """A tokenizer of the kinds that RoBERTa, ModernBERT and Qwen, or XLM-R and T5 have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    backend.train_from_iterator([SENTENCE * 3, "embedding library fast small", "中文模型文档"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("abc cat  the .!\n 中文。🙂é"), max_size=300), size=st.integers(4, 40))
def test_other_kinds_of_tokenizers(kind, text, size):
    other = train(kind)
    passages = chunk_text(text, other, size, size // 4)
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert count(other, passage.text) <= size
    for start, end in spans(other, text):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        assert any(passage.start <= start and end <= passage.end for passage in passages), text[start:end]


# --- documents


def passages_of(tokenizer, text, size, overlap=0, **more):
    document = Document(text, marked=True, first_line=1, **more)
    records = chunk_records(
        [Record("a.md", titled(document.title, text), "a.md", 1, document)], tokenizer, size, overlap
    )
    return list(records)


def test_a_document_is_cut_at_its_headings(tokenizer):
    text = "The cat.\n\n# Guide\n\nThe dog.\n\n## River\n\nThe bird.\n\n## Tree\n\n### House\n\nThe tree."
    found = passages_of(tokenizer, text, 40, title="Book")
    assert [(record.id, record.text, record.line) for record in found] == [
        ("a.md#0", "Book The cat.", 1),
        ("a.md#1", "Book > Guide The dog.", 3),
        ("a.md#2", "Book > Guide > River The bird.", 7),
        ("a.md#3", "Book > Guide > Tree > House The tree.", 13),
    ]


def test_paragraphs_stay_whole_where_they_fit(tokenizer):
    paragraphs = [" ".join(["cat"] * length) for length in (6, 5, 9, 3, 14, 2)]
    found = passages_of(tokenizer, "# tree\n\n" + "\n\n".join(paragraphs), 13)
    assert [record.text for record in found] == [
        "tree " + "\n\n".join(paragraphs[:2]), "tree " + "\n\n".join(paragraphs[2:4]),
        "tree " + " ".join(["cat"] * 12), "tree cat cat", "tree cat cat",
    ]  # fmt: skip


def test_neighbours_share_whole_paragraphs(tokenizer):
    paragraphs = [" ".join([word] * 4) for word in ("cat", "dog", "bird", "tree")]
    found = passages_of(tokenizer, "\n\n".join(paragraphs), 12, overlap=5)
    assert [record.text for record in found] == ["\n\n".join(paragraphs[:3]), "\n\n".join(paragraphs[2:])]


def test_tables_are_cut_between_rows_and_keep_their_header(tokenizer):
    rows = [f"| cat{number} | {'dog ' * 4}|" for number in range(9)]
    header = "| a | b |\n|---|---|"
    found = passages_of(tokenizer, "\n".join(["# tree\n\nThe river.\n", header, *rows]), 44)
    assert len(found) > 2
    seen = []
    for record in found:
        assert count(tokenizer, record.text) <= 44
        lines = record.text.split("\n")
        if len(seen) or "The river." not in record.text:
            assert record.text.startswith(f"tree {header}\n")
        seen += [line for line in lines if line in rows]
    assert seen == rows


def test_a_row_is_never_cut(tokenizer):
    rows = [f"| cat | {'dog ' * length}|" for length in (3, 50, 3)]
    found = passages_of(tokenizer, "\n".join(["| a | b |", "|---|---|", *rows]), 30)
    assert [[line for line in record.text.split("\n") if line in rows] for record in found] == [[row] for row in rows]


def test_a_fence_is_cut_only_where_it_is_too_long(tokenizer):
    short, long = "\n".join(["dog cat"] * 8), "\n".join(["bird tree"] * 20)
    text = f"The cat and the dog and the bird.\n\n```\n{short}\n```\n\nThe river.\n\n```\n{long}\n```"
    found = [record.text for record in passages_of(tokenizer, text, 28)]
    assert sum(f"```\n{short}\n```" in text for text in found) == 1
    assert all(text.count("bird") == text.count("tree") for text in found if "bird tree" in text)
    assert sum(text.count("bird tree") for text in found) == 20


def test_long_lists_are_cut_between_items(tokenizer):
    items = [f"- cat {number}\n  - dog {number}" for number in range(8)]
    found = passages_of(tokenizer, "\n".join(items), 20)
    assert len(found) > 2
    assert all(record.text.startswith("- cat") for record in found)
    assert "\n".join(record.text for record in found) == "\n".join(items)


def test_titles_leave_half_of_a_passage_to_the_text(tokenizer):
    deep = "\n".join(f"{'#' * level} {'tree ' * 5}" for level in range(1, 7))
    found = passages_of(tokenizer, f"{deep}\n\n{'cat ' * 40}", 24)
    assert all(record.text.startswith(f"{' '.join(['tree'] * 5)} > ") for record in found)
    assert all(count(tokenizer, record.text) <= 24 for record in found)
    assert sum(record.text.count("cat") for record in found) == 40


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(
            ["# cat", "## the dog", "", "", "The river runs.", "| a | b |", "|---|---|", "| 1 | cat dog |", "- bird",
             "  - tree", "```", "    code", "> small", "中文模型。检索向量", "[a]: b", "***", "<div>", "house " * 9]
        ),
        max_size=40,
    ),
    size=st.integers(4, 40),
)  # fmt: skip
def test_passages_of_documents_cover_every_word(tokenizer, lines, size):
    text = "\n".join(lines)
    found = passages_of(tokenizer, text, size, overlap=size // 4)
    words = [word for word in text.replace("#", "").replace("|", " ").split() if word.isalpha()]
    joined = " ".join(record.text for record in found)
    # A word of a heading whose own title was too long is the one thing that may be gone.
    assert all(word in joined for word in words if word not in ("cat", "the", "dog"))
    for record in found:
        assert count(tokenizer, record.text) <= size or "|" in record.text
