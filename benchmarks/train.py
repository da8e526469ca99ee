"""How fast an embedder is trained, how good it becomes, and how much memory a large batch takes.

    python benchmarks/train.py run --envs DIR --out F.json    speed and quality, against the trainers of two peers
    python benchmarks/train.py memory --out F.json            one step of growing batches with a gradient cache
    python benchmarks/train.py table F.json                   print either as markdown
    python benchmarks/train.py plot F.json F.png              draw the memory

DIR is what `encode.py setup` filled. All train the same start on the same rows in the same batches, each turn in a
process and an environment of its own, one at a time, in rotation; medians count. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from encode import (
    ENVIRONMENTS,
    HERE,
    QUIET,
    SHARED,
    TRIES,
    Worker,
    _cpu,
    _quietest,
    environment_of,
    linear_flops,
    write_texts,
)  # fmt: skip
from train_report import plot, table

CONTENDERS = (
    "bgekit", "sentence-transformers", "FlagEmbedding", "bgekit bf16", "sentence-transformers bf16",
    "FlagEmbedding bf16",
)  # fmt: skip
#: By how much the losses of float32 trainers may differ when nothing is drawn at random.
SAME = 0.01
#: Steps of the comparison of losses.
COMPARED = 3

Row = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    from bgekit.models.card_reading import read_card
    from bgekit.models.hub import resolve

    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    source = resolve(args.model)
    card = read_card(source)
    start = copied(source, work / "start", {})
    rows = training_rows(args, work)
    common = {
        "batch": args.batch, "group": args.group, "max_len": args.max_len, "learning_rate": args.learning_rate,
        "temperature": args.temperature, "pooling": card.pooling, "instruction": card.prompt("query").prefix,
    }  # fmt: skip
    results: dict[str, Any] = {
        "cpu": _cpu(), "model": args.model, "data": args.data or "SciFact", "steps": args.steps, "skip": args.skip,
        **common, "rates": {"float32": [], "bfloat16": []}, "rounds": [],
        "contenders": {name: {"turns": [], "scores": []} for name in args.contenders}, "start": [],
    }  # fmt: skip
    compare_losses(args, common, start, rows, work, results)
    for seed in range(args.rounds):
        measure_machine(start, work, results["rates"])
        turn = common | {
            "model": str(start), "steps": args.steps, "skip": args.skip, "warmup": args.steps // 10, "seed": seed,
        }  # fmt: skip
        turn |= write_batches(rows, turn, work)
        results["rounds"].append(cost(start, turn))
        for contender in args.contenders:
            facts = quietest_turn(contender, turn, args, work)
            results["contenders"][contender]["turns"].append(facts)
            speed = results["rounds"][-1]["tokens"] / facts["seconds"]
            print(f"seed {seed}, {contender}: {speed:,.0f} tokens/s, others {facts['others']:.0%}", flush=True)
            save(results, args.out)
        if args.judge:
            folders = [output_of(work, contender) for contender in args.contenders]
            first = [] if results["start"] else [start]
            (*scores,) = judged([*first, *[as_start(folder, start) for folder in folders]], args.judge)
            results["start"] += scores[: len(first)]
            for contender, score in zip(args.contenders, scores[len(first) :], strict=True):
                results["contenders"][contender]["scores"].append(score)
            save(results, args.out)
    print(table(results))


def copied(source: Path, target: Path, changes: dict[str, Any]) -> Path:
    """A checkpoint with some values of its config changed, without what describes its vectors."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("golden.json", "README.md"))
    subprocess.run(["chmod", "-R", "u+w", str(target)], check=True)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes, indent=1))
    return target


def as_start(trained: Path, start: Path) -> Path:
    """The trained weights in the start's folder: not everybody saves pooling and instruction, and all get the same."""
    folder = trained.with_name(f"{trained.name}-judged")
    copied(start, folder, {})
    shutil.copy(trained / "model.safetensors", folder / "model.safetensors")
    return folder


def training_rows(args: argparse.Namespace, work: Path) -> list[Row]:
    """Rows with one positive and as many negatives as the group has, so that nobody draws any."""
    path = Path(args.data) if args.data else work / f"mined-{args.group}.jsonl"
    if not path.exists():
        subprocess.run(
            [
                sys.executable, "-m", "bgekit", "mine", "--model", args.model,
                "--input", str(SHARED / "data" / "SciFact" / "train.jsonl"), "--output", str(path),
                "--range", "2-50", "--negatives", str(args.group - 1), "--max_positive_ratio", "0.95", "--quiet",
            ],
            check=True,
        )  # fmt: skip
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    cut = [{"query": row["query"], "pos": row["pos"][:1], "neg": row["neg"][: args.group - 1]} for row in rows]
    return [row for row in cut if len(row["neg"]) == args.group - 1]


