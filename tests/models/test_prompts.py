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


def test_how_prompts_are_shown() -> None:
    assert str(Prompt("query: ")) == "query: "
    assert str(Prompt("[", "]")) == "[{text}]"
    assert bool(Prompt("", "]"))
