"""What heads for lexical weights and multi-vectors bring: trained on bge-small, judged in and out of domain.

    python benchmarks/heads.py train --work DIR [--languages en zh] [--seeds 0 1 2] [--steps 1000]
    python benchmarks/heads.py judge --work DIR [--languages en zh] [--seeds 0 1 2]
    python benchmarks/heads.py table --work DIR

`train` makes heads by `bge finetune --unified-finetuning true --fix-encoder true`, with self-distillation and without:
English on SciFact's training split and the MS MARCO rows of FlagEmbedding's examples, Chinese on SimCLUE and CMRC2018's
trial split. The encoder stays what it is, so `judge` encodes each set once and keeps the vectors of its tokens in DIR;
every pair of heads is a matrix product away. No instruction is used; documents are cut at 256 tokens. SciFact's test
split is in domain: 64 % of its relevant documents are positives of the training split. So is CMRC2018's dev split, of
which every fourth question is judged; Cranfield and MLQuestions are other domains.

`table` prints nDCG@10 by mode with 95 % intervals over queries (of means over seeds), and each mode's difference from
dense, and with self-distillation from without, with the house's paired test; for SciFact also of the queries that have
no answer among the training rows. Nothing is fitted to the judged sets: `dense + BM25` sums reciprocal ranks (k = 60),
`dense + lexical` and `all` sum scores with the weights that they were trained with (1, 0.3, 1).
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA, MODELS = SHARED / "data", SHARED / "models"
EXAMPLES = DATA / "flagembedding_examples/examples/finetune/embedder/example_data/retrieval"
#: Documents of each query that multi-vectors and sums rank: what dense vectors and lexical weights found first.
CANDIDATES = 50
#: Tokens of documents and queries.
DOCUMENT, QUERY = 256, 64
MODES = ("dense", "lexical", "multi-vector", "BM25", "dense + BM25", "dense + lexical", "all")
#: A mode, and "distilled" or "plain".
Row = tuple[str, str]
#: Modes that have no trained heads in them.
WITHOUT_HEADS = ("dense", "BM25", "dense + BM25")
COMMON = (
    "--unified-finetuning", "true", "--fix-encoder", "true", "--query-instruction", "", "--query-max-length", "64",
    "--passage-max-length", "128", "--train-group-size", "2", "--same-dataset-within-batch", "true",
    "--learning-rate", "1e-3", "--warmup-ratio", "0.1", "--batch-size", "32",
    "--save-strategy", "no", "--logging-steps", "50", "--report-to", "none", "--no-progress",
)  # fmt: skip


@dataclass(frozen=True)
class Language:
    """A model, what its heads learn from and what they are judged on.

    Attributes:
        model: The encoder.
        train: Arguments that name the training rows.
        sets: Sets by name; the first is of the domain of the training rows.
        every: Of a set's queries each so-manieth is judged.
    """

    model: Path
    train: tuple[str, ...]
    sets: dict[str, Path]
    every: int = 1


def languages(work: Path) -> dict[str, Language]:
    """What there is, by name; training rows are written into the folder."""
    cmrc = work / "cmrc-trial.jsonl"
    if not cmrc.exists():
        write_cmrc(cmrc)
    return {
        "en": Language(
            MODELS / "bge-small-en-v1.5",
            ("--train-data", str(DATA / "SciFact/train.jsonl"), str(EXAMPLES / "msmarco.jsonl")),
            {name: DATA / name for name in ("SciFact", "Cranfield", "MLQuestions")},
        ),
        "zh": Language(
            MODELS / "bge-small-zh-v1.5",
            ("--train-data", str(cmrc), str(DATA / "SimCLUE/train.jsonl"), "--dataset-weights", "5", "1"),
            {"CMRC2018": DATA / "CMRC2018Retrieval"},
            every=4,
        ),
    }


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a jsonl file, gzipped or not."""
    zipped = path.with_name(path.name + ".gz")
    with path.open(encoding="utf-8") if path.exists() else gzip.open(zipped, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_cmrc(path: Path) -> None:
    """Questions of CMRC2018's trial split with their passages; those of dev are other passages."""
    source = DATA / "CMRC2018Retrieval"
    texts = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in lines(source / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in lines(source / "queries.jsonl")}
    rows = []
    for line in (source / "qrels/trial.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, passage, _ = line.split("\t")
        rows.append({"query": queries[query], "pos": [texts[passage]], "neg": []})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def runs(seeds: Sequence[int]) -> list[tuple[int, bool]]:
    """Seeds, each with self-distillation and without: a first seed of all before the others."""
    return [(seed, distil) for seed in seeds for distil in (True, False)]


def heads_folder(work: Path, language: str, seed: int, distil: bool) -> Path:
    """Where a trained model is."""
    return work / f"{language}-{'distilled' if distil else 'plain'}-{seed}"


def fast_precision() -> str:
    """bfloat16 where this CPU is fast in it."""
    import torch

    from bgekit.networks.loading import half_precision

    return half_precision(torch.device("cpu"))


def train(work: Path, language: str, seed: int, distil: bool, steps: int) -> None:
    """Train a pair of heads, if they are not there."""
    folder, given = heads_folder(work, language, seed, distil), languages(work)[language]
    if (folder / "config.json").exists():
        return
    from bgekit.cli.main import main as bge  # In one process: starting one takes longer than training.

    more = ("--use-self-distill", "true") if distil else ()
    more += ("--bf16", "true") if fast_precision() == "bfloat16" else ()
    command = (
        "finetune", "--model", str(given.model), *given.train, "--output", str(folder), "--overwrite",
        "--seed", str(seed), "--max-steps", str(steps), "--cache-path", str(work / "rows"), *COMMON, *more,
    )  # fmt: skip
    print("$ bge", *command, flush=True)
    if code := bge(list(command)):
        raise SystemExit(code)


@dataclass(frozen=True)
class States:
    """A set as the encoder sees it: token vectors and dense vectors of some texts."""

    packed: Any
    hidden: Any
    dense: Any


def states(work: Path, model: Path, name: str, texts: Sequence[str], role: str) -> States:
    """Token and dense vectors of texts, computed once and kept in files of float16."""
    import torch

    from bgekit.inference.tokenization import load_tokenizer
    from bgekit.models import read_card
    from bgekit.models.card import Prompt
    from bgekit.networks import load_encoder
    from bgekit.networks.packing import plan_batches
    from bgekit.training.batches.collator import Collator

    card = read_card(model, model.name)
    collator = Collator.of(load_tokenizer(model), card, query_max_len=QUERY, passage_max_len=DOCUMENT)
    packed, _ = collator.encode(texts, [Prompt()] * len(texts), role)
    paths = [work / f"{model.name}-{name}-{role}-{kind}.npy" for kind in ("hidden", "dense")]
    if not all(path.exists() for path in paths):
        encoder = load_encoder(model, card, precision=fast_precision())
        shapes = ((len(packed.input_ids), card.dimension), (len(texts), card.dimension))
        temporary = [path.with_suffix(".tmp") for path in paths]
        hidden, dense = (
            np.lib.format.open_memmap(path, "w+", np.float16, shape)
            for path, shape in zip(temporary, shapes, strict=True)
        )
        starts = packed.starts.tolist()
        with torch.no_grad():
            for number, positions in enumerate(plan_batches(packed.lengths, 4096)):
                batch = packed.take(positions)
                every, first = encoder.backbone.with_all(batch, "first")
                dense[positions] = encoder.dense_vectors(first, batch).numpy()
                for position, rows in zip(positions, every.split(batch.lengths), strict=True):
                    hidden[starts[position] : starts[position] + len(rows)] = rows.float().numpy()
                if number % 100 == 0:
                    print(f"{name} {role}: batch {number}", flush=True)
        del hidden, dense
        for path, final in zip(temporary, paths, strict=True):
            path.rename(final)
    loaded = [np.load(path, mmap_mode="r") for path in paths]
    return States(packed, loaded[0], loaded[1])


def blocks(count: int, size: int = 1 << 16) -> Iterator[slice]:
    """Slices of so many rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def lexical(side: States, heads: Any, special: Any) -> Any:
    """Lexical weights as a sparse matrix [n, vocabulary]."""
    import torch
    from scipy.sparse import csr_array

    from bgekit.networks.heads import distinct_weights

    with torch.no_grad():
        parts = [
            heads.sparse(torch.tensor(side.hidden[cut], dtype=torch.float32)).relu()[:, 0]
            for cut in blocks(len(side.hidden))
        ]
        found = distinct_weights(torch.cat(parts), side.packed, special)
    offsets = np.concatenate([[0], found.counts.cumsum(0).numpy()])
    return csr_array((found.weights.numpy(), found.tokens.numpy(), offsets), (len(found.counts), 40_000))


def vectors(side: States, heads: Any) -> tuple[Any, Any]:
    """Vectors of tokens without the first of each text, float16, and where those of each text begin and end."""
    import torch
    from torch.nn.functional import normalize

    counted = (side.packed.positions > 0).numpy()
    with torch.no_grad():
        parts = [
            normalize(
                heads.multi_vector(torch.tensor(side.hidden[cut][counted[cut]], dtype=torch.float32)), dim=-1
            ).half().numpy()
            for cut in blocks(len(side.hidden))
        ]  # fmt: skip
    return np.concatenate(parts), np.cumsum([0, *(length - 1 for length in side.packed.lengths)])


def best(scores: Any, count: int) -> Any:
    """Rows of the highest scores above 0, best first."""
    rows = np.argsort(-scores, kind="stable")[:count]
    return rows[scores[rows] > 0]


def judge(work: Path, language: str, name: str, chosen: Iterable[tuple[int, bool]]) -> None:
    """nDCG@10 of each query by each mode, for heads that are not judged yet, into `scores-....json`."""
    import torch

    from bgekit.evaluation import read_tasks
    from bgekit.evaluation.metrics import ranking_metrics
    from bgekit.inference.tokenization import load_tokenizer, special_ids
    from bgekit.networks.heads import read_heads
    from bgekit.search.bm25 import Bm25
    from bgekit.search.fusion import by_ranks

    given = languages(work)[language]
    waiting = [
        (heads_folder(work, language, *run), path)
        for run in chosen
        if not (path := work / f"scores-{name}-{heads_folder(work, language, *run).name}.json").exists()
        and (heads_folder(work, language, *run) / "config.json").exists()
    ]
    if not waiting:
        return
    (task,) = read_tasks(given.sets[name])
    ids, names = list(task.qrels)[:: given.every], list(task.corpus.ids)
    texts = [record.text for record in task.corpus.read()]
    asked = states(work, given.model, name, [task.queries[query] for query in ids], "query")
    documents = states(work, given.model, name, texts, "passage")
    special = torch.tensor(special_ids(load_tokenizer(given.model)))
    dense = np.asarray(asked.dense, np.float32) @ np.asarray(documents.dense, np.float32).T
    bm25 = Bm25.of_texts(texts)
    words = [np.asarray(bm25.rank(task.queries[query], CANDIDATES)) for query in ids]

    def measured(found: Sequence[tuple[Any, Any]]) -> list[float]:
        run = {
            query: {names[row]: float(score) for row, score in zip(rows, scores, strict=True)}
            for query, (rows, scores) in zip(ids, found, strict=True)
        }
        values: list[float] = ranking_metrics(task.qrels, run, [10])["ndcg_at_10"].tolist()
        return values

    falling = [np.arange(len(rows), 0, -1.0) for rows in words]
    first = [best(row + 2, CANDIDATES) for row in dense]
    fused = []
    for row, rows, other in zip(dense, first, words, strict=True):
        sums, order = by_ranks({"dense": (row[rows], rows), "bm25": (np.arange(len(other), 0, -1.0), other)}, 10)
        fused.append((order, sums))
    fixed = {
        "dense": measured([(rows, row[rows]) for row, rows in zip(dense, first, strict=True)]),
        "BM25": measured(list(zip(words, falling, strict=True))),
        "dense + BM25": measured(fused),
    }
    for folder, path in waiting:
        heads = read_heads(folder, dense_width(documents), ["sparse", "multi-vector"])
        table = (lexical(asked, heads, special) @ lexical(documents, heads, special).T).toarray()
        own, own_offsets = vectors(asked, heads)
        theirs, offsets = vectors(documents, heads)
        found: dict[str, list[tuple[Any, Any]]] = {mode: [] for mode in MODES if mode not in fixed}
        for query, row in enumerate(dense):
            lexically = best(table[query], CANDIDATES)
            rows = np.union1d(first[query], lexically)
            vector = own[own_offsets[query] : own_offsets[query + 1]].astype(np.float32)
            every = np.concatenate([theirs[offsets[each] : offsets[each + 1]] for each in rows]).astype(np.float32)
            starts = np.cumsum([0, *(offsets[each + 1] - offsets[each] for each in rows)])[:-1]
            multi = np.maximum.reduceat(vector @ every.T, starts, axis=1).mean(0)
            found["lexical"].append((lexically, table[query, lexically]))
            found["multi-vector"].append((rows, multi))
            found["dense + lexical"].append((rows, row[rows] + 0.3 * table[query, rows]))
            found["all"].append((rows, row[rows] + 0.3 * table[query, rows] + multi))
        values = fixed | {mode: measured(each) for mode, each in found.items()}
        document = {
            "values": values,
            "relevant": [sorted(k for k, v in task.qrels[query].items() if v > 0) for query in ids],
        }
        document |= {"ids": ids, "texts": [task.queries[query] for query in ids]}
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        shown = ", ".join(f"{mode} {100 * np.mean(values[mode]):.2f}" for mode in MODES)
        print(f"{name} {folder.name}: {shown}", flush=True)


def dense_width(side: States) -> int:
    """Width of token vectors."""
    return int(side.hidden.shape[1])


def table(work: Path) -> None:
    """Markdown: means over seeds with intervals over queries, and paired differences."""
    for language, given in languages(work).items():
        for name, folder in given.sets.items():
            read: dict[str, list[Any]] = {}
            for kind in ("distilled", "plain"):
                files = sorted(work.glob(f"scores-{name}-{language}-{kind}-*.json"))
                read[kind] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            if not all(read.values()):
                continue
            block(name, read, np.ones(len(read["plain"][0]["ids"]), bool))
            if (folder / "train.jsonl").exists():
                block(f"{name}, answers that are in no training row", read, ~seen(folder, read["plain"][0]["relevant"]))


def seen(folder: Path, relevant: Sequence[Sequence[str]]) -> Any:
    """Whether a relevant document of each query is a positive of the set's training split."""
    from bgekit.evaluation import read_tasks

    (task,) = read_tasks(folder)
    texts = {record.id: record.text for record in task.corpus.read()}
    positives = {text for row in lines(folder / "train.jsonl") for text in row["pos"]}
    return np.array([any(texts[each] in positives for each in documents) for documents in relevant])


def block(title: str, read: dict[str, list[Any]], taken: Any) -> None:
    """A set, or a part of its queries: each mode, compared with dense, and with itself without self-distillation."""
    from bgekit.evaluation.tasks.base import together

    ids, texts, relevant = (
        [each for each, take in zip(read["plain"][0][field], taken, strict=True) if take]
        for field in ("ids", "texts", "relevant")
    )
    groups = together(list(zip(texts, map(tuple, relevant), strict=True)))
    rows = [(mode, "distilled") for mode in MODES if mode in WITHOUT_HEADS]
    rows += [(mode, kind) for mode in MODES if mode not in WITHOUT_HEADS for kind in read]
    values = {
        (mode, kind): np.array([each["values"][mode] for each in read[kind]])[:, taken] for mode, kind in rows
    }  # [seeds, queries]
    means = {row: of_seeds.mean(axis=0) for row, of_seeds in values.items()}
    pairs = [(row, rows[0]) for row in rows[1:]]
    pairs += [(row, (row[0], "plain")) for row in rows if row[1] == "distilled" and (row[0], "plain") in rows]
    differences = dict(zip(pairs, compared(pairs, means, ids, groups), strict=True))
    print(f"\n{title}: {len(ids):,} queries, {len(read['plain'])} seeds\n")
    print("| mode | self-distillation | nDCG@10 (95 %) | seeds | minus dense (95 %), p | minus without it (95 %), p |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        mode, learned = row[0], row[0] not in WITHOUT_HEADS
        low, high = interval(means[row], groups)
        seeds = 100 * values[row].mean(axis=1)
        print(
            f"| {mode} | {('yes' if row[1] == 'distilled' else 'no') if learned else ''} "
            f"| {100 * means[row].mean():.2f} ({low:.1f} to {high:.1f}) "
            f"| {f'{min(seeds):.1f} to {max(seeds):.1f}' if learned else ''} "
            f"| {differences.get((row, rows[0]), '')} | {differences.get((row, (mode, 'plain')), '')} |"
        )


def compared(
    pairs: Sequence[tuple[Row, Row]], means: dict[Row, Any], ids: Sequence[str], groups: Sequence[int | str] | None
) -> list[str]:
    """The difference of each pair in points, its interval and its p value, by the house's paired test."""
    from bgekit.evaluation.evidence import contrasts, randomisations
    from bgekit.evaluation.report.summary import p_value
    from bgekit.evaluation.tasks.base import Items

    items = {row: Items(ids, "mean", {"value": mean}, groups=groups) for row, mean in means.items()}
    found = contrasts([(items[a], items[b]) for a, b in pairs], randomisations(len(pairs)), np.random.default_rng(0))
    return [
        f"{100 * each.difference:+.2f} ({100 * each.low:+.2f} to {100 * each.high:+.2f}), {p_value(each.p_value)}"
        for each in found
    ]


def interval(values: Any, groups: Sequence[int | str] | None) -> tuple[float, float]:
    """The 95 % interval (x100) of a mean over queries, drawn with replacement by what stands or falls together."""
    _, unit = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(unit, values), np.bincount(unit)
    drawn = np.random.default_rng(0).integers(0, len(sums), (2000, len(sums)))
    low, high = np.percentile(100 * sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "judge", "table"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=["en", "zh"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    if given.command == "table":
        return table(given.work)
    for seed, distil in runs(given.seeds):
        for language in given.languages:
            if given.command == "train":
                train(given.work, language, seed, distil, given.steps)
    if given.command == "judge":
        for language in given.languages:
            for name in languages(given.work)[language].sets:
                judge(given.work, language, name, runs(given.seeds))
    return None


if __name__ == "__main__":
    main()
