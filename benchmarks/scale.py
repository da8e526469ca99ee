"""More than one machine, and more than fits into memory: what a cluster costs, and that rates and memory stay flat.

    python benchmarks/scale.py ray FILE --model M        two nodes of Ray in this machine against two plain processes
    python benchmarks/scale.py flat --texts N --model M  one `bge encode` of many short texts: rate and memory
    python benchmarks/scale.py driver                    memory of the process that plans up to 100,000 shards

`ray` leaves out the start of the cluster and of the processes, and the loading of models. `driver` computes nothing:
its shards are simulated, of one text each with facts that are made up; what plans, compares and commits is real.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from worker import status_mib

SHARED = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    ray = verbs.add_parser("ray")
    ray.add_argument("file")
    ray.add_argument("--model", required=True)
    ray.add_argument("--rounds", type=int, default=3)
    # Many more shards than nodes, as there are in practice: with three, one of two nodes has two of them.
    ray.add_argument("--shard-size", type=int, default=64)
    flat = verbs.add_parser("flat")
    flat.add_argument("--texts", type=int, default=100_000)
    flat.add_argument("--model", required=True)
    driver = verbs.add_parser("driver")
    driver.add_argument("--shards", type=int)
    part = verbs.add_parser("part")
    part.add_argument("file")
    part.add_argument("output")
    part.add_argument("--shard-size", type=int)
    part.add_argument("--model", required=True)
    args = parser.parse_args()
    {"ray": run_ray, "flat": run_flat, "driver": run_driver, "part": run_part}[args.verb](args)


def run_ray(args: argparse.Namespace) -> None:
    from ray.cluster_utils import Cluster

    from bgekit.data import read_records
    from bgekit.display import EncodeProgress
    from bgekit.distributed import ModelRecipe, RayCluster, encode_on_cluster

    class Clock(EncodeProgress):
        """Notes when two nodes are ready, and what was done before."""

        ready, before = 0.0, 0

        def note(self, text: str) -> None:
            if text.endswith("2 nodes"):
                self.ready, self.before = time.perf_counter(), self._texts

    lines = Path(args.file).read_bytes().splitlines(keepends=True)
    # In turn, so that both halves are alike.
    halves = [lines[0::2], lines[1::2]]
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": 200 << 20, "include_dashboard": False},
        )
        cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
        try:
            for number in range(args.rounds):
                plain = plain_rate(halves, args.model, args.shard_size, Path(folder) / f"plain{number}")
                with RayCluster(cluster.address) as connected:
                    clock = Clock(None, show=False)
                    report = encode_on_cluster(
                        connected, ModelRecipe(args.model), read_records(args.file), Path(folder) / f"ray{number}",
                        progress=clock, shard_size=args.shard_size,
                    )  # fmt: skip
                    rate = (report.texts - clock.before) / (time.perf_counter() - clock.ready)
                print(
                    f"two plain processes {plain:,.0f} texts/s, two nodes {rate:,.0f} texts/s: "
                    f"{plain / rate - 1:+.1%} time", flush=True,
                )  # fmt: skip
        finally:
            cluster.shutdown()


def plain_rate(halves: list[list[bytes]], model: str, shard_size: int, folder: Path) -> float:
    """Texts per second of two processes with a thread each, from when both have loaded the model."""
    folder.mkdir()
    processes = []
    for number, half in enumerate(halves):
        file = folder / f"{number}.jsonl"
        file.write_bytes(b"".join(half))
        command = [sys.executable, __file__, "part", str(file), str(folder / f"out{number}"), "--model", model]
        command += ["--shard-size", str(shard_size)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    start = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.wait()
    return sum(map(len, halves)) / (time.perf_counter() - start)


def run_part(args: argparse.Namespace) -> None:
    from bgekit import FlagModel
    from bgekit.data import read_records
    from bgekit.inference import encode_to_shards

    with FlagModel(args.model) as model:
        model.encode(["warm"])
        print("ready", flush=True)
        sys.stdin.readline()
        encode_to_shards(model, read_records(args.file), args.output, shard_size=args.shard_size)
        os._exit(0)  # What an interpreter takes to end is none of it.


def run_flat(args: argparse.Namespace) -> None:
    import psutil

    from bgekit.data import read_records

    titles = [record.text for record in read_records(SHARED / "data" / "TNewsResplit" / "train.jsonl")]
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "short.jsonl", Path(folder) / "out"
        with file.open("w", encoding="utf-8") as texts:
            for number in range(args.texts):
                title = titles[number % len(titles)]
                # No two are the same: each round through the titles adds its number.
                texts.write(json.dumps({"id": str(number), "text": f"{title} {number // len(titles) or ''}".strip()}))
                texts.write("\n")
        command = [sys.executable, "-m", "bgekit", "encode", file, "-o", out, "--model", args.model, "--no-progress"]
        process = subprocess.Popen(list(map(str, command)))
        watched, marks = psutil.Process(process.pid), list[tuple[float, int, float, float]]()
        while process.poll() is None:
            time.sleep(1.0)
            try:
                memory, used = watched.memory_info().rss / 1e6, sum(watched.cpu_times()[:2])
            except psutil.NoSuchProcess:
                break
            marks.append((time.time(), len(list(out.glob("*.npy"))) if out.exists() else 0, memory, used))
        manifest = json.loads((out / "manifest.json").read_bytes())
        tokens, step = [shard["tokens"] for shard in manifest["shards"]], max(1, len(manifest["shards"]) // 10)
        for first in range(0, len(tokens) - step + 1, step):
            during = [mark for mark in marks if first < mark[1] <= first + step]
            if len(during) > 1:
                seconds, used = during[-1][0] - during[0][0], during[-1][3] - during[0][3]
                encoded = sum(tokens[during[0][1] : during[-1][1]])
                # The rate by CPU time says the same where other programs take part of the machine.
                print(
                    f"texts {first * 1024:,} to {(first + step) * 1024:,}: {encoded / seconds:,.0f} tokens/s, "
                    f"{encoded / used:,.0f} a second of CPU, {max(mark[2] for mark in during):,.0f} MB", flush=True,
                )  # fmt: skip


def run_driver(args: argparse.Namespace) -> None:
    if args.shards is None:
        for count in (1_000, 10_000, 100_000):
            subprocess.run([sys.executable, __file__, "driver", "--shards", str(count)], check=True)
        return
    from bgekit.data import Record
    from bgekit.files import OutputFolder
    from bgekit.inference.shard_stores import LocalShards
    from bgekit.inference.shards import ShardPlanner, ShardRun

    def records() -> object:
        return (Record(str(number), f"text number {number}") for number in range(args.shards))

    card = {"name": "simulated"}
    manifest = {
        "format": "bgekit shards", "version": 1, "complete": False, "model_card": card, "model_fingerprint": "0" * 64,
        "precision": "float32", "settings": {"shard_size": 1},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, OutputFolder(folder) as output:
        start = time.perf_counter()
        run, planner = ShardRun(LocalShards(output), manifest), ShardPlanner(records(), 1)  # type: ignore[arg-type]
        run.begin(resume=True, overwrite=False)
        for shard in run.missing(planner):
            facts = {
                "first": shard.plan.first, "texts": 1, "tokens": 5, "truncated": [], "repaired": [],
                "input_sha256": shard.plan.input_sha256, "vectors_sha256": "1" * 64, "ids_sha256": "2" * 64,
            }  # fmt: skip
            run.done(shard.plan, facts)
        run.finish(planner)
        seconds = time.perf_counter() - start
        size = (Path(folder) / "manifest.json").stat().st_size
    peak = status_mib("VmHWM")
    print(f"{args.shards:,} shards: {peak:,.0f} MiB, {args.shards / seconds:,.0f} shards/s, manifest {size:,} bytes")


if __name__ == "__main__":
    main()
