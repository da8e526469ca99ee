"""How fast texts become all three outputs of BGE-M3, against FlagEmbedding, in one run.

    python benchmarks/m3.py setup --envs DIR                make FlagEmbedding's environment
    python benchmarks/m3.py run --envs DIR --out m3.json    measure (interleaved rounds; medians count)
    python benchmarks/m3.py table m3.json                   print the result as markdown

The model is of XLM-R-base's shape (12 layers of 768, a vocabulary of 250,002) with random weights and heads, and a
tokenizer of its kind that learns from the texts of encode.py. Tasks, each with processes of its own:

- all: dense vectors, lexical weights and multi-vectors of MS MARCO passages; FlagEmbedding at batches of 8, 32 and 256.
- long: the same of texts of 2,048 tokens.
- dense: dense vectors alone by BGEM3FlagModel, and by FlagModel, which gives nothing else.
- pairs: `compute_score` of pairs of eight words and a passage, in all modes.

Own pages are memory that the process shares with nobody (RssAnon), the most of the timed calls. `run --tasks all` takes
one of them alone, `--rounds` and `--texts` make it shorter or longer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import encode
from encode import HERE, QUIET, TRIES, Worker, _cpu, count_tokens, real_texts, setup, write_texts

sys.path.append(str(HERE.parent / "tests"))
from m3_models import make_m3

BATCHES = (8, 32, 256)
THEIRS = {task: f"FlagEmbedding m3 {task}" for task in ("all", "dense", "pairs")}
encode.ENVIRONMENTS.update(dict.fromkeys(THEIRS.values(), "flagembedding"))
#: Task -> its peers, the first ours, and the texts it takes.
TASKS: dict[str, tuple[tuple[str, ...], str]] = {
    "all": (("bgekit m3 all", *(f"{THEIRS['all']}, batch {size}" for size in BATCHES)), "passages"),
    "long": (("bgekit m3 all", *(f"{THEIRS['all']}, batch {size}" for size in BATCHES)), "long"),
    "dense": (("bgekit m3 dense", "bgekit"), "passages"),
    "pairs": (("bgekit m3 pairs", *(f"{THEIRS['pairs']}, batch {size}" for size in BATCHES)), "passages"),
}
LONG = 2048
#: What our first peer must reach against the best of the others: speed at least, own pages at most.
TARGETS = {"all": (3.5, 0.8), "long": (3.5, 0.8), "dense": (0.98, None), "pairs": (3.5, None)}


def model_folder(work: Path) -> Path:
    folder = work / "xlm-r-base"
    if not (folder / "config.json").exists():
        make_m3(
            folder, real_texts(2000), pieces=8000, vocabulary=250_002, positions=LONG + 2, hidden=768, layers=12,
            heads=12, wide=3072, spread=0.02,
        )  # fmt: skip
    return folder


def long_texts(folder: Path, count: int) -> list[str]:
    """Texts of at least 2,048 tokens, made of passages."""
    passages = real_texts(count * 60)
    texts = [" ".join(passages[60 * row : 60 * (row + 1)]) for row in range(count)]
    assert count_tokens(folder, texts[:1]) >= 512, "a text of passages is long"
    return texts


def tokens_of(folder: Path, texts: list[str]) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sum(map(len, tokenizer(texts, truncation=True, max_length=LONG)["input_ids"]))


def run(args: argparse.Namespace) -> None:
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    folder, out = model_folder(work), Path(args.out)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"cpu": _cpu(), "tasks": {}}
    for task in args.tasks:
        results["tasks"][task] = run_task(task, folder, work, args)
        out.write_text(json.dumps(results, indent=1))


def run_task(task: str, folder: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    peers, kind = TASKS[task]
    texts = long_texts(folder, args.long_texts) if kind == "long" else real_texts(args.texts)
    if kind == "long":  # As many texts as a batch, or fewer, are one batch.
        sizes = [size for size in BATCHES if size <= len(texts)] or [BATCHES[0]]
        peers = (peers[0], *(peer for peer in peers[1:] if int(peer.split()[-1]) in sizes))
    tokens = tokens_of(folder, texts)
    timed, warm = write_texts(work / f"{task}.jsonl", texts), write_texts(work / "warm.jsonl", real_texts(16))
    facts: dict[str, dict[str, Any]] = {peer: {"seconds": [], "own_mib": 0.0, "others": 0.0} for peer in peers}
    for number in range(args.rounds):
        for peer in peers if number % 2 == 0 else peers[::-1]:
            # FlagEmbedding must not find the alias package of the checkout.
            worker = Worker(peer, folder, args.envs, args.checkout if peer.startswith("bgekit") else None)
            worker.ask(texts=warm)
            turns: list[dict[str, Any]] = []
            while not turns or (turns[-1]["others"] > QUIET and len(turns) < (TRIES if args.quiet else 1)):
                turns.append(worker.ask(texts=timed, own=True))
            worker.close()
            best = min(turns, key=lambda turn: float(turn["others"]))
            found = facts[peer]
            found["seconds"] += best["seconds"]
            found["own_mib"] = max(found["own_mib"], best["own_mib"])
            found["others"] = max(found["others"], best["others"])
            print(f"{task}, round {number + 1}, {peer}: {tokens / best['seconds'][0]:,.0f} tokens/s", flush=True)
    return {"texts": len(texts), "tokens": tokens, "peers": facts}


def table(results: dict[str, Any]) -> str:
    """The figures as markdown, with the ratio of the first peer of each task to the best of the others."""
    lines = [results["cpu"], ""]
    for task, found in results["tasks"].items():
        lines += [
            f"{task}: {found['texts']:,} texts, {found['tokens']:,} tokens", "", "| | tokens/s | own pages, MiB |",
            "|---|---|---|",
        ]  # fmt: skip
        rates = {}
        for peer, facts in found["peers"].items():
            rates[peer] = found["tokens"] / statistics.median(facts["seconds"])
            lines.append(f"| {peer} | {rates[peer]:,.0f} | {facts['own_mib']:,.0f} |")
        ours, *others = rates
        best = max(others, key=lambda peer: rates[peer])
        speed, pages = TARGETS[task]
        memory = found["peers"][ours]["own_mib"] / found["peers"][best]["own_mib"]
        wanted = f"{speed} wanted" if pages is None else f"{speed} and {pages} wanted"
        lines += ["", f"{rates[ours] / rates[best]:.2f}x {best}, own pages {memory:.2f} of it ({wanted})", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("setup", help="make FlagEmbedding's environment").add_argument("--envs", type=Path, required=True)
    measure = verbs.add_parser("run", help="measure")
    measure.add_argument("--envs", type=Path, help="folder that setup filled")
    measure.add_argument("--out", default="m3.json", help="results; tasks of an earlier run that are not named stay")
    measure.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "bgekit-benchmark"))
    measure.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    measure.add_argument("--rounds", type=int, default=3)
    measure.add_argument("--texts", type=int, default=120)
    measure.add_argument("--long-texts", type=int, default=8)
    measure.add_argument("--checkout", type=Path, help="sources to use instead of those installed")
    measure.add_argument("--quiet", action="store_true", help="take turns again that other processes disturbed")
    verbs.add_parser("table", help="print the result").add_argument("results", type=Path)
    args = parser.parse_args()
    if args.verb == "setup":
        setup(args.envs, ("flagembedding",))
    elif args.verb == "run":
        run(args)
    else:
        print(table(json.loads(args.results.read_text())))


if __name__ == "__main__":
    main()
