"""Messages of the library for the command line: options of the verb at hand where Python has arguments.

The library names an argument as `name=value`, which the same message from `bge` must not: nobody can type it there. So
nothing in the library knows of the command line; the verb's own parser says which option an argument is.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

#: What is no matter of an argument's name.
_PHRASES: Final = (
    (
        re.compile(r"\b([Uu])se FlagReranker\(name\)\.compute_score\(pairs\) instead of FlagModel"),
        r"\1se it with bge rerank or bge score, or as --reranker of bge search and bge eval",
    ),
    (re.compile(r" or pass api_key="), ""),
    (re.compile(r"\buse_fp16=False"), "--fp32"),
    (re.compile(r"\buse_fp16=True to choose"), "neither --dtype nor --fp32, which chooses"),
    (re.compile(r"\bnormalize_embeddings=False"), "--no-normalize"),
    (re.compile(r"\blong_passages='windows'"), "--windows"),
)
#: `allow_pickle=True (--allow-pickle)`: both, and the latter is for here.
_BOTH: Final = re.compile(
    r"\b(?:[a-z_]+=\S+|[a-z]+(?:_[a-z]+)+) \((--[a-z][^()]*)\)|(--[\w-]+(?: [A-Z]+)?) \([a-z_]+=[^()]*\)"
)
#: An argument with a value or without, but not within a call: `save(folder, overwrite=True)`.
_ARGUMENT: Final = re.compile(
    r"(?<![\w./(-])(?<!, )([a-z][a-z0-9_]*)=('[^']*'|\"[^\"]*\"|[\w.-]*\w|\.\.\.)?(?![\w/)(])"
)
_NAME: Final = re.compile(r"(?<![\w./'\"=-])([a-z]+(?:_[a-z]+)+)(?![\w/(='\"-])")
#: Advice in parentheses that is of use where there is the option.
_ADVICE: Final = re.compile(r" \((--[a-z][\w-]*) [^()]*\)| Name (?:the field|it) with (--[a-z][\w-]*)\.")
_known: Callable[[], Mapping[str, str]] = dict


def speak_for(known: Callable[[], Mapping[str, str]]) -> None:
    """Speak for a verb from now on.

    Args:
        known: Gives the verb's options: what each is called, by its names without dashes and with underscores.
    """
    global _known
    _known = known


def options_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The first name of each option of a parser, by all its names: what `speak_for` is given."""
    return {_plain(name): first for first, *names in _options(parser) for name in (first, *names)}


def option_of(name: str) -> str:
    """The option of an argument as help and documentation write it: `--learning-rate` of `learning_rate`."""
    return "--" + name.replace("_", "-")


def listed_option(name: str) -> str:
    """The option of an argument as the help of the verb at hand lists it: `--split` of `eval_split`."""
    return _known().get(name, option_of(name))


def did_you_mean(name: str, known: Iterable[str], *, within: bool = False) -> str:
    """The part of a message on an unknown name that says which known one it is most like, empty where it is like none.

    Args:
        name: What was typed.
        known: All that could have been meant; names that differ in hyphens and underscores alone count as one.
        within: Whether the sentence continues after it.
    """
    # Of several spellings the longest without underscores is the one that the help shows.
    spelled = {_bare(each): each for each in sorted(known, key=lambda each: (len(each), "_" not in each.lstrip("-")))}
    near = difflib.get_close_matches(_bare(name), spelled, 1)
    meant = f"did you mean {spelled[near[0]]}?" if near else ""
    return meant and (f" ({meant})" if within else f"; {meant}")


def _bare(name: str) -> str:
    """A name as far as typing mistakes go: dashes, underscores and capitals are none."""
    return re.sub("[-_ ]", "", name.lower())


def with_nearest(message: str) -> str:
    """A message of argparse with, where a value is not a choice, the choice that it is most like."""
    found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
    if found is None:
        return message
    return message + did_you_mean(found[1], [each.strip(" '") for each in found[2].split(",")])


def add_option(group: argparse._ActionsContainer, *names: str, old: Iterable[str] = (), **options: Any) -> None:
    """Add an option to a parser, or to a part of it.

    Args:
        group: The parser.
        names: Names that its help lists, the short one first.
        old: Names that are understood and not listed: those of FlagEmbedding, and earlier ones.
        options: As `add_argument` takes them.
    """
    action = group.add_argument(*names, **options)
    for name in old:
        group._option_string_actions[name] = action
    _old_names[action] = tuple(old)


#: Names of options that are understood and not listed.
_old_names: Final[weakref.WeakKeyDictionary[argparse.Action, tuple[str, ...]]] = weakref.WeakKeyDictionary()


def take_both_spellings(parser: argparse.ArgumentParser) -> None:
    """Let a parser take `--shard_size` for `--shard-size` and the reverse, and `--topk` for `--top-k`.

    Its help shows what it showed before.
    """
    known = parser._option_string_actions
    for name, action in list(known.items()):
        if name.startswith("--"):
            known.setdefault(option_of(name[2:]), action)
            known.setdefault(f"--{_plain(name)}", action)
    for name, action in list(known.items()):
        if name.startswith("--"):
            known.setdefault(f"--{_bare(name)}", action)


def _options(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)
        elif named := [name for name in action.option_strings if name.startswith("--")]:
            yield [*named, *_old_names.get(action, ())]


def _plain(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def spoken(message: str, *, arguments: bool = False) -> str:
    """A message of the library for the command line.

    Args:
        message: The message.
        arguments: Whether it is about arguments, so that a name that is an option's means the option; in what is said
            about data it can be a field's.
    """
    if "\n    " in message:  # Quoted, as it was written.
        return "\n".join(line if line.startswith("    ") else spoken(line, arguments=arguments)
                         for line in message.split("\n"))  # fmt: skip
    if not re.search(r"[a-z]=|[a-z]_[a-z]| --[a-z]|\(--", message):
        return message
    known = _known()
    for phrase, here in _PHRASES:
        message = phrase.sub(here, message)
    message = _ADVICE.sub(lambda found: found[0] if _plain(found[1] or found[2]) in known else "", message)
    message = _BOTH.sub(lambda found: _own(found, known), message)
    message = _ARGUMENT.sub(lambda found: _option(found, known), message)
    if arguments:
        message = _NAME.sub(lambda found: known.get(found[1], found[0]), message)
    return message


def _own(found: re.Match[str], known: Mapping[str, str]) -> str:
    option = found[1] or found[2]
    same = _plain(option.split()[0]) == re.split(r"[ =(]", found[0].lstrip("("))[0] or found[2]
    return option if same and _plain(option.split()[0]) in known else found[0]


def _option(found: re.Match[str], known: Mapping[str, str]) -> str:
    name, given = found[1], found[2] or ""
    if name not in known:
        return found[0]
    value = given[1:-1] if given[:1] in ("'", '"') else given
    return known[name] if given in ("", "True", "...") else f"{known[name]} {shlex.quote(value)}"
