"""Prompts, and the templates that FlagEmbedding users know."""

from __future__ import annotations

import pytest

from bgekit.errors import ArgumentError
from bgekit.models.prompts import Prompt


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
    with pytest.raises(ArgumentError, match="is no instruction"):
        prompt.in_format("<{}> {}")
    with pytest.raises(ArgumentError, match=r"two slots \{\}"):
        Prompt("find: ").in_format("{}")


def test_how_prompts_are_shown() -> None:
    assert str(Prompt("query: ")) == "query: "
    assert str(Prompt("[", "]")) == "[{text}]"
    assert bool(Prompt("", "]"))
