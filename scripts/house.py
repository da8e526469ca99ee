"""The size and order of the house, in figures that can be compared between two commits.

    python scripts/house.py                     this checkout
    python scripts/house.py PATH [PATH ...]     other checkouts, a column each: git worktree add /tmp/before COMMIT
    python scripts/house.py --places            and where each counted thing stands
    python scripts/house.py --encode            and the files that one call of FlagModel.encode passes (imports torch)

What is counted, over the Python files below src/:

code lines
    Lines that hold a token of code: no docstring, no comment, no blank line, no import statement.
data lines
    Lines of YAML, templates, style sheets and scripts for pages: what is no code but was, or could be, some.
files
    Python files, `__init__.py` among them.
shared names
    Files whose name another file has, too; `__init__.py`, `__main__.py` and the verbs in cli/ aside.
circles
    Groups of files that import each other, directly or over others, at the top or inside of functions, for typing or
    not. Names in strings, as the rooms' faces offer them, are no imports.
arrows against the order
    Pairs of rooms of which the first imports the second though it stands below it: see `ORDER`.
imports inside functions
    Statements that import from the project and do not stand at the top of a file, outside cli/. A block
    `if TYPE_CHECKING` at the top is the top.
parsers of rows
    Files outside the room of rows that read rows as they are, as fields without types: they call `read_rows` (0.1.0),
    or one of what gives such rows within `data/` (`file_rows`, `open_stream`).
files of an encode
    Files of the rooms that compute (inference/ and networks/; encoding/ and models/ in 0.1.0) of which a frame runs
    while a model encodes a list of texts once more: the second call, so that loading is not counted. The model is a
    BERT of two layers made here, on the CPU.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

#: Rooms that may import those before them. Rooms of one line may not import each other, but for `_MAY`.
ORDER = (
    ("errors", "_version", "_lazy"),
    ("files", "data", "display"),
    ("models",),
    ("networks",),
    ("inference",),
    ("search",),
    ("evaluation",),
    ("mining", "training"),
    ("pretraining", "merging"),
    ("demo",),
    ("recipes",),
    ("serving", "distributed", "export", "integrations"),
    ("cli",),
)
#: The order of 0.1.0, as its architecture.md had it.
ORDER_OF_0_1 = (
    ("errors", "lazy", "spoken"), ("models",), ("encoding",), ("reranking", "search"), ("evaluation", "mining"),
    ("training",), ("merging", "pretraining"), ("recipes",), ("integrations",), ("cli",),
)  # fmt: skip
#: Imports within a line of the order: data stands on files, as its store is made of them.
_MAY = {("data", "files"), ("display", "files")}
#: Rooms that compute, now and in 0.1.0.
COMPUTING, COMPUTING_IN_0_1 = ("inference", "networks"), ("encoding", "models")
#: What gives rows as dictionaries of whatever stands there.
RAW = ("read_rows", "file_rows", "open_stream")
DATA = (".yaml", ".css", ".js", ".html", ".jinja")


class House:
    """The sources of a checkout, parsed.

    Attributes:
        trees: Each module's syntax tree by its dotted name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = sorted((root / "src").rglob("*.py"))
        self.names = {self._name(path): path for path in self.files}
        self.trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.names.items()}

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.root / "src").with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def figures(self) -> dict[str, list[str] | int]:
        """Each count's name, with the places of what is counted, or its number where places say nothing."""
        order = ORDER if "bgekit.inference" in self.names else ORDER_OF_0_1
        return {
            "code lines": sum(len(code_lines(path.read_text(encoding="utf-8"))) for path in self.files),
            "data lines": sum(
                len(path.read_text(encoding="utf-8").splitlines())
                for path in (self.root / "src").rglob("*")
                if path.suffix in DATA
            ),
            "files": len(self.files),
            "shared names": self.shared_names(),
            "circles": self.circles(),
            "arrows against the order": self.against(order),
            "imports inside functions": self.inner_imports(),
            "parsers of rows": self.parsers(),
        }

    def shared_names(self) -> list[str]:
        """Files that are called as another is."""
        paths = [
            path.relative_to(self.root / "src")
            for path in self.files
            if path.stem not in ("__init__", "__main__") and path.parent.name != "cli"
        ]
        count = Counter(path.name for path in paths)
        return sorted((str(path) for path in paths if count[path.name] > 1), key=lambda path: Path(path).name)

    def imports(self, module: str) -> Iterator[tuple[str, ast.stmt]]:
        """The modules of the project that a module imports, with the statement; a package stands for its `__init__`."""
        package = module if self.names[module].name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node) for alias in node.names if alias.name in self.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    if inner in self.names:
                        yield inner, node
                    elif base in self.names:
                        yield base, node

    def circles(self) -> list[str]:
        """Groups of modules that import each other."""
        graph = {name: {other for other, _ in self.imports(name) if other != name} for name in self.names}
        reached = {name: _reached(graph, name) for name in graph}
        groups = {frozenset({name} | {other for other in reached[name] if name in reached[other]}) for name in graph}
        return sorted(", ".join(sorted(group)) for group in groups if len(group) > 1)

    def against(self, order: tuple[tuple[str, ...], ...]) -> list[str]:
        """Imports of a room that stands above the importing one, or beside it."""
        floor = {room: number for number, rooms in enumerate(order) for room in rooms}
        found = []
        for name in self.names:
            room = _room(name)
            for other, node in self.imports(name):
                there = _room(other)
                if room not in floor or there == room or (room, there) in _MAY:
                    continue
                # The face of the whole stands above its rooms: only what is built on them may import from it.
                level = floor["recipes"] if there == "" else floor.get(there, -1)
                if level >= floor[room]:
                    found.append(f"{name}:{node.lineno} imports {other}")
        return sorted(found)

    def inner_imports(self) -> list[str]:
        """Imports from the project inside functions, outside cli/."""
        found = []
        for name, tree in self.trees.items():
            if _room(name) == "cli":
                continue
            inner = {
                id(node)
                for function in ast.walk(tree)
                if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
                for node in ast.walk(function)
            }
            statements = {(node.lineno, id(node)) for _, node in self.imports(name) if id(node) in inner}
            found += [f"{name}:{line}" for line, _ in sorted(statements)]
        return sorted(found)

    def parsers(self) -> list[str]:
        """Modules that call what gives rows without types, outside the room that has it."""
        home = "data" if "bgekit.data" in self.names else None
        found = []
        for name, tree in self.trees.items():
            calls = any(
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAW
                for node in ast.walk(tree)
            )
            own = _room(name) == home or name in ("bgekit.encoding.records", "bgekit.encoding.rows")
            if calls and not own:
                found.append(name)
        return sorted(found)


