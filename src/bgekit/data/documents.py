"""Files that an argument stands for: itself, those in a folder, those that a glob matches; and what they are called.

In a folder hidden files, those that a .gitignore names, and indexes and shards of bgekit are passed over.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from ..errors import ArgumentError, DataError, require_extra
from ..files.remote import is_file, is_folder, is_pattern, is_url, list_url, matching, open_binary
from .columns import BadLines
from .formats import FORMATS, check_format, format_of, listing, open_stream, stem_and_format
from .markup import DOCUMENTS

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

logger = logging.getLogger(__name__)
#: What of a text or a document is one record.
Unit: TypeAlias = Literal["line", "paragraph", "section", "file"]
UNITS: Final = get_args(Unit)
#: Formats of texts, of which a unit is a record; rows of the others are records already.
TEXTS: Final = ("txt", *DOCUMENTS)
#: Endings of documents, and the format that each stands for.
_SUFFIXES: Final = {
    ".md": "md", ".markdown": "md", ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf", ".docx": "docx",
}  # fmt: skip
#: Formats that need the extra `documents`, and the package of it that reads them.
_PACKAGES: Final = {"pdf": "pypdf", "docx": "mammoth"}
#: The file of what is being made of shards at a URL, which get their manifest in the end.
BEGUN: Final = "begun.json"
#: Files by which indexes and shards are known, and what they say of their format.
_MADE: Final = {"index.json": "bgekit index", "manifest.json": "bgekit shards", BEGUN: "bgekit shards"}
#: A pattern of a .gitignore with the folder that it is relative to.
_Rules: TypeAlias = "tuple[tuple[str, GitIgnoreSpec], ...]"


@dataclass(frozen=True)
class Source:
    """A file of the input.

    Attributes:
        path: The file, `-` for standard input.
        name: What ids of documents in it begin with.
        form: Its format; None where that is seen from its first bytes when it is read.
        found: Whether it was found in a folder: if it cannot be read, it is left out.
        unit: What of it is one record unless the caller says so; of formats with rows it is a row in any case.
        size: Its bytes, where a list of its folder says them.
    """

    path: str
    name: str
    form: str | None
    found: bool = False
    unit: Unit = "line"
    size: int | None = None

    @classmethod
    def of(cls, path: str, name: str, form: str | None, *, found: bool = False, size: int | None = None) -> Source:
        """A file with the unit that goes with its format."""
        return cls(path, name, form, found, "file" if form in DOCUMENTS else "line", size)

    @property
    def is_text(self) -> bool:
        """Whether it is a text or a document, as far as that is known before it is read."""
        return self.form in TEXTS


def check_documents(format: str | None, records: str | None) -> None:
    """Raise ArgumentError unless both are None or known."""
    if format not in DOCUMENTS:
        check_format(format)
    if records is not None and records not in UNITS:
        raise ArgumentError(f"records must be one of {', '.join(UNITS)}, not {records!r}")


def form_of_name(name: str) -> str | None:
    """The format that a file's ending stands for, also that of a document; None if it is none."""
    stem, form = stem_and_format(name)
    return form or _SUFFIXES.get(name.removeprefix(stem).lower().removesuffix(".gz"))


def made_here(folder: str | os.PathLike[str]) -> str | None:
    """What a folder of bgekit holds: `index` or `shards`; None if it is no such.

    A file that cannot be read as JSON counts: whoever opens the folder then says what is wrong with it.
    """
    if os.fspath(folder).startswith(("http://", "https://")):  # Servers of pages answer anything to any name.
        return None
    for name, form in _MADE.items():
        try:
            with open_binary(os.path.join(folder, name)) as file:
                stated = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            return form.split()[1]
        if isinstance(stated, dict) and stated.get("format") == form:
            return form.split()[1]
    return None


