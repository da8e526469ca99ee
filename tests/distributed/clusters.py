"""Clusters of Ray with several nodes in this machine, and what is asked of them."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: Bytes of a node's object store.
STORE = 100 << 20
COMMAND = [sys.executable, "-m", "bgekit"]


@contextlib.contextmanager
def nodes(count):
    """A cluster of nodes with a core each, all processes of which are ended afterwards."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        yield cluster
    finally:
        cluster.shutdown()


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def run(*arguments):
    """A verb, to its end; its standard error."""
    process = start(*arguments)
    _, said = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    return said


def start(*arguments):
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.02)


def processes(name):
    """Numbers of the processes that call themselves so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                found.append(int(folder.name))
    return found


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
