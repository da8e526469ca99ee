"""Time and memory of mining hard negatives: this toolkit, and the procedure of FlagEmbedding's script, in one run.

    python benchmarks/mine.py run --out F.json [--documents 100000 --queries 2000 --rounds 3]
    python benchmarks/mine.py table F.json

The script's procedure, written anew: encode all candidates and queries with sentence-transformers (FlagEmbedding 1.x
computes the same in float32 on a CPU), search with a flat index of faiss, then choose in a Python loop. Each turn runs
in a process of its own, one at a time, in rotation; medians count, and memory is the most that the process held.
Documents are windows of the words of real passages (shared/data), so that no two are equal; without those data, of
random words.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from worker import status_mib

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
CONTENDERS = ("bgekit", "bgekit fp32", "FlagEmbedding's procedure")
FIRST, LAST, NEGATIVES = 10, 210, 15


def passages() -> Iterator[str]:
    for name in ("MSMARCODev600Retrieval", "MLQuestions", "SciFact"):
        for path in sorted((DATA / name).glob("corpus.jsonl*")):
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                yield from (json.loads(line)["text"] for line in file)


def make_data(folder: Path, documents: int, queries: int, shortest: int, longest: int) -> None:
    generator = random.Random(0)
    words = " ".join(passages()).split() or [f"word{generator.randrange(5000)}" for _ in range(200_000)]
    texts = []
    for _ in range(documents):
        size = generator.randint(shortest, longest)
        start = generator.randrange(len(words) - size)
        texts.append(" ".join(words[start : start + size]))
    with (folder / "pool.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for text in generator.sample(texts, queries):
            # Some of the words in their middle.
            row = {"query": " ".join(text.split()[shortest // 4 :][: shortest // 2]), "pos": [text], "neg": []}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def ours(folder: Path, model: str, *fp32: str) -> None:
    from bgekit.cli.main import main

    code = main([
        "mine", "--model", model, "--input", str(folder / "train.jsonl"), "--output", str(folder / "mined.jsonl"),
        "--candidate_pool", str(folder / "pool.jsonl"), "--range", f"{FIRST}-{LAST}", "--negatives", str(NEGATIVES),
        "--overwrite", "--quiet", *fp32,
    ])  # fmt: skip
    assert code == 0


def theirs(folder: Path, model: str) -> None:
    import faiss
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from bgekit.models.hub import resolve

    encoder = SentenceTransformer(str(resolve(model)), device="cpu")
    rows = [json.loads(line) for line in (folder / "train.jsonl").open(encoding="utf-8")]
    pool = [json.loads(line)["text"] for line in (folder / "pool.jsonl").open(encoding="utf-8")]
    options = {"batch_size": 256, "normalize_embeddings": True, "show_progress_bar": False}
    documents = encoder.encode(pool, **options)
    queries = encoder.encode([row["query"] for row in rows], **options)
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(np.asarray(documents, dtype=np.float32))
    found = [index.search(queries[first : first + 64], LAST)[1] for first in range(0, len(queries), 64)]
    for row, ranking in zip(rows, np.concatenate(found), strict=True):
        window = [pool[number] for number in ranking[FIRST:LAST] if number >= 0]
        window = [text for text in window if text not in row["pos"] and text != row["query"]]
        row["neg"] = random.sample(window, min(NEGATIVES, len(window)))
        if len(row["neg"]) < NEGATIVES:
            extra = random.sample(pool, NEGATIVES - len(row["neg"]) + len(row["pos"]))
            row["neg"] += [text for text in extra if text not in row["pos"]][: NEGATIVES - len(row["neg"])]
    with (folder / "theirs.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def turn(contender: str, folder: Path, model: str) -> None:
    """One contender, in this process; what it took goes to standard output."""
    start = time.perf_counter()
    if contender == "bgekit":
        ours(folder, model)
    elif contender == "bgekit fp32":
        ours(folder, model, "--fp32")
    else:
        theirs(folder, model)
    print(json.dumps({"seconds": time.perf_counter() - start, "megabytes": status_mib("VmHWM")}))


def run(args: argparse.Namespace) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in args.contenders}
    with tempfile.TemporaryDirectory(prefix="bge-mine-") as name:
        make_data(Path(name), args.documents, args.queries, *args.words)
        for _ in range(args.rounds):
            for contender in args.contenders:
                command = [sys.executable, __file__, "turn", contender, name, "--model", args.model]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{contender} failed:\n{done.stderr}")
                results[contender].append(json.loads(done.stdout.splitlines()[-1]))
                print(contender, results[contender][-1], file=sys.stderr)
    facts = {"documents": args.documents, "queries": args.queries, "words": args.words, "model": args.model}
    content = {**facts, "results": results}
    Path(args.out).write_text(json.dumps(content, indent=1) + "\n")


def table(args: argparse.Namespace) -> None:
    content = json.loads(Path(args.file).read_text())
    shortest, longest = content["words"]
    print(f"{content['documents']:,} documents of {shortest} to {longest} words, {content['queries']:,} queries")
    print(f"{content['model']}\n")
    print("| | seconds | times as fast | MB at most |\n|---|---|---|---|")
    median = {
        name: {key: statistics.median(turn[key] for turn in turns) for key in ("seconds", "megabytes")}
        for name, turns in content["results"].items()
    }
    base = median.get(CONTENDERS[-1], {}).get("seconds", float("nan"))
    for name, values in median.items():
        seconds = values["seconds"]
        print(f"| {name} | {seconds:,.1f} | {base / seconds:.2f} | {values['megabytes']:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    each = verbs.add_parser("run")
    each.add_argument("--out", required=True)
    each.add_argument("--documents", type=int, default=100_000)
    each.add_argument("--queries", type=int, default=2_000)
    each.add_argument("--words", type=int, nargs=2, default=[20, 80], help="of a document, at least and at most")
    each.add_argument("--rounds", type=int, default=3)
    each.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    each.add_argument("--model", default="packaged:all-MiniLM-L6-v2")
    each = verbs.add_parser("turn")
    each.add_argument("contender")
    each.add_argument("folder", type=Path)
    each.add_argument("--model", required=True)
    each = verbs.add_parser("table")
    each.add_argument("file")
    args = parser.parse_args()
    if args.verb == "turn":
        turn(args.contender, args.folder, args.model)
    else:
        {"run": run, "table": table}[args.verb](args)


if __name__ == "__main__":
    main()
