"""How fast texts become vectors: this toolkit, its named peers, and the machine's own limit, in one run.

    python benchmarks/encode.py setup --envs DIR            make an environment for each peer
    python benchmarks/encode.py run --envs DIR --out F.json  measure (interleaved rounds; medians count)
    python benchmarks/encode.py table F.json                 print the result as markdown
    python benchmarks/encode.py plot F.json F.png            draw it

Every peer runs in a process and an environment of its own, one at a time, on the same real texts; the machine's
matrix rate is measured again in every round. `run` needs the project's environment (make dev).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import plot, table

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
ENVIRONMENTS = {
    "FlagEmbedding": "flagembedding",
    "sentence-transformers": "sentence-transformers",
    "sentence-transformers bf16": "sentence-transformers",
    "sentence-transformers ONNX": "onnx",
    "sentence-transformers ONNX int8": "onnx",
    "sentence-transformers OpenVINO": "openvino",
    "sentence-transformers OpenVINO int8": "openvino",
    "fastembed": "fastembed",
}
OURS = ("bgekit", "bgekit fp32")
#: `, batch N` after a name sets the batch size; the other peers run at their defaults.
PEERS = (
    *OURS, *ENVIRONMENTS, "FlagEmbedding, batch 32", "sentence-transformers, batch 8",
    "sentence-transformers bf16, batch 16", "sentence-transformers OpenVINO, batch 4",
    "sentence-transformers OpenVINO int8, batch 8",
)  # fmt: skip
#: Share of the CPU that other processes may use while a peer is timed; above it the turn is taken again.
QUIET, TRIES = 0.05, 3
#: layers, hidden, heads, intermediate of the random model that has bge-base's shape.
BASE = (12, 768, 12, 3072)


class Worker:
    """A peer's process; bgekit's takes the sources of `checkout`, where one is given, instead of those installed."""

    def __init__(self, peer: str, folder: Path, envs: Path | None, checkout: Path | None = None) -> None:
        python, name = sys.executable, peer.partition(", batch ")[0]
        if name in ENVIRONMENTS:
            if envs is None:
                raise SystemExit(f"{peer} needs an environment: pass --envs (made by setup)")
            python = str(envs / ENVIRONMENTS[name] / "bin" / "python")
        self.peer = peer
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), peer, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment_of(checkout),
        )  # fmt: skip
        self.start = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Hand over a request and wait for its answer, which tells how busy other processes were meanwhile."""
        assert self.process.stdin is not None
        busy, total = _cpu_seconds()
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        busy, total = (after - before for after, before in zip(_cpu_seconds(), (busy, total), strict=True))
        return answer | {"others": max(0.0, busy - answer["cpu_seconds"]) / total if total else 0.0}

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"{self.peer} ended with {status}: {self.log.read()[-2000:].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment_of(checkout: Path | None) -> dict[str, str]:
    """Variables of a process that must see no packages of this project but a checkout's, and ask no hub."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    return environment | ({"PYTHONPATH": str(checkout / "src")} if checkout else {})


def setup(envs: Path, names: Sequence[str] = tuple(sorted(set(ENVIRONMENTS.values())))) -> None:
    envs.mkdir(parents=True, exist_ok=True)
    for name in names:
        python = envs / name / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(envs / name)], check=True)
        requirements = (HERE / "requirements" / f"{name}.txt").read_text().split()
        # torch first and alone: together with others an index may offer a build of several gigabytes for it.
        for step in (requirements[:1], requirements):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *step], check=True)
        # optimum-intel asks for torchvision, whose build may not match torch's; texts need none, and it breaks imports.
        subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)


def real_texts(count: int) -> list[str]:
    """MS MARCO passages where shared data is, else the documentation of the Python standard library."""
    corpus = SHARED / "data" / "MSMARCODev600Retrieval" / "corpus.jsonl.gz"
    if corpus.exists():
        with gzip.open(corpus, "rt", encoding="utf-8") as file:
            records = map(json.loads, file)
            texts = [f"{record.get('title', '')} {record['text']}".strip() for record in records]
    else:
        from bgekit.demo import standard_library

        texts = [record.text for record in standard_library()]
    random.Random(0).shuffle(texts)
    return texts[:count]


def mixed_texts(count: int) -> list[str]:
    """Texts of 1 to more than 512 tokens, for the comparison of vectors."""
    texts = real_texts(count)
    pick = random.Random(1)
    longer = [" ".join(pick.sample(texts, 8)) for _ in range(count // 10)]
    shorter = [" ".join(text.split()[: pick.randint(1, 6)]) for text in texts[: count // 10]]
    return (longer + shorter + texts)[:count]


def model_folder(size: str, work: Path) -> Path:
    """The real bge-small-en-v1.5, or a random model of bge-base's shape with the same tokenizer."""
    source = SHARED / "models" / "bge-small-en-v1.5"
    if not source.is_dir():
        raise SystemExit(f"needs the weights in {source}")
    folder = work / f"bge-{size}"
    if (folder / "config.json").exists():
        return folder
    subprocess.run(["cp", "-rL", str(source), str(folder)], check=True)
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    if size == "base":
        import torch
        from transformers import BertConfig, BertModel

        layers, hidden, heads, intermediate = BASE
        torch.manual_seed(0)
        (folder / "model.safetensors").unlink()
        config = BertConfig.from_pretrained(
            source, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=intermediate,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "word_embedding_dimension": hidden}))
    return folder


