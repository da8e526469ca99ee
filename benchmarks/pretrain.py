"""Does pre-training help on real data? The same fine-tuning with RetroMAE before it and without, over several seeds.

    python benchmarks/pretrain.py run --work DIR [--scratch SIZES --vocabulary 4000] [--steps 2000] [--bf16] ...
    python benchmarks/pretrain.py table --work DIR

The texts are the passages of the corpora in shared/data, without queries or judgements. Fine-tuning uses one half of
MLQuestions' queries (`--task scifact`: SciFact's training claims), measuring the other half (its test claims), whose
passages are among the texts, as they are wherever a corpus is there before its queries. Both arms start from one
checkpoint: a given model, or random weights of given sizes with the given model's tokenizer, or one of its kind with a
smaller vocabulary made from the texts. `--scratch` shows most: a model that was trained on more text than is here has
little to learn from it.

Every step is a command of `bge`; what is in DIR already is not made again, and an interrupted training goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CORPORA = ("MLQuestions", "SciFact", "MSMARCODev600Retrieval", "Cranfield")
SIZES = "hidden_size=256,num_hidden_layers=4,num_attention_heads=4,intermediate_size=1024"
ARMS = {"without": "fine-tuned", "with": "pre-trained, then fine-tuned"}
COMMON = (
    "--warmup_ratio", "0.1", "--logging_steps", "10", "--report_to", "none", "--disable_tqdm", "true",
)  # fmt: skip


def lines(path: Path) -> Iterator[dict[str, Any]]:
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def document(row: dict[str, Any]) -> str:
    return f"{row.get('title') or ''} {row['text']}".strip()


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.rename(path)


def prepare(work: Path, task: str) -> None:
    """texts.jsonl, train.jsonl and the folder `held-out`."""
    texts = dict.fromkeys(document(row) for name in CORPORA for row in lines(DATA / name / "corpus.jsonl"))
    write(work / "texts.jsonl", ({"text": text} for text in texts if text))
    source, held = DATA / ("SciFact" if task == "scifact" else "MLQuestions"), work / "held-out"
    documents = list(lines(source / "corpus.jsonl"))
    passages = {row["_id"]: document(row) for row in documents}
    queries = {row["_id"]: row["text"] for row in lines(source / "queries.jsonl")}

    def judged(split: str) -> list[tuple[str, str]]:
        rows = (source / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        return [(query, passage) for query, passage, score in map(str.split, rows) if int(score) > 0]

    if task == "scifact":
        training, test = judged("train"), judged("test")
    else:
        every = judged("dev")
        ids = list(dict.fromkeys(query for query, _ in every))
        first = set(ids[::2])
        training, test = [row for row in every if row[0] in first], [row for row in every if row[0] not in first]
    write(held / "corpus.jsonl", documents)
    write(held / "queries.jsonl", ({"_id": query, "text": queries[query]} for query in dict(test)))
    (held / "qrels").mkdir(exist_ok=True)
    rows = [f"{query}\t{passage}\t1\n" for query, passage in test]
    (held / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")
    write(work / "train.jsonl", ({"query": queries[query], "pos": [passages[passage]]} for query, passage in training))


def random_start(folder: Path, args: argparse.Namespace) -> None:
    """A BERT of random weights that bgekit loads."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from bgekit.models.hub import resolve

    given = {name: int(value) for name, value in (part.split("=") for part in args.scratch.split(","))}
    made = AutoTokenizer.from_pretrained(resolve(args.model))
    if args.vocabulary:
        texts = [row["text"] for row in lines(args.work / "texts.jsonl")]
        made = made.train_new_from_iterator(texts, args.vocabulary, length=len(texts))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(made), pad_token_id=made.pad_token_id, **given)).save_pretrained(folder)
    made.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": given["hidden_size"], "pooling_mode_cls_token": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def bge(output: Path, *arguments: str | Path | int) -> None:
    """A training of bgekit, in a process of its own; it goes on where it was interrupted."""
    if (output / "training.json").exists():
        return
    resume = ("--resume_from_checkpoint", "true") if output.exists() else ()
    command = [*map(str, arguments), "--output_dir", str(output), *resume, *COMMON]
    print("$ bge", *command, flush=True)
    subprocess.run([sys.executable, "-m", "bgekit", *command], check=True)