def write_batches(rows: list[Row], turn: Row, work: Path) -> dict[str, str]:
    """The rows as bgekit gets them to shuffle, and in the order that this gives, for those that take them in order."""
    import numpy as np

    from bgekit.training.batches.sampler import DatasetShare, EpochPlan, PlanOptions

    share = DatasetShare(np.arange(len(rows)))
    options = PlanOptions(turn["batch"], seed=turn["seed"], drop_last=True)
    order: list[int] = []
    epoch = 0
    while len(order) < turn["steps"] * turn["batch"]:
        order += [int(row) for step in EpochPlan([share], options, epoch) for row in step.rows]
        epoch += 1
    ordered = [rows[number] for number in order[: turn["steps"] * turn["batch"]]]
    return {"unordered": write_rows(work / "rows.jsonl", rows), "data": write_rows(work / "ordered.jsonl", ordered)}


def write_rows(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def cost(folder: Path, turn: Row) -> dict[str, float]:
    """Real tokens of the timed steps, and the FLOPs of training on them: of linear layers, and of attention."""
    from transformers import AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(folder), json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in Path(turn["data"]).read_text(encoding="utf-8").splitlines()]
    texts = [
        text
        for row in rows[turn["skip"] * turn["batch"] :]
        for text in (turn["instruction"] + row["query"], *row["pos"], *row["neg"])
    ]
    lengths = [*map(len, tokenizer(texts, truncation=True, max_length=turn["max_len"])["input_ids"])]
    attention = 4 * config["num_hidden_layers"] * config["hidden_size"] * sum(length**2 for length in lengths)
    return {
        "tokens": sum(lengths),
        "longest": max(lengths),
        # A backward pass costs twice the forward one.
        "linear_flops": 3 * linear_flops(folder) * sum(lengths),
        "attention_flops": 3 * attention,
    }


