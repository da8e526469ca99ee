"""What it costs until the first vector: CPU time and memory of fresh processes, against another commit and peers.

    python benchmarks/start.py setup --envs DIR     make environments for sentence-transformers and FlagEmbedding
    python benchmarks/start.py run --envs DIR --out start.json
    python benchmarks/start.py table start.json

Two things that people do with a text and a small model: a program that makes one vector (`FlagModel(...).encode`), and
`bge search --index` with one question. Each run is a process of its own, from its start to its end; what counts is the
CPU time (user and system) and the most memory that the system reports of it. The peers make the vector alone, with the
same model. One run is taken after the other, in an order that is turned round each time; medians count. The files are
read once before. Commits run in the environment of `make dev`, the other one from `git archive`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from encode import QUIET, SHARED, TRIES, _cpu, _cpu_seconds, environment_of, setup

HERE = Path(__file__).resolve().parents[1]
#: The commit before models were loaded without transformers.
BEFORE = "90c2c01"
TEXT = "how do I read a csv file?"
CORPUS = (
    "Files of comma separated values are read by the module csv.",
    "Bread is baked in an oven.",
    "Pandas eat bamboo.",
)
#: What makes one vector, by the name of who makes it; the vector's bytes come out as hex digits.
_END = "import sys, numpy; sys.stdout.write(numpy.asarray(vector, dtype='float32').tobytes().hex())"
CODE = {
    "bgekit": "from bgekit import FlagModel; vector = FlagModel(FOLDER, devices='cpu').encode(TEXT)",
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer; "
        "vector = SentenceTransformer(FOLDER, device='cpu').encode(TEXT)"
    ),
    "FlagEmbedding": (
        "from FlagEmbedding import FlagModel; "
        "vector = FlagModel(FOLDER, query_instruction_for_retrieval=None, devices='cpu').encode(TEXT)"
    ),
}
PEERS = {"sentence-transformers": "sentence-transformers", "FlagEmbedding": "flagembedding"}
#: Ratios to keep: task, whose, to whose, figure, at most.
TARGETS = (
    ("one vector", "after", "before", "cpu_seconds", 0.40), ("one question", "after", "before", "cpu_seconds", 0.40),
    ("one vector", "after", "sentence-transformers", "cpu_seconds", 0.35),
    ("one vector", "after", "before", "peak_mib", 0.70), ("one question", "after", "before", "peak_mib", 0.70),
)  # fmt: skip


def run(args: argparse.Namespace) -> None:
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    folder = model_folder(args.model)
    checkouts = {"before": archived(args.before, work), "after": HERE}
    tasks: dict[str, dict[str, tuple[list[str], dict[str, str]]]] = {"one vector": {}, "one question": {}}
    for name, checkout in checkouts.items():
        environment = environment_of(checkout)
        tasks["one vector"][name] = ([sys.executable, "-c", program("bgekit", folder)], environment)
        index = work / f"index-{name}"
        search = [sys.executable, "-m", "bgekit", "search"]
        if not index.exists():
            corpus = work / "corpus.txt"
            corpus.write_text("".join(f"{text}\n" for text in CORPUS))
            make = [*search, str(corpus), "--model", folder, "--devices", "cpu", "--index", str(index), "-q", TEXT]
            subprocess.run(make, env=environment, check=True, capture_output=True)
        question = [*search, "--index", str(index), "--devices", "cpu", "-q", TEXT, "--json", "--quiet"]
        tasks["one question"][name] = (question, environment)
    skipped: dict[str, str] = {}
    for peer, environment_name in PEERS.items():
        if not args.envs and peer == "FlagEmbedding":  # In this environment that is the project's own alias.
            skipped[peer] = "it needs an environment of its own (setup, then --envs)"
            continue
        python = Path(args.envs, environment_name, "bin", "python") if args.envs else Path(sys.executable)
        command, environment = [str(python), "-c", program(peer, folder)], environment_of(None)
        if reason := impossible(command, environment):
            skipped[peer] = reason
            print(f"{peer} is left out: {reason}", file=sys.stderr)
        else:
            tasks["one vector"][peer] = (command, environment)

    results: dict[str, Any] = {
        "cpu": _cpu(), "before": args.before, "model": Path(folder).name, "skipped": skipped, "tasks": {},
    }  # fmt: skip
    for runs in tasks.values():  # Untimed: files are read into memory, and modules are compiled.
        for command, environment in runs.values():
            measured(command, environment)
    for number in range(args.rounds):
        for task, runs in tasks.items():
            names = list(runs) if number % 2 == 0 else list(reversed(runs))
            for name in names:
                facts = quietest(*runs[name])
                results["tasks"].setdefault(task, {}).setdefault(name, []).append(facts)
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")
        print(f"round {number + 1}: " + ", ".join(
            f"{task}, {name} {facts[-1]['cpu_seconds']:.2f} s" for task, each in results["tasks"].items()
            for name, facts in each.items()
        ), flush=True)  # fmt: skip
    print(table(results))


def model_folder(given: str | None) -> str:
    if given:
        return given
    folder = SHARED / "models" / "bge-small-en-v1.5"
    if not folder.is_dir():
        raise SystemExit(f"needs the weights in {folder}, or another model's folder by --model")
    return str(folder)


def archived(commit: str, work: Path) -> Path:
    """The sources of a commit."""
    folder = work / f"checkout-{commit}"
    if not folder.is_dir():
        archive = subprocess.run(["git", "archive", commit], cwd=HERE, check=True, stdout=subprocess.PIPE).stdout
        folder.mkdir(parents=True)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def program(who: str, folder: str) -> str:
    return f"FOLDER, TEXT = {folder!r}, {TEXT!r}\n{CODE[who]}\n{_END}"


def impossible(command: list[str], environment: dict[str, str]) -> str:
    """Why a peer cannot run here, "" if it can."""
    if not Path(command[0]).exists():
        return f"there is no environment {Path(command[0]).parents[1].name} (made by setup)"
    tried = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else ""


def quietest(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """A run, taken again while other processes use the machine."""
    tries: list[dict[str, Any]] = []
    while not tries or (tries[-1]["others"] > QUIET and len(tries) < TRIES):
        tries.append(measured(command, environment))
    return min(tries, key=lambda facts: float(facts["others"]))


def measured(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """CPU and wall seconds and the peak of a process, and the share of the CPU that others used meanwhile."""
    start, (busy, total) = time.perf_counter(), _cpu_seconds()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        answer = said.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{answer[-2000:].decode()}")
    wall, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    busy, total = (after - before for after, before in zip(_cpu_seconds(), (busy, total), strict=True))
    return {
        "cpu_seconds": cpu, "wall_seconds": wall, "peak_mib": used.ru_maxrss / 1024,
        "others": max(0.0, busy - cpu) / total if total else 0.0, "answer": hashlib.sha256(answer).hexdigest()[:16],
    }  # fmt: skip


def medians(results: dict[str, Any], task: str, name: str, figure: str) -> float:
    return statistics.median(facts[figure] for facts in results["tasks"][task][name])


def table(results: dict[str, Any]) -> str:
    tasks = results["tasks"]
    rounds = len(tasks["one vector"]["after"])
    rows = [
        f"{results['cpu']}; {results['model']}; medians of {rounds} rounds; `before` is {results['before']}", "",
        "| | | CPU, s | to before | wall, s | peak, MiB | to before |", "|---|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for task, runs in tasks.items():
        for name in runs:
            cpu, wall, peak = (
                medians(results, task, name, each) for each in ("cpu_seconds", "wall_seconds", "peak_mib")
            )
            first = [medians(results, task, "before", each) for each in ("cpu_seconds", "peak_mib")]
            ratios = cpu / first[0], peak / first[1]
            rows.append(
                f"| {task} | {name} | {cpu:.2f} | {ratios[0]:.2f} | {wall:.2f} | {peak:,.0f} | {ratios[1]:.2f} |"
            )
    rows.append("")
    for task, who, whom, figure, most in TARGETS:
        if whom in tasks[task]:
            ratio = medians(results, task, who, figure) / medians(results, task, whom, figure)
            verdict = "kept" if ratio <= most else "MISSED"
            rows.append(f"- {task}: {figure} of {who} / {whom} = {ratio:.3f}, at most {most:.2f}: {verdict}")
    for task, runs in tasks.items():
        same = runs["before"][0]["answer"] == runs["after"][0]["answer"]
        rows.append(f"- {task}: the answer of both commits is {'the same' if same else 'not the same'} to the bit")
    others = max(facts["others"] for runs in tasks.values() for each in runs.values() for facts in each)
    rows.append(f"- other processes used at most {others:.0%} of the CPU during a run")
    rows += [f"- {peer} was left out: {reason}" for peer, reason in results["skipped"].items()]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("setup", help="make the peers' environments")
    make.add_argument("--envs", type=Path, required=True)
    measure = verbs.add_parser("run", help="measure")
    measure.add_argument("--envs", help="folder that setup filled; without it peers are those of this environment")
    measure.add_argument("--before", default=BEFORE, help="commit to compare with [%(default)s]")
    measure.add_argument("--model", help="folder of the model [bge-small-en-v1.5 of the shared data]")
    measure.add_argument("--rounds", type=int, default=7)
    measure.add_argument("--out", default="start.json")
    measure.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "bgekit-benchmark-start"))
    show = verbs.add_parser("table", help="print the result as markdown")
    show.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.verb == "setup":
        setup(args.envs, sorted(PEERS.values()))
    elif args.verb == "run":
        run(args)
    else:
        print(table(json.loads(args.results.read_text())))


if __name__ == "__main__":
    main()
