"""Whether one commit is as fast as another, and takes as much memory: encoding, one text alone, and training.

    git worktree add /tmp/before COMMIT
    python benchmarks/commits.py run --before /tmp/before --out commits.json
    python benchmarks/commits.py table commits.json

What is timed are the turns of encode.py (bge-small's real weights, a model of bge-base's shape), of a reranker
(bge-small's weights with a head, the same texts in pairs) and of train.py (all-MiniLM-L6-v2 on SciFact, in bfloat16),
each in a process of its own that imports a checkout's sources, in the environment of `make dev`. In a round, made of
new processes, the two commits take turns, as short as they can be, in an order that changes, so that what the machine
does beside them meets both. A ratio is after / before; its interval holds the mean ratio of such rounds with 95 %
(Student's t over the rounds' logarithms).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from encode import QUIET, TRIES, Worker, _cpu, count_tokens, model_folder, real_texts, write_texts
from train import copied, cost, take_turn, training_rows, write_batches

#: Words of the texts that are encoded alone; turns of a round, and texts of a turn, of which the first do not count.
WORDS, BLOCKS, SINGLE, WARM = (8, 80), 10, 12, 2
#: Many short texts: words of each, and how many are encoded in one call.
QUESTION, SHORT = 9, 200


def run(args: argparse.Namespace) -> None:
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    checkouts = {"before": Path(args.before).resolve(), "after": Path(args.after).resolve()}
    results: dict[str, Any] = {"cpu": _cpu(), "rounds": []}
    turn = training_turn(args, work)
    files = {size: text_files(size, args, work) for size in args.models}
    for number in range(args.rounds):
        order = ["before", "after"] if number % 2 == 0 else ["after", "before"]
        facts: dict[str, dict[str, float]] = {"before": {}, "after": {}}
        for size in args.models:
            for name, figures in encoded(
                size, {name: checkouts[name] for name in order}, files[size], args.repeats
            ).items():
                facts[name] |= figures
        if args.pairs:
            for name, figures in scored({name: checkouts[name] for name in order}, args, work).items():
                facts[name] |= figures
        for name in order if args.steps else ():
            facts[name] |= trained(turn, checkouts[name], args, work)
        results["rounds"].append(facts)
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")
        print(f"round {number + 1}: " + ", ".join(
            f"{key} {facts['before'][key]:,.4g} -> {facts['after'][key]:,.4g}" for key in facts["before"]
        ), flush=True)  # fmt: skip
    print(table(results))


def text_files(size: str, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A model's folder, the files that it will encode, and the tokens of the longer one."""
    folder = model_folder(size, work)
    every = real_texts(10_000)
    texts = every[: args.texts if size == "small" else args.texts // 3]
    long = [text.split() for text in every if len(text.split()) >= WORDS[-1]]
    files: dict[str, Any] = {"folder": folder, "tokens": count_tokens(folder, texts)}
    files["timed"] = write_texts(work / f"{size}.jsonl", texts)
    files["short"] = write_texts(
        work / f"{size}-short.jsonl", [" ".join(text.split()[:QUESTION]) for text in every[:SHORT]]
    )
    for words in WORDS:
        cut = [" ".join(text[:words]) for text in long]
        blocks = [cut[block::BLOCKS][:SINGLE] for block in range(BLOCKS)]
        files[str(words)] = [
            write_texts(work / f"{words}-{number}.jsonl", block) for number, block in enumerate(blocks)
        ]
    return files


def encoded(size: str, checkouts: dict[str, Path], files: dict[str, Any], repeats: int) -> dict[str, dict[str, float]]:
    """The commits' figures of encoding. Both have loaded their model, and take turns of a second or two."""
    workers = {name: Worker("bgekit", files["folder"], None, checkout) for name, checkout in checkouts.items()}
    for worker in workers.values():
        worker.ask(texts=files["timed"])
    facts: dict[str, dict[str, float]] = {name: {} for name in workers}
    for name, turns in by_turns(workers, [files["timed"]] * repeats).items():
        seconds = statistics.median(turn["seconds"][0] for turn in turns)
        facts[name] |= {f"{size}: tokens/s": files["tokens"] / seconds, f"{size}: peak MiB": turns[-1]["peak_mib"]}
        facts[name][f"{size}: others"] = max(turn["others"] for turn in turns)
    for name, turns in by_turns(workers, [files["short"]] * (repeats + 1)).items():
        seconds = statistics.median(turn["seconds"][0] for turn in turns[1:])  # The first makes what they need.
        facts[name][f"{size}: texts of {QUESTION} words, texts/s"] = SHORT / seconds
    for words in WORDS:
        for name, turns in by_turns(workers, files[str(words)], single=True).items():
            times = [seconds for turn in turns for seconds in turn["seconds"][WARM:]]
            facts[name][f"{size}: ms of a text of {words} words"] = 1000 * statistics.median(times)
    for worker in workers.values():
        worker.close()
    return facts


def scored(checkouts: dict[str, Path], args: argparse.Namespace, work: Path) -> dict[str, dict[str, float]]:
    """The commits' figures of a reranker; the turns are those of `encoded`."""
    folder, file = reranker_folder(work), write_texts(work / "pairs.jsonl", real_texts(10_000)[: args.pairs])
    workers = {name: Worker("bgekit reranker", folder, None, checkout) for name, checkout in checkouts.items()}
    for worker in workers.values():
        worker.ask(texts=file)
    facts: dict[str, dict[str, float]] = {}
    for name, turns in by_turns(workers, [file] * args.repeats).items():
        seconds = statistics.median(turn["seconds"][0] for turn in turns)
        facts[name] = {
            "reranker: pairs/s": args.pairs / seconds, "reranker: others": max(turn["others"] for turn in turns)
        }  # fmt: skip
    for worker in workers.values():
        worker.close()
    return facts


def reranker_folder(work: Path) -> Path:
    """A reranker of bge-small's weights, with a head that is drawn at random."""
    folder = work / "reranker"
    if not (folder / "config.json").exists():
        import torch
        from transformers import AutoTokenizer, BertForSequenceClassification

        torch.manual_seed(0)
        source = model_folder("small", work)
        BertForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def by_turns(workers: dict[str, Worker], files: list[str], **how: bool) -> dict[str, list[dict[str, Any]]]:
    """What each answers to each file, one after the other; who is first changes from file to file.

    Both answer again where other processes took more than `QUIET` of the CPU meanwhile: the quietest try counts.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    names = list(workers)
    for file in files:
        tries: list[dict[str, dict[str, Any]]] = []
        while not tries or (_others(tries[-1]) > QUIET and len(tries) < TRIES):
            tries.append({name: workers[name].ask(texts=file, **how) for name in names})
        for name, answer in min(tries, key=_others).items():
            answers[name].append(answer)
        names.reverse()
    return answers


def _others(answers: dict[str, dict[str, Any]]) -> float:
    return max(float(answer["others"]) for answer in answers.values())


def training_turn(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    from bgekit.models.hub import resolve

    args.data, args.model, args.group, args.envs = "", "packaged:all-MiniLM-L6-v2", 2, None
    start = copied(resolve(args.model), work / "start", {})
    turn: dict[str, Any] = {
        "model": str(start), "batch": 16, "group": 2, "max_len": 128, "learning_rate": 2e-5, "temperature": 0.02,
        "pooling": "mean", "instruction": "", "steps": args.steps, "skip": 2, "warmup": 1, "seed": 0,
    }  # fmt: skip
    turn |= write_batches(training_rows(args, work), turn, work) if args.steps else {}
    return turn


def trained(turn: dict[str, Any], checkout: Path, args: argparse.Namespace, work: Path) -> dict[str, float]:
    facts = take_turn("bgekit bf16", turn, args, work, checkout)
    tokens = cost(Path(turn["model"]), turn)["tokens"]
    return {
        "training: tokens/s": tokens / facts["seconds"], "training: peak MiB": facts["peak_mib"],
        "training: others": facts["others"],
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    rounds = results["rounds"]
    rows = [
        f"{results['cpu']}; {len(rounds)} rounds; ratios are after / before", "",
        "| | before (median) | after (median) | ratio | 95 % interval |", "|---|--:|--:|--:|---|",
    ]  # fmt: skip
    for key in rounds[0]["before"]:
        before, after = ([each[name][key] for each in rounds] for name in ("before", "after"))
        if key.endswith("others"):
            rows.append(f"| {key}, at most | {max(before):.0%} | {max(after):.0%} | | |")
            continue
        ratio, low, high = interval([math.log(b / a) for a, b in zip(before, after, strict=True)])
        middle = " | ".join(f"{statistics.median(values):,.4g}" for values in (before, after))
        rows.append(f"| {key} | {middle} | {ratio:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(rows)


def interval(logs: list[float]) -> tuple[float, float, float]:
    from scipy.stats import t

    mean = statistics.fmean(logs)
    half = t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measure = verbs.add_parser("run")
    measure.add_argument("--before", required=True, help="checkout to compare with")
    measure.add_argument("--after", default=str(Path(__file__).resolve().parents[1]), help="by default, this one")
    measure.add_argument("--rounds", type=int, default=12)
    measure.add_argument("--models", nargs="*", choices=["small", "base"], default=["small", "base"])
    measure.add_argument("--texts", type=int, default=200, help="texts for small; base gets a third")
    measure.add_argument("--repeats", type=int, default=4, help="times a round; the median counts")
    measure.add_argument("--pairs", type=int, default=100, help="that a reranker scores; 0 for none")
    measure.add_argument("--steps", type=int, default=10, help="of a turn of training; 0 for none")
    measure.add_argument("--out", default="commits.json")
    measure.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "bgekit-benchmark-commits"))
    show = verbs.add_parser("table")
    show.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.verb == "run":
        if args.rounds < 2:
            parser.error("--rounds: an interval needs two or more")
        run(args)
    else:
        print(table(json.loads(args.results.read_text())))


if __name__ == "__main__":
    main()
