"""Does training help on real data? Every way of choosing negatives, over several seeds, judged on held-out queries.

    python benchmarks/learning.py run --work DIR [--tasks cmrc scifact afqmc] [--seeds 0 1 2]
    python benchmarks/learning.py table --work DIR

Each task trains a model on one split of real data (shared/data) and measures it on another: the model as it is, then
trained with random negatives, with mined ones, with mined ones behind a guard against false negatives, and with the
scores of a reranker that was trained on the same rows. These runs have the same rows, steps and learning rate. AFQMC,
whose pairs have labels, is also trained on as scored pairs, with those among the same pairs that do not mean the same.
Every step is a command of `bge`; what is in DIR already is not made again.

Scores of retrieval are compared query by query, each query's score being its mean over the seeds; correlations are
compared seed by seed.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
DATA = SHARED / "data"
MINILM, BGE_EN, BGE_ZH = "packaged:all-MiniLM-L6-v2", str(SHARED / "models/bge-small-en-v1.5"), str(
    SHARED / "models/bge-small-zh-v1.5"
)  # fmt: skip
NEGATIVES = 8
#: Of every training run.
COMMON = (
    "--learning_rate", "5e-5", "--warmup_ratio", "0.1", "--per_device_train_batch_size", "32", "--bf16", "true",
    "--logging_steps", "5", "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none",
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """A task: what is trained, on what, judged how.

    Attributes:
        start: The model that is trained.
        teacher: The model that the reranker is made from.
        prepare: Writes train.jsonl (rows without negatives), pool.jsonl and the files of `ways` into a folder.
        ranks: Places of the ranking that negatives are mined from.
        training: Arguments of `bge finetune`.
        reranking: Arguments of `bge finetune-reranker`.
        data: What the model is judged on; its default split holds none of the training queries.
        ways: Names of training files that `prepare` makes, beside the mined ones.
        first_stage: Embedder whose passages the reranker is judged on; None for no such judgement.
    """

    start: str
    teacher: str
    prepare: Callable[[Path], None]
    ranks: str
    training: Sequence[str]
    reranking: Sequence[str]
    data: Path
    ways: Sequence[str] = ()
    first_stage: str | None = None


def lines(path: Path) -> Iterator[dict]:
    """Rows of a jsonl file, gzipped or not."""
    zipped = path.with_name(path.name + ".gz")
    with path.open(encoding="utf-8") if path.exists() else gzip.open(zipped, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def write(path: Path, rows: Iterable[dict]) -> None:
    """Rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.rename(path)


def document(row: dict) -> str:
    """A document as the evaluation encodes it."""
    return f"{row.get('title', '')} {row['text']}".strip()


def scifact(folder: Path) -> None:
    write(folder / "train.jsonl", lines(DATA / "SciFact/train.jsonl"))
    write(folder / "pool.jsonl", ({"text": document(row)} for row in lines(DATA / "SciFact/corpus.jsonl")))