def run(args: argparse.Namespace) -> None:
    from bgekit.evaluation import evaluate

    work: Path = args.work
    if not (work / "train.jsonl").exists():
        prepare(work, args.task)
    start = args.model
    if args.scratch:
        start = str(work / "random")
        if not (work / "random" / "1_Pooling" / "config.json").exists():
            random_start(work / "random", args)
    pretrained, every = work / "pretrained", max(args.steps // 10, 1)
    half = ("--bf16", "true") if args.bf16 else ()
    bge(pretrained, "pretrain", "--model", start, "--train_data", work / "texts.jsonl", "--max_steps", args.steps,
        "--per_device_train_batch_size", args.batch, "--max_seq_length", args.length, "--learning_rate", args.rate,
        "--validation_split", "0.02", "--eval_steps", every, "--save_steps", every, "--save_total_limit", 2,
        "--seed", 0, *half)  # fmt: skip
    for seed in args.seeds:
        for arm, model in zip(ARMS, (start, str(pretrained)), strict=True):
            output = work / f"{arm}-{seed}"
            bge(output, "finetune", "--model", model, "--train_data", work / "train.jsonl", "--seed", seed,
                "--sentence_pooling_method", "cls", "--num_train_epochs", args.epochs, "--train_group_size", 1,
                "--per_device_train_batch_size", args.pairs, "--learning_rate", args.finetuning_rate,
                "--query_max_len", 64, "--passage_max_len", args.length, "--save_strategy", "no", *half)  # fmt: skip
            evaluate(str(output), work / "held-out", output=work / "scores", compare=False, progress=False)
    table(args)


def table(args: argparse.Namespace) -> None:
    """Means, spreads and a paired test over the held-out queries, each query's score being its mean over the seeds."""
    import numpy as np

    from bgekit.evaluation import evaluate
    from bgekit.evaluation.comparison import compare
    from bgekit.evaluation.report import summary as view
    from bgekit.evaluation.results import Result

    def averaged(found: Sequence[Result]) -> Result:
        values = np.mean([result.items.columns["value"] for result in found], axis=0)
        return replace(found[0], items=replace(found[0].items, columns={"value": values}))

    scores: dict[str, Sequence[Result]] = {}
    for arm in ARMS:
        models = [str(args.work / f"{arm}-{seed}") for seed in args.seeds if (args.work / f"{arm}-{seed}").exists()]
        data, cache = args.work / "held-out", args.work / "scores"
        scores[arm] = evaluate(models, data, output=cache, compare=False, progress=False).results
    log = json.loads((args.work / "pretrained" / "training.json").read_text(encoding="utf-8"))
    measured = [(row["step"], row["eval_loss"]) for row in log["history"] if "eval_loss" in row]
    print("| step of pre-training | loss on held-out texts |\n|---|---|")
    for step, loss in measured:
        print(f"| {step:,} | {loss:.3f} |")
    without, pre = scores.values()
    first = without[0]
    print(f"\n| {first.main_metric}, {first.count} held-out queries | mean | spread | by seed |\n|---|---|---|---|")
    for arm, found in scores.items():
        values = [result.main_score for result in found]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {ARMS[arm]} | {statistics.mean(values):.2f} | {spread:.2f} | {each} |")
    test = compare(averaged(pre), averaged(without))
    interval = view.interval(test)
    print(f"\nPre-training brings {test.difference:+.2f} {interval}, p = {test.p_value:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--work", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--task", choices=("mlquestions", "scifact"), default="mlquestions")
    parser.add_argument("--model", default="packaged:all-MiniLM-L6-v2", help="checkpoint to start from")
    parser.add_argument("--scratch", nargs="?", const=SIZES, help=f"random weights instead, of these sizes: {SIZES}")
    parser.add_argument("--vocabulary", type=int, help="with --scratch: tokens of a tokenizer made from the texts")
    parser.add_argument("--steps", type=int, default=2000, help="of pre-training")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a step of pre-training")
    parser.add_argument("--length", type=int, default=192, help="tokens of a sequence, and of a passage")
    parser.add_argument("--rate", default="3e-4", help="learning rate of pre-training")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of a step of fine-tuning")
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning")
    parser.add_argument("--finetuning-rate", default="1e-4", help="learning rate of fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    if args.vocabulary and not args.scratch:
        parser.error("--vocabulary needs --scratch")
    run(args) if args.verb == "run" else table(args)


if __name__ == "__main__":
    main()