def write_texts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def count_tokens(folder: Path, texts: list[str]) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sum(map(len, tokenizer(texts, truncation=True, max_length=512)["input_ids"]))


def linear_flops(folder: Path) -> int:
    """FLOPs a token in the linear layers of the transformer, which is all that is counted as useful."""
    config = json.loads((folder / "config.json").read_text())
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    return int(2 * config["num_hidden_layers"] * (4 * hidden * hidden + 2 * hidden * intermediate))


def run(args: argparse.Namespace) -> None:
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"cpu": _cpu(), "python": platform.python_version(), "models": {}}
    for size in args.models:
        results["models"][size] = run_model(size, work, args)
        Path(args.out).write_text(json.dumps(results, indent=1))
    if args.growth:
        results["growth"] = run_growth(model_folder("small", work), work, args.growth)
        Path(args.out).write_text(json.dumps(results, indent=1))


def run_model(size: str, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    folder = model_folder(size, work)
    texts = real_texts(args.texts if size == "small" else args.texts // 3)
    tokens = count_tokens(folder, texts)
    calibration = work / "calibration" / "train.jsonl"
    calibration.parent.mkdir(exist_ok=True)
    calibration.write_text("".join(json.dumps({"text": text}) + "\n" for text in real_texts(10_000)[-300:]))
    files = {
        "warm": write_texts(work / "warm.jsonl", texts[:64]),
        "timed": write_texts(work / f"{size}.jsonl", texts),
        "compared": write_texts(work / "compared.jsonl", mixed_texts(args.compare)),
        "single": write_texts(work / "single.jsonl", [" ".join(text.split()[:8]) for text in texts[:60]]),
    }
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    peers: dict[str, dict[str, Any]] = {peer: {"seconds": [], "latency_ms": [], "starts": []} for peer in args.peers}
    reference = _reference(folder, files["compared"], work)
    for peer in args.peers:  # untimed: export what a peer needs, and read its files into memory once
        _measure(peer, folder, args.envs, files, peers[peer], work, reference)
    for number in range(args.rounds):
        machine = Worker("limit", folder, None)
        for dtype, rate in _quietest(machine, files["single"])["rates"].items():
            rates[dtype].append(rate)
        machine.close()
        for peer in args.peers:
            if "error" not in peers[peer]:
                _measure(peer, folder, args.envs, files, peers[peer], work)
            if "error" not in peers[peer]:
                speed = tokens / peers[peer]["seconds"][-1]
                print(f"{size}, round {number + 1}, {peer}: {speed:,.0f} tokens/s", flush=True)
    return {
        "texts": len(texts), "tokens": tokens, "flops_per_token": linear_flops(folder), "rates": rates, "peers": peers
    }  # fmt: skip


def _measure(
    peer: str, folder: Path, envs: Path | None, files: dict[str, str], facts: dict[str, Any], work: Path,
    reference: Any = None,
) -> None:  # fmt: skip
    """One peer's turn. With a reference only the vectors are compared and nothing is timed."""
    worker = None
    try:
        worker = Worker(peer, folder, envs)
        if reference is not None:
            worker.ask(texts=files["compared"], save=str(work / "vectors.npy"))
            facts["worst_cosine"] = _worst_cosine(work / "vectors.npy", reference)
            return
        worker.ask(texts=files["warm"])
        timed = _quietest(worker, files["timed"])
        single = worker.ask(texts=files["single"], single=True)["seconds"]
    except RuntimeError as error:
        facts["error"] = str(error)
        print(error, file=sys.stderr)
        return
    finally:
        if worker is not None:
            worker.close()
    facts["seconds"] += timed["seconds"]
    facts["starts"].append(worker.start)
    facts["latency_ms"] += [1000 * seconds for seconds in single[10:]]
    facts["others"] = max(timed["others"], facts.get("others", 0))
    facts["peak_mib"] = max(timed["peak_mib"], facts.get("peak_mib", 0))


def _quietest(worker: Worker, texts: str) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    while not turns or (turns[-1]["others"] > QUIET and len(turns) < TRIES):
        turns.append(worker.ask(texts=texts))
    return min(turns, key=lambda turn: float(turn["others"]))


def _reference(folder: Path, texts: str, work: Path) -> Any:
    import numpy as np

    worker = Worker("reference", folder, None)
    worker.ask(texts=texts, save=str(work / "reference.npy"))
    worker.close()
    return np.load(work / "reference.npy")


def _worst_cosine(path: Path, reference: Any) -> float:
    import numpy as np

    vectors = np.load(path).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return float((vectors * reference).sum(1).min())


def run_growth(folder: Path, work: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Encode growing corpora to a memmap: tokens/s should stay flat, and so should memory."""
    # Short ones, so that a hundred thousand take minutes.
    base = [" ".join(text.split()[:24]) for text in real_texts(10_000)]
    rows = []
    for size in sizes:
        code = (
            "import json,sys,threading,time,numpy as np\n"
            "from bgekit import FlagModel\n"
            "base=[json.loads(l) for l in open(sys.argv[2])]; n=int(sys.argv[3])\n"
            "model=FlagModel(sys.argv[1]); model.encode(base[:64])\n"
            "out=np.lib.format.open_memmap(sys.argv[4],mode='w+',dtype='float32',shape=(n,model.dimension))\n"
            # Without the pages of the output file, which the system keeps as long as it has room for them.
            "own=lambda: next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith('RssAnon'))\n"
            "seen=[]; done=threading.Event()\n"
            "def watch():\n"
            "    while not done.wait(0.5): seen.append(own())\n"
            "threading.Thread(target=watch,daemon=True).start()\n"
            "start=time.perf_counter()\n"
            "texts=(f'{i//len(base)} {base[i%len(base)]}' for i in range(n))\n"
            "model.encode(texts,out=out)\n"
            "seconds=time.perf_counter()-start; done.set()\n"
            "half=len(seen)//2\n"
            "print(json.dumps([seconds,max(seen),max(seen[:half]),max(seen[half:])]))\n"
        )
        path = write_texts(work / "growth.jsonl", base)
        tokens = count_tokens(folder, base) * size / len(base)
        command = [sys.executable, "-c", code, str(folder), path, str(size), str(work / "growth.npy")]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, peak, first, second = json.loads(output)
        rows.append(
            {
                "texts": size,
                "tokens_per_second": tokens / seconds,
                "peak_mib": peak,
                "first_half_peak_mib": first,
                "second_half_peak_mib": second,
            }
        )
        print(rows[-1], flush=True)
    return rows


def _cpu_seconds() -> tuple[float, float]:
    """Seconds that all CPUs together were busy, and seconds they had, since boot; zeros where it cannot be known."""
    if not Path("/proc/stat").exists():
        return 0.0, 0.0
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, rate = ticks[3] + ticks[4], os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / rate, sum(ticks) / rate


def _cpu() -> str:
    """Name, cores and kind: with AMX, AVX512-BF16, or neither."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    kinds = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
    kind = next((kind for flag, kind in kinds.items() if flag in flags), "no bf16")
    return f"{name}, {sum(line.startswith('processor') for line in lines) or '?'} cores, {kind}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("setup", help="make the peers' environments")
    make.add_argument("--envs", type=Path, required=True)
    measure = verbs.add_parser("run", help="measure")
    measure.add_argument("--envs", type=Path, help="folder that setup filled; not needed for bgekit alone")
    measure.add_argument("--out", default="encode.json")
    measure.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "bgekit-benchmark"))
    measure.add_argument("--models", nargs="*", choices=["small", "base"], default=["small", "base"])
    measure.add_argument("--peers", nargs="+", default=list(PEERS))
    measure.add_argument("--rounds", type=int, default=3)
    measure.add_argument("--texts", type=int, default=600, help="texts for small; base gets a third")
    measure.add_argument("--compare", type=int, default=300, help="texts whose vectors are compared")
    measure.add_argument("--growth", type=int, nargs="*", default=[], help="corpus sizes, such as 1000 10000 100000")
    for verb in ("table", "plot"):
        show = verbs.add_parser(verb)
        show.add_argument("results", type=Path)
        if verb == "plot":
            show.add_argument("image")
    args = parser.parse_args()
    if args.verb == "setup":
        setup(args.envs)
    elif args.verb == "run":
        run(args)
    elif args.verb == "table":
        print(table(json.loads(args.results.read_text())))
    else:
        plot(json.loads(args.results.read_text()), args.image)


if __name__ == "__main__":
    main()
