"""Texts to ids: what the Hugging Face tokenizer gives, with prompts, cut and counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgekit.data.encodings import repair
from bgekit.errors import ArgumentError, CheckpointError
from bgekit.inference.tokenization import TextTokenizer, Tokens, load_tokenizer, merged
from bgekit.models.card import Prompt

NONE = Prompt()


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return load_tokenizer(tiny_bert)


@pytest.mark.parametrize("length", [3, 4, 10, 64])
def test_ids_are_those_of_the_tokenizer(tokenizer: Any, texts: Callable[..., list[str]], length: int) -> None:
    some = ["", " ", "a", "文本向量", "A\x00b", *texts(60)]
    tokens = TextTokenizer(tokenizer, NONE, length)(some)
    assert tokens.ids == tokenizer(some, truncation=True, max_length=length)["input_ids"]
    whole = tokenizer(some, truncation=False)["input_ids"]
    assert tokens.truncated == [row for row, ids in enumerate(whole) if len(ids) > length]
    one = TextTokenizer(tokenizer, NONE, length)
    assert [one([text]).ids[0] for text in some] == tokens.ids


def test_a_text_of_exactly_the_maximum_is_not_cut(tokenizer: Any) -> None:
    for words in (7, 8, 9):
        tokens = TextTokenizer(tokenizer, NONE, 10)(["cat " * words])
        assert (len(tokens.ids[0]), tokens.truncated) == ((words + 2, []) if words < 9 else (10, [0]))


@settings(deadline=None, max_examples=100)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    prefix=st.sampled_from(["", "query: ", "find"]),
    suffix=st.sampled_from(["", "]", " end of it"]),
    apart=st.booleans(),
    length=st.integers(20, 40),
)
def test_prompts_stay_whole(tokenizer: Any, text: str, prefix: str, suffix: str, apart: bool, length: int) -> None:
    tokens = TextTokenizer(tokenizer, Prompt(prefix, suffix, apart), length)([text])
    (ids,) = tokens.ids
    plain = {part: tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prefix, suffix, text)}
    joined = plain[prefix] + plain[text] if apart else tokenizer(prefix + text, add_special_tokens=False)["input_ids"]
    room = length - 2 - len(plain[suffix])
    assert ids == [tokenizer.cls_token_id, *joined[:room], *plain[suffix], tokenizer.sep_token_id]
    assert tokens.truncated == ([0] if len(joined) > room else [])
    assert tokens.prompt_length == (1 + len(plain[prefix]) if prefix else 0)


def test_no_room_for_text(tokenizer: Any) -> None:
    for prompt, length in ((NONE, 2), (NONE, 1), (Prompt("", "a b c d"), 6), (Prompt("[", "]", True), 4)):
        with pytest.raises(ArgumentError, match="leaves no room for text"):
            TextTokenizer(tokenizer, prompt, length)


def test_the_callers_tokenizer_is_left_as_it_is(tokenizer: Any) -> None:
    state = tokenizer.backend_tokenizer.to_str()
    tokenizer_for_queries = TextTokenizer(tokenizer, Prompt("query: "), 8)
    tokenizer("word " * 50, truncation=True, max_length=5, padding="max_length")
    assert len(tokenizer_for_queries(["word " * 50]).ids[0]) == 8
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    assert tokenizer.backend_tokenizer.to_str() == state


def test_threads_share_one(tokenizer: Any, texts: Callable[..., list[str]]) -> None:
    shared = TextTokenizer(tokenizer, Prompt("query: "), 12)
    parts = [texts(50, seed=seed) for seed in range(16)]
    expected = [shared(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shared, parts)) == expected


@settings(max_examples=200)
@given(st.text(st.characters() | st.characters(categories=["Cs"]), max_size=12))
def test_repaired_texts_are_valid_unicode(text: str) -> None:
    fixed, changed = repair(text)
    fixed.encode("utf-8")
    surrogates = any("\ud800" <= character <= "\udfff" for character in text)
    assert changed == surrogates
    if not surrogates:
        assert fixed == text


@pytest.mark.parametrize(
    ("broken", "fixed"),
    [
        ("\ud800", "\ufffd"),
        ("a\udc00b", "a\ufffdb"),
        ("a\ud800", "a\ufffd"),
        ("\ud800\ud800x", "\ufffd\ufffdx"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude42!", "🙂!"),
        ("\ud800\ud83d\ude42", "\ufffd🙂"),
    ],
)
def test_each_lone_surrogate_becomes_one_replacement(broken: str, fixed: str) -> None:
    assert repair(broken) == (fixed, True)


def test_faults_of_tokenizer_files(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(CheckpointError, match=f"tokenizer in {folder}"):
        load_tokenizer(folder)
    for path in [*folder.glob("*token*"), folder / "vocab.txt"]:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer \(none of tokenizer\.json"):
        load_tokenizer(folder)


def test_equal_sequences_are_merged_whatever_texts_they_come_from() -> None:
    tokens = Tokens([[1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 5, 6, 2]], truncated=[3])
    found = merged(tokens)
    assert found.ids == [[1, 5, 2], [1, 6, 2], [1, 5, 6, 2]]
    assert found.places == [0, 1, 0, 2] and found.truncated == [3]
    assert [found.keys.index(key) for key in found.keys] == [0, 1, 0, 3]
    assert merged(Tokens([[1], [2]])).places is None


def test_sequences_of_other_token_types_are_not_equal() -> None:
    found = merged(Tokens([[1, 5, 2]] * 3, types=[[0, 0, 1], [0, 1, 1], [0, 0, 1]]))
    assert found.ids == [[1, 5, 2]] * 2 and found.types == [[0, 0, 1], [0, 1, 1]]
    assert found.places == [0, 1, 0]


def test_inputs_of_several_sequences_are_equal_if_all_of_them_are() -> None:
    found = merged(Tokens([[1, 2], [3], [1, 2], [4], [1, 2], [3]], starts=[0, 2, 4], split=[0, 1, 2]))
    assert found.ids == [[1, 2], [3], [4]] and found.places == [0, 1, 0, 2, 0, 1]
    assert found.starts == [0, 2, 4]
    assert found.keys[0] == found.keys[2] != found.keys[1]