def code_lines(source: str) -> set[int]:
    """Numbers of the lines of a source that hold code, as the page's head defines it."""
    tree = ast.parse(source)
    left: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            left.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            left.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
        tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - left


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "bgekit" and len(parts) > 1 else ""


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    wait = [start]
    while wait:
        for other in graph[wait.pop()]:
            if other not in seen:
                seen.add(other)
                wait.append(other)
    return seen


_ENCODE = """
import json, os, sys
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
folder = sys.argv[1]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{number}" for number in range(200)]
core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
special = [("[CLS]", 2), ("[SEP]", 3)]
core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                        sep_token="[SEP]", mask_token="[MASK]").save_pretrained(folder)
BertModel(BertConfig(vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=128)).save_pretrained(folder)
import threading
from bgekit import FlagModel
model = FlagModel(folder, pooling_method="cls", devices="cpu")
texts = [" ".join(f"w{(at * 7 + step) % 200}" for step in range(5 + at % 60)) for at in range(300)]
model.encode(texts)
seen = set()
def note(frame, event, argument):
    seen.add(frame.f_code.co_filename)
threading.setprofile(note); sys.setprofile(note)
model.encode(list(reversed(texts)))
sys.setprofile(None); threading.setprofile(None)
print(json.dumps(sorted(seen)))
"""


def encode_files(root: Path) -> list[str]:
    """Files of the computing rooms that one encode passes."""
    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run(
            [sys.executable, "-c", _ENCODE, folder],
            env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": folder},
            capture_output=True,
            text=True,
            check=True,
        )
    seen = (Path(name) for name in json.loads(answer.stdout.splitlines()[-1]))
    inside = (
        path.relative_to(root / "src" / "bgekit") for path in seen if path.is_relative_to(root / "src" / "bgekit")
    )
    rooms = COMPUTING if (root / "src" / "bgekit" / "inference").is_dir() else COMPUTING_IN_0_1
    return sorted(str(path) for path in inside if path.parts[0] in rooms)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).resolve().parents[1]])
    parser.add_argument("--places", action="store_true")
    parser.add_argument("--encode", action="store_true")
    args = parser.parse_args()
    columns = []
    for root in args.checkouts:
        figures = House(root.resolve()).figures()
        if args.encode:
            figures["files of an encode"] = encode_files(root.resolve())
        columns.append(figures)
    for name in columns[0]:
        values = [figures[name] for figures in columns]
        print(f"{name:26}" + "".join(f"{value if isinstance(value, int) else len(value):>10,}" for value in values))
    if args.places:
        for root, figures in zip(args.checkouts, columns, strict=True):
            print(f"\n{root}")
            for name, value in figures.items():
                if isinstance(value, list) and value:
                    print(f"  {name}\n" + "\n".join(f"    {place}" for place in value))


if __name__ == "__main__":
    main()
