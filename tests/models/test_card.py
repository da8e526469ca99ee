"""Prompts, where each fact about a model comes from, and what happens when nobody knows it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgekit import FlagModel
from bgekit.errors import ArgumentError, CardError, CheckpointError
from bgekit.models.card import POOLINGS, SENTENCE_TRANSFORMERS_POOLING, Prompt
from bgekit.models.card_reading import read_card

ZH = "为这个句子生成表示以用于检索相关文章："
Make = Callable[..., Path]


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_bert, folder)
        return folder

    return make


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_files_come_first(copy: Callable[[str], Path]) -> None:
    folder = copy("bge-small-en-v1.5")
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    write(folder, "1_Pooling/config.json", pooling)
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "own: ", "document": ""}})
    card = read_card(folder)
    assert card.pooling == "mean"
    assert card.sources["pooling"] == "checkpoint"
    assert card.prompts["query"] == Prompt("own: ")
    assert card.max_length == 64


def test_the_family_fills_what_files_leave_out(copy: Callable[[str], Path]) -> None:
    folder = copy("bge-small-zh-v1.5")
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    card = read_card(folder)
    assert card.pooling == "cls"
    assert "family" in card.sources["pooling"]
    assert card.prompts["query"].prefix == ZH
    assert read_card(copy("run/checkpoint-500"), "run/bge-small-zh-v1.5/checkpoint-500").prompts["query"].prefix == ZH


def test_empty_prompts_of_sentence_transformers_say_nothing(copy: Callable[[str], Path]) -> None:
    folder = copy("bge-small-zh-v1.5")
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}})
    assert read_card(folder).prompts["query"].prefix == ZH
    write(
        folder, "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}, "bgekit": {"format": 1}}
    )
    assert read_card(folder).prompts["query"] == Prompt()


def test_unknown_pooling_is_an_error_that_lists_what_to_pass(make_model: Make) -> None:
    folder = make_model(pooling=None, name="my-own-model")
    with pytest.raises(CardError, match=r"pooling_method=, one of cls, mean, max, weighted_mean, last_token"):
        FlagModel(folder)
    assert FlagModel(folder, pooling_method="mean", devices="cpu").card.pooling == "mean"


def test_unknown_prompts_mean_none_with_a_log_line(tiny_bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bgekit"):
        assert read_card(tiny_bert).prompts["query"] == Prompt()
    assert "no prompts are known" in caplog.text


def test_a_caller_who_contradicts_is_obeyed_and_warned(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("bge-small-zh-v1.5")
    with caplog.at_level(logging.WARNING, "bgekit"):
        model = FlagModel(folder, pooling_method="mean", devices="cpu")
    assert model.card.pooling == "mean"
    assert model.card.sources["pooling"] == "caller"
    assert "'cls'" in caplog.text
    assert "'mean'" in caplog.text
    caplog.clear()
    FlagModel(folder, query_instruction_for_retrieval=ZH, devices="cpu")
    FlagModel(folder, query_instruction_for_retrieval=None, devices="cpu")
    assert not caplog.records


def test_another_prompt_is_a_choice_but_one_without_its_space_is_warned_of(
    make_model: Make, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model(name="bge-small-en-v1.5")
    english = "Represent this sentence for searching relevant passages: "
    assert read_card(folder).prompts["query"] == Prompt(english)
    with caplog.at_level(logging.INFO, "bgekit"):
        read_card(folder, query=Prompt("Find: "))
        read_card(folder, query=Prompt(english.rstrip()))
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == [logging.INFO, logging.WARNING]
    assert "'Find: '" in said[0][1] and said[1][1].endswith("it lacks the space at its end")
    caplog.clear()
    # What is refused is not said to be used.
    with pytest.raises(CardError, match="'avg' is not one of cls, mean"):
        read_card(folder, pooling="avg")
    assert not caplog.records


def test_every_pooling_has_its_names_in_the_files_of_sentence_transformers() -> None:
    assert tuple(SENTENCE_TRANSFORMERS_POOLING) == POOLINGS


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True}, "last_token"),
        ({"embedding_dimension": 32, "pooling_mode": "weightedmean"}, "weighted_mean"),
    ],
)
def test_both_forms_of_pooling_files(copy: Callable[[str], Path], content: Any, pooling: str) -> None:
    folder = copy("model")
    write(folder, "1_Pooling/config.json", content)
    assert read_card(folder).pooling == pooling


def test_newer_module_names(copy: Callable[[str], Path]) -> None:
    folder = copy("model")
    kinds = {
        "": "sentence_transformers.base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    write(folder, "modules.json", [{"path": path, "type": kind} for path, kind in kinds.items()])
    assert read_card(folder).normalize is True
    write(folder, "modules.json", [{"path": "", "type": "elsewhere.Strange"}])
    with pytest.raises(CardError, match="Strange"):
        read_card(folder)


@pytest.mark.parametrize(
    "content",
    [
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
        {},
    ],
)
def test_pooling_that_is_not_one_of_ours(copy: Callable[[str], Path], content: Any) -> None:
    folder = copy("model")
    write(folder, "1_Pooling/config.json", content)
    with pytest.raises(CardError, match="1_Pooling"):
        read_card(folder)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_every_similarity_of_sentence_transformers(copy: Callable[[str], Path], name: str) -> None:
    folder = copy("model")
    write(folder, "config_sentence_transformers.json", {"similarity_fn_name": name})
    card = read_card(folder)
    assert (card.similarity, card.sources["similarity"]) == (name, "checkpoint")
    write(folder, "config_sentence_transformers.json", {"similarity_fn_name": None})
    assert read_card(folder).sources["similarity"] == "default"


def test_the_stored_type_without_weights_is_that_of_the_config(copy: Callable[[str], Path]) -> None:
    folder = copy("model")
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**config, "dtype": "float16"})
    assert read_card(folder).dtype == "float32"  # the weights themselves know best
    (folder / "model.safetensors").unlink()
    card = read_card(folder)
    assert (card.dtype, card.sources["dtype"]) == ("float16", "config.json")
    config.pop("dtype", None)
    write(folder, "config.json", {**config, "torch_dtype": "bfloat16"})
    assert read_card(folder).dtype == "bfloat16"
    write(folder, "config.json", config)
    assert read_card(folder).sources["dtype"] == "default"


def test_damaged_side_files_are_named(copy: Callable[[str], Path]) -> None:
    folder = copy("model")
    (folder / "modules.json").write_text("[{")
    with pytest.raises(CheckpointError, match=r"modules\.json is damaged"):
        read_card(folder)


def test_a_length_beyond_the_positions(tiny_bert: Path) -> None:
    with pytest.raises(CardError, match="position embeddings for 64"):
        FlagModel(tiny_bert, max_length=100)
    assert FlagModel(tiny_bert, max_length=20, devices="cpu").card.max_length == 20


def test_roberta_positions_start_after_the_padding(make_model: Make) -> None:
    assert read_card(make_model("roberta")).position_limit == 65


def test_the_notice_of_bge_v1_is_logged_once(make_model: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(name="bge-small-en")
    with caplog.at_level(logging.WARNING, "bgekit"):
        FlagModel(folder, devices="cpu")
        FlagModel(folder, devices="cpu")
    assert caplog.text.count("v1.5") == 1


def test_sequence_classifiers_are_rerankers(copy: Callable[[str], Path]) -> None:
    folder = copy("some-model")
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", config | {"architectures": ["XLMRobertaForSequenceClassification"]})
    with pytest.raises(CardError, match="FlagReranker"):
        read_card(folder)


def test_a_renamed_copy_of_a_real_model_knows_its_family(bge_small_zh: Path, tmp_path: Path) -> None:
    """By the last part of its path alone, wherever it was copied to and however it is named there."""
    folder = tmp_path / "anything" / "bge-small-zh-v1.5"
    shutil.copytree(bge_small_zh, folder)
    for name in (str(folder), f"{folder}/", str(folder.parent / "x" / ".." / folder.name)):
        card = read_card(folder, name)
        assert card.prompts["query"] == Prompt(ZH) and "family table" in card.sources["query"]
        assert (card.pooling, card.sources["pooling"]) == ("cls", "checkpoint")
        assert card.prompts["document"] == Prompt()
    unknown = tmp_path / "my-model"
    folder.rename(unknown)
    card = read_card(unknown)
    assert card.prompts["query"] == Prompt() and card.sources["query"] == "default"
    assert card.pooling == "cls"


def test_a_format_is_applied_to_the_known_instruction(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("bge-small-zh-v1.5")
    with caplog.at_level(logging.INFO, "bgekit"):
        card = read_card(folder, query_format="<{}> {}")
    assert card.prompts["query"] == Prompt(f"<{ZH}> ")
    assert card.sources["query"] == "caller" and "family table" in caplog.text
    assert card.prompts["document"] == Prompt()  # nothing to put in a format
    assert read_card(folder, query_format="{}{}").prompts["query"] == Prompt(ZH)
    assert read_card(folder, query_format="<{}> {}", query=Prompt()).prompts["query"] == Prompt()
    # A family with a template of its own: its instruction is put in the caller's.
    multilingual = folder.rename(folder.with_name("multilingual-e5-large-instruct"))
    assert read_card(multilingual, query_format="[{}] {}").prompts["query"].prefix == (
        "[Given a web search query, retrieve relevant passages that answer the query] "
    )
    write(multilingual, "config_sentence_transformers.json", {"prompts": {"query": "find: ", "document": "passage: "}})
    card = read_card(multilingual, query_format="[{}] {}", document_format="({}) {}")
    assert card.prompts["query"] == Prompt("[find: ] ") and card.prompts["document"] == Prompt("(passage: ) ")


def test_the_current_folder_and_links_have_names_too(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = copy("bge-small-zh-v1.5")
    (tmp_path / "link").symlink_to(folder)
    assert read_card(tmp_path / "link").prompts["query"] == Prompt(ZH)
    monkeypatch.chdir(folder)
    assert read_card(Path("."), ".").prompts["query"] == Prompt(ZH)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"pooling": "mean"}, ("pooling", "'cls'", "'mean'", "checkpoint")),
        ({"normalize": False}, ("normalize", "True", "False", "checkpoint")),
        ({"query": Prompt("other: ")}, ("query", ZH, "other: ", "family table")),
        ({"document": Prompt("passage: ")}, ("document", "''", "passage: ", "family table")),
    ],
)
def test_the_warning_names_both_values_and_the_source(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture, arguments: Any, named: tuple[str, ...]
) -> None:
    with caplog.at_level(logging.INFO, "bgekit"):
        card = read_card(copy("bge-small-zh-v1.5"), **arguments)
    (record,) = (each for each in caplog.records if "but the caller says" in each.getMessage())
    # Another prompt is a choice.
    assert record.levelno == (logging.INFO if named[0] in ("query", "document") else logging.WARNING)
    assert all(word in caplog.text for word in named)
    assert [field for field, source in card.sources.items() if source == "caller"] == [named[0]]


def test_a_folder_saved_by_the_installed_sentence_transformers(tiny_bert: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(tiny_bert), device="cpu")
    theirs.save(str(tmp_path / "bge-small-zh-v1.5"))
    card = read_card(tmp_path / "bge-small-zh-v1.5")
    assert (card.pooling, card.normalize, card.max_length) == ("cls", True, 64)
    assert card.prompts["query"] == Prompt(ZH)  # its empty prompts say nothing
    theirs.prompts = {"query": "own: ", "document": "", "clustering": "group: "}
    theirs.default_prompt_name = "clustering"
    theirs.save(str(tmp_path / "with-prompts"))
    card = read_card(tmp_path / "with-prompts")
    assert card.prompts["query"] == Prompt("own: ") and card.prompts["clustering"] == Prompt("group: ")
    assert card.default_prompt == "clustering"
    some = ["a cat", "the river"]
    model = FlagModel(tmp_path / "with-prompts", use_fp16=False, devices="cpu")
    assert abs(model.encode(some) - theirs.encode(some)).max() < 1e-5
    assert abs(model.encode_queries(some) - theirs.encode_query(some)).max() < 1e-5


def test_prompts_that_stand_apart_are_read_back(copy: Callable[[str], Path]) -> None:
    folder = copy("model")
    ours = {"format": 1, "prompt_suffixes": {"query": "]"}, "prompts_apart": ["query"]}
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "[", "document": ""}, "bgekit": ours})
    assert read_card(folder).prompts["query"] == Prompt("[", "]", apart=True)
    assert read_card(folder).prompts["document"] == Prompt()


@pytest.mark.parametrize("length", [0, -1, True, 2.5, "512", None])
def test_a_length_that_is_none(tiny_bert: Path, length: Any) -> None:
    with pytest.raises(CardError, match="positive number of tokens"):
        read_card(tiny_bert, max_length=length)


def test_files_that_promise_more_than_there_are_positions(copy: Callable[[str], Path]) -> None:
    folder = copy("model")
    write(folder, "sentence_bert_config.json", {"max_seq_length": 8192})
    assert read_card(folder).max_length == 64
    (folder / "sentence_bert_config.json").unlink()
    assert read_card(folder).max_length == 64  # the tokenizer's


@pytest.mark.parametrize("missing", ["1_Pooling/config.json", "config.json"])
def test_missing_side_files_are_named(copy: Callable[[str], Path], missing: str) -> None:
    folder = copy("model")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        read_card(folder)


def test_a_card_is_plain_values_when_asked(bge_small_zh: Path) -> None:
    card = read_card(bge_small_zh)
    values = card.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["prompts"]["query"] == [ZH, ""] and values["dimension"] == 512
    assert set(card.sources) >= {"pooling", "normalize", "max_length", "query", "document"}
    assert card.prompt("query") == Prompt(ZH)
    assert card.prompt(None) == card.prompt("no such role") == Prompt()


@pytest.mark.parametrize("pooling", ["average", "CLS", "", None, 3])
def test_a_pooling_that_does_not_exist_is_never_taken_for_another(tiny_bert: Path, pooling: Any) -> None:
    with pytest.raises(CardError, match=r"pooling_method=.* is not one of cls, mean, max, weighted_mean, last_token"):
        FlagModel(tiny_bert, pooling_method=pooling)
    with pytest.raises(ArgumentError, match=r"pooling_method is a name such as 'cls', not True"):
        FlagModel(tiny_bert, pooling_method=True)  # type: ignore[arg-type]


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["BAAI_bge-base-zh-v1___5", "bge_base_zh_v1.5-main"])
def test_a_folder_named_by_a_download_gets_its_instruction(
    copy: Callable[[str], Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    card = FlagModel(copy(name), devices="cpu").card
    assert (card.prompts["query"], card.family) == (Prompt(ZH), "BGE v1.5, Chinese")
    assert not logged(caplog)


def test_a_link_gets_the_instruction_format_of_what_it_points_to(copy: Callable[[str], Path], tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(copy("Qwen3-Embedding-0.6B"))
    model = FlagModel(link, query_instruction_for_retrieval="Find the law", devices="cpu")
    assert model.card.prompts["query"] == Prompt("Instruct: Find the law\nQuery:")


def test_a_fine_tune_gets_no_instruction_but_a_warning_that_names_the_likely_one(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("court-bge-base-zh-v1.5-2024")
    for _ in range(2):
        assert FlagModel(folder, devices="cpu").card.prompts["query"] == Prompt()
    (warning,) = logged(caplog)
    assert "speaks of bge-base-zh-v1.5" in warning and repr(ZH) in warning
    assert "query_instruction_for_retrieval=" in warning


def test_an_unknown_model_that_looks_like_bge_is_warned_of_by_its_vocabulary(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("embedder-of-the-house")
    card = read_card(folder)
    assert "may be of the BGE kind" in str(card.notice)
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", config | {"vocab_size": 21128})
    assert f"BGE v1.5, Chinese, whose queries get {ZH!r}" in str(read_card(folder).notice)
    write(folder, "config.json", config | {"model_type": "xlm-roberta", "vocab_size": 250002})
    assert read_card(folder).notice is None  # BGE-M3 has no instruction


def test_whoever_says_which_prompts_count_is_not_warned(
    copy: Callable[[str], Path], make_model: Make, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("quiet-please")
    for given in ("", None, "ask: "):
        FlagModel(folder, query_instruction_for_retrieval=given, devices="cpu")
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": ""}, "bgekit": {"format": 1}})
    FlagModel(folder, devices="cpu")
    FlagModel(make_model(pooling="mean", name="mean-of-the-house"), devices="cpu")
    FlagModel(make_model(pooling="cls", name="tuned-bge-m3"), devices="cpu")
    assert not logged(caplog)


def test_an_instruction_alone_stands_before_the_text() -> None:
    assert Prompt.from_format("find: ") == Prompt("find: ", "")


def test_a_template_puts_instruction_and_text_together() -> None:
    assert Prompt.from_format("Find it", "Instruct: {}\nQuery: {}") == Prompt("Instruct: Find it\nQuery: ")
    assert Prompt.from_format("Find it", "<i>{}\n<q>{}\n<r>") == Prompt("<i>Find it\n<q>", "\n<r>")


def test_a_written_out_line_break_is_one() -> None:
    assert Prompt.from_format("Find it", r"Instruct: {}\nQuery: {}").prefix == "Instruct: Find it\nQuery: "


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_instruction_means_no_prompt_whatever_the_template(nothing: str | None) -> None:
    prompt = Prompt.from_format(nothing, "Instruct: {}\nQuery: {}")
    assert prompt == Prompt() and not prompt


@pytest.mark.parametrize("template", ["", "{}", "{}{}{}", "{instruction} {text}"])
def test_a_template_without_its_two_slots_is_refused(template: str) -> None:
    with pytest.raises(ArgumentError, match=r"two slots \{\}"):
        Prompt.from_format("Find it", template)


def test_braces_of_an_instruction_are_text() -> None:
    assert Prompt.from_format("a {} b", "{}: {}") == Prompt("a {} b: ")


INSTRUCT = "Instruct: {}\nQuery: {}"


@pytest.mark.parametrize(
    ("prompt", "made_with", "template", "expected"),
    [
        (Prompt("find: "), None, "<{}> {}", Prompt("<find: > ")),
        (Prompt("find: "), None, "{}{}", Prompt("find: ")),
        (Prompt("Instruct: Find\nQuery: "), INSTRUCT, "<i>{}\n<q>{}\n<r>", Prompt("<i>Find\n<q>", "\n<r>")),
        (Prompt("Instruct: Find\nQuery: "), INSTRUCT, "{}{}", Prompt("Find")),
        (Prompt("Instruct: Find\nQuery: "), None, INSTRUCT, Prompt("Instruct: Find\nQuery: ")),
        (Prompt("Instruct: Find\nQuery: "), None, r"Instruct: {}\nQuery: {}", Prompt("Instruct: Find\nQuery: ")),
        (Prompt("<i>Find\n<q>", "\n<r>"), "<i>{}\n<q>{}\n<r>", INSTRUCT, Prompt("Instruct: Find\nQuery: ")),
        (Prompt("own: "), INSTRUCT, "<{}> {}", Prompt("<own: > ")),
        (Prompt(), INSTRUCT, "<{}> {}", Prompt()),
    ],
)
def test_the_instruction_of_a_prompt_in_another_template(
    prompt: Prompt, made_with: str | None, template: str, expected: Prompt
) -> None:
    assert prompt.in_format(template, made_with) == expected


@pytest.mark.parametrize("prompt", [Prompt("[", "]", apart=True), Prompt("[", "]"), Prompt("x", apart=True)])
def test_brackets_are_no_instruction(prompt: Prompt) -> None:
    with pytest.raises(ArgumentError, match="is not an instruction"):
        prompt.in_format("<{}> {}")
    with pytest.raises(ArgumentError, match=r"two slots \{\}"):
        Prompt("find: ").in_format("{}")


def test_how_prompts_are_shown() -> None:
    assert str(Prompt("query: ")) == "query: "
    assert str(Prompt("[", "]")) == "[{text}]"
    assert bool(Prompt("", "]"))