def compare_losses(
    args: argparse.Namespace, common: Row, start: Path, rows: list[Row], work: Path, results: Row
) -> None:
    """The first losses of all, with dropout off: equal up to rounding if all train the same on the same batches.

    Rows whose texts occur in no other row: bgekit alone knows that a passage of another row may be a positive, too.
    """
    distinct, seen = [], set[str]()
    for row in rows:
        texts = {row["query"], *row["pos"], *row["neg"]}
        if not texts & seen and len(distinct) < COMPARED * args.batch:
            distinct.append(row)
            seen |= texts
    if len(distinct) < COMPARED * args.batch:
        raise SystemExit(f"only {len(distinct)} rows of the data share no text: take a smaller --batch or --group")
    still = copied(start, work / "still", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    turn = common | {"model": str(still), "steps": COMPARED, "skip": 0, "warmup": 0, "seed": 0}
    turn |= write_batches(distinct, turn, work)
    reference: list[float] = []
    for contender in args.contenders:
        losses = take_turn(contender, turn, args, work)["losses"]
        results["contenders"][contender]["losses_without_dropout"] = losses
        print(f"{contender}, first losses without dropout: {losses}", flush=True)
        if "bf16" in contender:
            continue
        reference = reference or losses
        if any(abs(one - other) > SAME * other for one, other in zip(losses, reference, strict=True)):
            raise SystemExit(f"{contender} does not train the same: its losses are {losses}, others' {reference}")


def quietest_turn(contender: str, turn: Row, args: argparse.Namespace, work: Path) -> Row:
    turns: list[Row] = []
    while not turns or (turns[-1]["others"] > QUIET and len(turns) < args.tries):
        turns.append(take_turn(contender, turn, args, work))
    return min(turns, key=lambda facts: float(facts["others"]))


def output_of(work: Path, contender: str) -> Path:
    return work / f"trained-{contender.replace(' ', '-')}"


def take_turn(
    contender: str, turn: Row, args: argparse.Namespace, work: Path, checkout: Path | None = None
) -> Row:  # fmt: skip
    """Train in a process of the contender's environment, or with the sources of a checkout."""
    output, name = output_of(work, contender), contender.split()[0]
    for folder in (output, Path(f"{output}-cache")):
        shutil.rmtree(folder, ignore_errors=True)
    python = sys.executable
    if name in ENVIRONMENTS:
        if args.envs is None:
            raise SystemExit(f"{contender} needs an environment: pass --envs (made by encode.py setup)")
        python = str(args.envs / ENVIRONMENTS[name] / "bin" / "python")
    description = work / "turn.json"
    whole = turn | {"contender": contender, "bf16": "bf16" in contender, "output": str(output)}
    description.write_text(json.dumps(whole))
    done = subprocess.run(
        [python, str(HERE / "trainers.py"), str(description)], capture_output=True, text=True, check=False,
        env=environment_of(checkout),
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{contender} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    facts: Row = json.loads(done.stdout.splitlines()[-1])
    return facts


def measure_machine(folder: Path, work: Path, rates: dict[str, list[float]]) -> None:
    machine = Worker("limit", folder, None)
    for dtype, rate in _quietest(machine, write_texts(work / "none.jsonl", []))["rates"].items():
        rates[dtype].append(rate)
    machine.close()


def judged(folders: list[Path], data: str) -> list[float]:
    """The main score of each model, by the same code, in a process that ends before the next turn."""
    code = (
        "import json,sys\n"
        "from bgekit.evaluation import evaluate\n"
        "scores=[evaluate(f,sys.argv[1],compare=False,progress=False).results[0].main_score for f in sys.argv[2:]]\n"
        "print(json.dumps(scores))\n"
    )
    command = [sys.executable, "-c", code, data, *map(str, folders)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    scores: list[float] = json.loads(output.splitlines()[-1])
    return scores


def memory(args: argparse.Namespace) -> None:
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    turn = {
        "model": str(args.model), "unordered": args.data, "group": 2, "max_len": args.max_len, "temperature": 0.02,
        "learning_rate": 1e-5, "warmup": 0, "steps": 1, "skip": 0, "seed": 0,
    }  # fmt: skip
    results: Row = {
        "cpu": _cpu(), "model": str(args.model), "data": args.data, "chunk": args.chunk, "cached": {}, "plain": {},
    }  # fmt: skip
    for kind, sizes in (("cached", args.sizes), ("plain", args.plain)):
        for size in sizes:
            chunk = args.chunk if kind == "cached" else None
            facts = take_turn("bgekit", turn | {"batch": size, "chunk": chunk}, args, work)
            results[kind][str(size)] = facts
            print(f"{kind}, batch {size}: {facts['peak_mib']:,.0f} MiB", flush=True)
            save(results, args.out)
    print(table(results))


def save(results: Row, path: str) -> None:
    Path(path).write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    speed = verbs.add_parser("run", help="speed and quality, against peers")
    speed.add_argument("--envs", type=Path, help="folder that encode.py setup filled; not needed for bgekit alone")
    speed.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    speed.add_argument("--model", default="packaged:all-MiniLM-L6-v2", help="folder or packaged:NAME")
    speed.add_argument("--data", help="rows with negatives; by default SciFact's, mined with the model")
    speed.add_argument("--judge", default=str(SHARED / "data" / "SciFact"), help='data of `bge eval`; "" for none')
    speed.add_argument("--rounds", type=int, default=3, help="each with a seed of its own")
    speed.add_argument("--tries", type=int, default=TRIES, help="turns, where other processes disturb them")
    speed.add_argument("--steps", type=int, default=40)
    speed.add_argument("--skip", type=int, default=2, help="steps before the time counts")
    speed.add_argument("--batch", type=int, default=16)
    speed.add_argument("--group", type=int, default=2)
    speed.add_argument("--max_len", type=int, default=256, help="tokens of a query, and of a passage")
    speed.add_argument("--learning_rate", type=float, default=2e-5)
    speed.add_argument("--temperature", type=float, default=0.02)
    large = verbs.add_parser("memory", help="memory of large batches")
    large.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024, 4096, 8192])
    large.add_argument("--plain", type=int, nargs="*", default=[64, 256], help="sizes without gradient cache")
    large.add_argument("--chunk", type=int, default=32)
    large.add_argument("--max_len", type=int, default=64)
    large.add_argument("--model", default=str(SHARED / "models" / "bge-small-zh-v1.5"))
    large.add_argument("--data", default=str(SHARED / "data" / "SimCLUE" / "train.jsonl"))
    for each in (speed, large):
        each.add_argument("--out", default="train.json")
        each.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "bgekit-benchmark-train"))
    for verb in ("table", "plot"):
        show = verbs.add_parser(verb)
        show.add_argument("results", type=Path)
        if verb == "plot":
            show.add_argument("image")
    args = parser.parse_args()
    if args.verb == "run":
        run(args)
    elif args.verb == "memory":
        memory(args)
    elif args.verb == "table":
        print(table(json.loads(args.results.read_text())))
    else:
        plot(json.loads(args.results.read_text()), args.image)


if __name__ == "__main__":
    main()