def find_sources(
    arguments: Sequence[str],
    skipped: BadLines,
    *,
    format: str | None = None,
    encoding: str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[Source]:
    """The files that some arguments stand for, those of a folder in the order of their names.

    Args:
        arguments: Files, folders, globs that no shell has resolved, `-` for standard input.
        skipped: Takes what is in a folder and cannot be read.
        format: Format of all files.
        encoding: Encoding of text files.
        include: Patterns, as in a .gitignore, of the files in folders that are taken; files of any ending are.
        exclude: Patterns of files and folders in folders that are not.

    Raises:
        DataError: a glob matches nothing, or there is nothing in a folder.
        ArgumentError: there is no folder to which the patterns could apply.
        MissingExtraError: a file that is named needs the extra `documents`, which is not installed.
    """
    chosen = _Chosen(format, _spec("include", include), _spec("exclude", exclude))
    named = [each for argument in arguments for each in (_matches(argument) if is_pattern(argument) else [argument])]
    folders = [argument for argument in named if is_folder(argument)]
    if (include or exclude) and not folders:
        raise ArgumentError("include and exclude choose files in folders, and no folder is given")
    sources = list[Source]()
    for argument in named:
        if argument in folders:
            prefix = "" if len(named) == 1 else argument.rstrip("/") + "/"
            sources += _of_folder(argument, prefix, chosen, skipped)
        else:
            sources.append(Source.of(argument, argument, format or _form_of(argument, encoding)))
    if folders or named != list(arguments):  # A file is read once, however it was come by; twice if it is named twice.
        sources = list({os.path.normpath(each.path): each for each in reversed(sources)}.values())[::-1]
    return _readable(sources, skipped)


def _matches(pattern: str) -> list[str]:
    found = matching(pattern)
    if not found:
        raise DataError(f"no file matches {pattern}")
    return found


def _form_of(file: str, encoding: str | None) -> str | None:
    """The format of a file by its name, or else by its first bytes; None if it cannot be looked at before it is read.

    What is not named and not seen is found out by whoever reads it, with the error that then belongs to it.
    """
    form = form_of_name(file)
    if form is None and is_file(file):
        try:
            with ExitStack() as stack:
                stream, _, name = open_stream(file, stack)
                return format_of(name, stream, encoding)
        except (OSError, DataError, EOFError):
            return None
    return form


@dataclass(frozen=True)
class _Chosen:
    """Files of folders that are taken."""

    format: str | None
    include: GitIgnoreSpec | None
    exclude: GitIgnoreSpec | None

    def takes(self, name: str) -> bool:
        """Whether a path below the folder is not excluded; of a folder with a slash behind."""
        return self.exclude is None or not self.exclude.match_file(name)

    def source(self, path: str, name: str, prefix: str, size: int | None) -> Source | None:
        """The file as a source; None if it is of another kind than those that are taken."""
        form = form_of_name(name)
        if self.include is not None:
            if not self.include.match_file(name):
                return None
            if self.format is None and form is None:  # Such as .rst: a document without marks.
                return Source(path, prefix + name, "txt", found=True, unit="file", size=size)
        elif form is None or self.format not in (None, form):
            return None
        return Source.of(path, prefix + name, self.format or form, found=True, size=size)


def _spec(option: str, patterns: Sequence[str] | None) -> GitIgnoreSpec | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines([patterns] if isinstance(patterns, str) else patterns)
    except ValueError as error:
        raise ArgumentError(
            f"{option} takes patterns as in a .gitignore, such as '*.md' or 'drafts/': {error}"
        ) from error


def _of_folder(folder: str, prefix: str, chosen: _Chosen, skipped: BadLines) -> list[Source]:
    """The files of a folder and its subfolders, in the order of their names.

    Raises:
        DataError: there is none.
    """
    if made := made_here(folder):
        raise DataError(f"{folder} holds {'an index' if made == 'index' else 'encoded shards'}, not documents")
    found, others = list[tuple[str, Source]](), Counter[str]()
    files = _files_at(folder, chosen) if is_url(folder) else _files(folder, chosen, skipped)
    for path, name, size in files:
        if source := chosen.source(path, name, prefix, size):
            found.append((name, source))
        else:
            others[os.path.splitext(name)[1] or name] += 1
    passed = f"{others.total():,} files of other kinds ({listing([kind for kind, _ in others.most_common()])})"
    if not found:
        kinds = ", ".join(dict.fromkeys([*_SUFFIXES.values(), *FORMATS]))
        there = f"; it has {passed}: --include '*.rst' takes such files as plain text" if others else ""
        raise DataError(f"{folder} has no files to read ({kinds}) that are neither hidden nor left out{there}")
    if others:
        logger.info("%s: %s are skipped", folder, passed)
    return [source for _, source in sorted(found, key=lambda each: each[0])]


def _files_at(url: str, chosen: _Chosen) -> Iterator[tuple[str, str, int | None]]:
    """As `_files`, of a folder at a URL, with the bytes of each; what a .gitignore there names is not passed over.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        there = list_url(url)
    except OSError as error:
        raise DataError(f"cannot read {url}: {error.strerror or error}") from error
    url = url.rstrip("/")
    marked = {above for above, _, own in map(_split, there) if own in _MADE and above}
    made = tuple(f"{above}/" for above in marked if made_here(f"{url}/{above}"))
    for name, status in there.items():
        above, _, own = _split(name)
        folders = above.split("/") if above else []
        parents = ["/".join(folders[: depth + 1]) for depth in range(len(folders))]
        if any(part.startswith(".") for part in (*folders, own)) or name.startswith(made):
            continue
        if chosen.takes(name) and all(chosen.takes(f"{parent}/") for parent in parents):
            yield f"{url}/{name}", name, status.size


def _split(name: str) -> tuple[str, str, str]:
    return name.rpartition("/")


def _files(folder: str, chosen: _Chosen, skipped: BadLines) -> Iterator[tuple[str, str, int | None]]:
    """Paths of the files of a folder that are not passed over, and their names relative to it, with `/`."""
    ignored: dict[str, _Rules] = {}
    for root, folders, files in os.walk(
        folder, onerror=lambda error: skipped.leave_out(error.filename, f"cannot read the folder: {error.strerror}")
    ):
        rules = ignored.pop(root, None)
        rules = (_rules_above(folder) if rules is None else rules) + _rules_in(root)

        def kept(entry: str, slash: str = "", root: str = root, rules: _Rules = rules) -> bool:
            path = os.path.join(root, entry)
            if entry.startswith(".") or not chosen.takes(_relative(path, folder) + slash):
                return False
            return not _is_ignored(path, slash, rules)

        folders[:] = [each for each in folders if kept(each, "/") and not made_here(os.path.join(root, each))]
        ignored |= {os.path.join(root, each): rules for each in folders}
        for file in files:
            path = os.path.join(root, file)
            # A link that leads nowhere cannot be read, and is named; a pipe or a socket is not a file.
            if kept(file) and (os.path.isfile(path) or os.path.islink(path)):
                yield path, _relative(path, folder), None


def _relative(path: str, folder: str) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _is_ignored(path: str, slash: str, rules: _Rules) -> bool:
    """Whether a path is ignored: the .gitignore nearest to it that names it decides."""
    for base, spec in reversed(rules):
        if (decided := spec.check_file(_relative(path, base) + slash).include) is not None:
            return decided
    return False


def _rules_in(folder: str) -> _Rules:
    try:
        with open(os.path.join(folder, ".gitignore"), encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    from pathspec import GitIgnoreSpec

    try:
        return ((folder, GitIgnoreSpec.from_lines(lines)),)
    except ValueError as error:
        logger.warning("%s is not followed: %s", os.path.join(folder, ".gitignore"), error)
        return ()


def _rules_above(folder: str) -> _Rules:
    """Rules of the repository that a folder is in; none if they ignore the folder itself, which was asked for."""
    rules: _Rules = ()
    below = os.path.abspath(folder)
    while not os.path.exists(os.path.join(below, ".git")):
        above = os.path.dirname(below)
        if above == below:
            return ()
        below, rules = above, _rules_in(above) + rules
    return () if _is_ignored(os.path.abspath(folder), "/", rules) else rules


def _readable(sources: list[Source], skipped: BadLines) -> list[Source]:
    """The sources but those in folders whose extra is missing, which one line names."""
    for form, package in _PACKAGES.items():
        lacking = [each for each in sources if each.form == form]
        if not lacking or importlib.util.find_spec(package) is not None:
            continue
        if any(not each.found for each in lacking):
            require_extra("documents", package)
        names = listing([each.path for each in lacking])
        logger.warning(
            "%d .%s %s left out (%s): pip install 'bgekit[documents]' brings what reads such files",
            len(lacking), form, "file is" if len(lacking) == 1 else "files are", names,
        )  # fmt: skip
        for each in lacking:
            skipped.leave_out(each.path, "the extra `documents` is missing", told=True)
        sources = [each for each in sources if each.form != form]
    return sources