def cmrc(folder: Path) -> None:
    """Questions of the trial split; only passages of that split are candidates, so that dev's stay unseen."""
    source = DATA / "CMRC2018Retrieval"
    texts = {row["_id"]: document(row) for row in lines(source / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in lines(source / "queries.jsonl")}
    positives: dict[str, list[str]] = {}
    for line in (source / "qrels/trial.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, passage, _ = line.split("\t")
        positives.setdefault(query, []).append(texts[passage])
    write(
        folder / "train.jsonl", ({"query": queries[query], "pos": pos, "neg": []} for query, pos in positives.items())
    )
    write(
        folder / "pool.jsonl", ({"text": text} for text in sorted({text for pos in positives.values() for text in pos}))
    )


def afqmc(folder: Path) -> None:
    """The first 4,000 pairs that mean the same, and as scored pairs all that come before the last of them."""
    source = DATA / "AFQMC"
    held = afqmc_held_out()
    rows = (row for row in lines(source / "train_bge.jsonl") if not {row["query"], *row["pos"]} & held)
    chosen = list(itertools.islice(rows, 4000))
    write(folder / "train.jsonl", chosen)
    write(folder / "pool.jsonl", ({"text": text} for text in sorted({row["pos"][0] for row in chosen})))
    last = chosen[-1]["query"], chosen[-1]["pos"][0]
    among = itertools.takewhile(lambda row: (row["sentence1"], row["sentence2"]) != last, afqmc_pairs())
    write(folder / "scored.jsonl", among)


def afqmc_held_out() -> set[str]:
    """Texts of the validation split, which no training row may have."""
    return {text for row in lines(DATA / "AFQMC/validation.jsonl") for text in (row["sentence1"], row["sentence2"])}


def afqmc_pairs() -> Iterator[dict]:
    """Pairs of the training split, with a score of 0 or 1."""
    held = afqmc_held_out()
    for row in lines(DATA / "AFQMC/train.jsonl"):
        if not {row["sentence1"], row["sentence2"]} & held:
            yield {name: row[name] for name in ("sentence1", "sentence2", "score")}


TASKS = {
    "cmrc": Experiment(
        MINILM, BGE_ZH, cmrc, "2-50",
        ("--num_train_epochs", "2", "--train_group_size", "2", "--query_max_len", "48", "--passage_max_len", "160"),
        ("--num_train_epochs", "2", "--train_group_size", "4", "--max_len", "256"),
        DATA / "CMRC2018Retrieval", first_stage=MINILM,
    ),
    "scifact": Experiment(
        MINILM, BGE_EN, scifact, "2-50",
        ("--num_train_epochs", "2", "--train_group_size", "2", "--query_max_len", "48", "--passage_max_len", "128"),
        ("--num_train_epochs", "1", "--train_group_size", "4", "--max_len", "192"),
        DATA / "SciFact", first_stage=MINILM,
    ),
    "afqmc": Experiment(
        BGE_ZH, BGE_ZH, afqmc, "2-100",
        ("--num_train_epochs", "1", "--train_group_size", "2", "--query_max_len", "48", "--passage_max_len", "48"),
        ("--num_train_epochs", "1", "--train_group_size", "4", "--max_len", "96"),
        DATA / "AFQMC", ways=("scored",),
    ),
}  # fmt: skip


def bge(*arguments: str | Path) -> None:
    """A command of bgekit, in a process of its own."""
    command = [sys.executable, "-m", "bgekit", *map(str, arguments)]
    print("$ bge", *map(str, arguments), flush=True)
    subprocess.run(command, check=True)


def negatives(task: Experiment, folder: Path) -> list[str]:
    """Training files of a task, one for each way to choose negatives."""
    if not all((folder / f"{name}.jsonl").exists() for name in ("train", "pool", *task.ways)):
        task.prepare(folder)
    source = ("--input", folder / "train.jsonl", "--negatives", str(NEGATIVES), "--seed", "0", "--quiet")
    pool = ("--candidate_pool", folder / "pool.jsonl")
    mining = ("mine", "--model", task.start, *source, *pool, "--range", task.ranks)
    commands = {
        "random": ("mine", "--random", *source, *pool),
        "mined": mining,
        "guarded": (*mining, "--max_positive_ratio", "0.95"),
    }  # fmt: skip
    for name, command in commands.items():
        if not (folder / f"{name}.jsonl").exists():
            bge(*command, "--output", folder / f"{name}.jsonl")
    return [*commands, *task.ways]


def run(task: Experiment, folder: Path, seeds: Sequence[int]) -> None:
    """Everything that a task needs, trained and measured."""
    from bgekit.evaluation import evaluate

    names = negatives(task, folder)
    reranker, taught = folder / "reranker", folder / "distilled.jsonl"
    if not (reranker / "config.json").exists():
        bge("finetune-reranker", "--model", task.teacher, "--train_data", folder / "guarded.jsonl",
            "--output_dir", reranker, "--overwrite_output_dir", "--seed", "0", *COMMON, *task.reranking)  # fmt: skip
    if not taught.exists():
        bge("score", "--model", reranker, "--input", folder / "guarded.jsonl", "--output", taught, "--quiet")
    for seed, name in itertools.product(seeds, [*names, "distilled"]):
        output = folder / f"{name}-{seed}"
        if not (output / "config.json").exists():
            more = ("--knowledge_distillation", "true") if name == "distilled" else ()
            bge("finetune", "--model", task.start, "--train_data", folder / f"{name}.jsonl", "--output_dir", output,
                "--overwrite_output_dir", "--seed", seed, *COMMON, *task.training, *more)  # fmt: skip
        evaluate(str(output), task.data, output=folder / "scores", compare=False, progress=False)
    evaluate(task.start, task.data, output=folder / "scores", compare=False, progress=False)
    if task.first_stage is not None:
        judged = fewer_queries(task.data, folder / "judged", 300)
        bge("eval", "--data", judged, "--model", task.first_stage, "--reranker", reranker, "--rerank-top-k", "20",
            "--output", folder / "reranked", "--no-progress")  # fmt: skip


def fewer_queries(source: Path, folder: Path, count: int) -> Path:
    """Retrieval data with some of its queries, spread evenly, and all its documents: a reranker reads every pair."""
    split = next(path for name in ("test", "dev") if (path := source / "qrels" / f"{name}.tsv").exists())
    header, *judgements = split.read_text(encoding="utf-8").splitlines()
    ids = list(dict.fromkeys(line.split("\t")[0] for line in judgements))
    chosen = set(ids[:: max(1, len(ids) // count)][:count])
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    kept = [header, *(line for line in judgements if line.split("\t")[0] in chosen)]
    (folder / "qrels" / split.name).write_text("\n".join(kept) + "\n", encoding="utf-8")
    for name in ("corpus", "queries"):
        write(folder / f"{name}.jsonl", lines(source / f"{name}.jsonl"))
    return folder


def table(task: Experiment, folder: Path, seeds: Sequence[int]) -> None:
    """Means, spreads and tests of a task; everything comes from its cache."""
    import numpy as np

    from bgekit.evaluation import evaluate
    from bgekit.evaluation.comparison import compare
    from bgekit.evaluation.report import summary as view
    from bgekit.evaluation.results import Result

    def results(name: str) -> list[Result]:
        models = [task.start] if name == "as it is" else [str(folder / f"{name}-{seed}") for seed in seeds]
        report = evaluate(models, task.data, output=folder / "scores", compare=False, progress=False)
        return list(report.results)

    def averaged(found: Sequence[Result]) -> Result:
        items = found[0].items
        values = np.mean([result.items.columns["value"] for result in found], axis=0)
        return replace(found[0], items=replace(items, columns={"value": values}))

    ways = ["as it is", "random", "mined", "guarded", "distilled", *task.ways]
    scores = {way: results(way) for way in ways if way == "as it is" or (folder / f"{way}-{seeds[-1]}").exists()}
    main = scores["as it is"][0]
    print(f"\n{main.task} ({main.split}, {main.count} items), {main.main_metric}; start: {Path(task.start).name}")
    for way, found in scores.items():
        values = [result.main_score for result in found]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(f"  {way:10} {statistics.mean(values):6.2f}{spread}   {[round(value, 2) for value in values]}")
    pairs = [("as it is", way) for way in list(scores)[1:]] + [
        pair for pair in itertools.pairwise(ways[1:5]) if set(pair) <= set(scores)
    ] + [("mined", way) for way in (*task.ways,) if way in scores]  # fmt: skip
    for a, b in pairs:
        if main.items.statistic == "mean":
            found = compare(averaged(scores[b]), averaged(scores[a]))
            text = f"{found.difference:+.2f} {view.interval(found)}, p = {found.p_value:.4f}"
        else:
            each = [compare(y, x) for x, y in zip(itertools.cycle(scores[a]), scores[b], strict=False)]
            text = "; ".join(f"{one.difference:+.2f}, p = {one.p_value:.4f}" for one in each)
        print(f"  {a} -> {b}: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    for name in args.tasks:
        if args.action == "run":
            run(TASKS[name], args.work / name, args.seeds)
        table(TASKS[name], args.work / name, args.seeds)


if __name__ == "__main__":
    main()
