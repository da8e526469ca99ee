"""An index of 200,000 passages of Debian's documentation with their words: how it is built, and how fast it answers."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker import OwnPages

#: Packages of Debian 12 whose HTML pages are read: English but for the third and the last, which has many languages.
PACKAGES = (
    "linux-doc-6.1", "python3.11-doc", "libreoffice-help-zh-cn", "postgresql-doc-15", "debian-handbook",
)  # fmt: skip
#: Elements of a page that are passages, and words of one; longer ones are cut.
ELEMENTS = ("p", "li", "dd", "dt", "td", "h2", "h3")
LEAST, MOST = 5, 25
MODEL = Path(__file__).resolve().parents[2] / "shared" / "models" / "bge-small-en-v1.5"


def index_options(commands: Any) -> None:
    """`hybrid.py index`."""
    parser = commands.add_parser("index", help=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for packages, passages and vectors")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--step", choices=("prepare", "build", "search"), help=argparse.SUPPRESS)
    parser.add_argument("--parts", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Passages and their vectors once; then indexes without words and with, and questions to the last."""
    if args.step:
        {"prepare": prepare, "build": build, "search": search}[args.step](args)
        return 0
    prepare(args)
    quarter(args)
    for texts, parts in ((args.texts // 4, ["bm25"]), (args.texts, []), (args.texts, ["bm25"])):
        _child(args, "build", texts, parts)
    _child(args, "search", args.texts, ["bm25"])
    return 0


def _child(args: argparse.Namespace, step: str, texts: int, parts: list[str]) -> None:
    """A step in a process of its own, whose memory is its own."""
    subprocess.run(
        [sys.executable, __file__.replace("_index", ""), "index", "--work", str(args.work), "--texts", str(texts),
         "--queries", str(args.queries), "--step", step, "--parts", *parts],
        check=True,
    )  # fmt: skip


def prepare(args: argparse.Namespace) -> None:
    """Get the packages, cut their pages into passages, and encode these; what is there stays."""
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    passages = work / f"passages-{args.texts}.jsonl"
    if not passages.exists():
        texts = dict.fromkeys(text for package in PACKAGES for text in _passages(_unpacked(work, package)))
        # Every n-th, so that each package has its share.
        kept = list(texts)[:: max(len(texts) // args.texts, 1)][: args.texts]
        lines = [json.dumps({"id": str(row), "text": text}, ensure_ascii=False) for row, text in enumerate(kept)]
        passages.write_text("\n".join(lines) + "\n", encoding="utf-8")
        words = sum(len(text.split()) for text in kept)
        print(f"{len(kept):,} of {len(texts):,} distinct passages, {words / len(kept):.1f} words each on average")
    subprocess.run(
        [sys.executable, "-m", "bgekit", "encode", str(passages), "--model", str(MODEL), "--store-texts",
         "--output", str(work / f"vectors-{args.texts}"), "--shard-size", "4096"],
        check=True,
    )  # fmt: skip


def quarter(args: argparse.Namespace) -> None:
    """The first quarter of the encoded passages as shards of their own: what memory grows with shows in it."""
    from given import Given

    from bgekit.data import read_records
    from bgekit.inference import encode_to_shards, load_shards

    count = args.texts // 4
    folder = args.work / f"vectors-{count}"
    if folder.exists():
        return
    vectors = load_shards(args.work / f"vectors-{args.texts}").vectors()[:count]
    records = list(itertools.islice(read_records(args.work / f"passages-{args.texts}.jsonl"), count))
    row_of = {record.text: row for row, record in enumerate(records)}
    model = Given("given", vectors.shape[1], lambda texts: vectors[[row_of[text] for text in texts]])
    encode_to_shards(model, records, folder, store_texts=True, shard_size=4096)


def _unpacked(work: Path, package: str) -> Path:
    folder = work / package
    if not folder.exists():
        subprocess.run(["apt-get", "download", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
        (archive,) = work.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    return folder


def _passages(folder: Path) -> Iterator[str]:
    """Passages of the HTML pages of a folder; a Chinese character counts as half a word."""
    from lxml import html

    for page in sorted(folder.rglob("*.html")):
        if page.is_symlink() or not page.stat().st_size:
            continue
        for element in html.parse(str(page), html.HTMLParser(encoding="utf-8")).iter(*ELEMENTS):
            if any(child.tag in ELEMENTS for child in element.iterdescendants()):
                continue
            words = " ".join(element.text_content().split()).split(" ")
            for first in range(0, len(words), MOST):
                text = " ".join(words[first : first + MOST])
                if len(text) >= LEAST * 6 or (not text.isascii() and len(text) >= LEAST * 2):
                    yield text[: MOST * 10]


def build(args: argparse.Namespace) -> None:
    """Make an index of the encoded passages."""
    from bgekit.inference import load_shards
    from bgekit.search import index_shards

    folder = args.work / f"index-{'-'.join(['dense', *args.parts])}-{args.texts}"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    shards = load_shards(args.work / f"vectors-{args.texts}")
    with OwnPages() as pages:
        start, cpu = time.perf_counter(), time.process_time()
        index = index_shards(shards, folder, parts=args.parts)
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(
        f"{' + '.join(['dense', *args.parts])}: {len(index):,} passages in {took:.1f} s, {cpu:.1f} s of CPU time; "
        f"{size / 1e6:,.0f} MB; memory of the process at most {pages.peak_mb:,.0f} MB, without mapped files"
    )


def search(args: argparse.Namespace) -> None:
    """Ask by meaning and by both, in turns, each question for itself."""
    from bgekit import FlagModel
    from bgekit.search import SearchIndex

    index = SearchIndex.load(args.work / f"index-dense-bm25-{args.texts}")
    model = FlagModel(str(MODEL))
    rows = range(0, len(index), max(len(index) // args.queries, 1))
    # Half of a passage asks for it: as many words as a question has.
    questions = [" ".join((text := index.stored.row(row)[1] or "").split()[:9]) or text[:20] for row in rows]
    questions = questions[: args.queries]
    took: dict[str, list[tuple[float, float]]] = {"dense": [], "bm25": [], "hybrid": []}
    for mode in took:
        index.ask(model, questions[:3], mode=mode)
    for question in questions:
        for mode, times in took.items():
            start, cpu = time.perf_counter(), time.process_time()
            index.ask(model, [question], 10, mode=mode)
            times.append((time.perf_counter() - start, time.process_time() - cpu))
    for at, what in enumerate(("", " of CPU time")):
        medians = {mode: statistics.median(each[at] for each in times) * 1e3 for mode, times in took.items()}
        for mode, times in took.items():
            ninety = statistics.quantiles((each[at] for each in times), n=10)[-1] * 1e3
            print(f"{mode}: median {medians[mode]:.1f} ms{what}, 90 % within {ninety:.1f} ms")
        print(f"hybrid / dense at the median{what}: {medians['hybrid'] / medians['dense']:.2f}")
