"""One peer of the encode benchmark: loads a model in its own environment and answers requests as JSON lines.

Started by encode.py as `python worker.py PEER MODEL_FOLDER`; a peer's name may end in `, batch N`. Needs nothing but
the peer itself. The first answer says how long importing and loading took, each further one belongs to a request.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

Encode = Callable[..., Any]


def bgekit(folder: str, **options: Any) -> Encode:
    from bgekit import FlagModel

    return FlagModel(folder, **options).encode


def bgekit_reranker(folder: str) -> Encode:
    """Scores of texts, each paired with the next one."""
    from bgekit import FlagReranker

    model = FlagReranker(folder)
    return lambda texts: model.compute_score(list(zip(texts, texts[1:] + texts[:1], strict=True)))


def m3_outputs(package: str, folder: str, wanted: str, **options: Any) -> Encode:
    """BGE-M3 by either package: all outputs of texts, dense vectors alone, or scores of texts as pairs.

    A query is the first eight words of the text before its passage.
    """
    model = importlib.import_module(package).BGEM3FlagModel(folder, devices="cpu", **options)
    if wanted == "pairs":
        return lambda texts: model.compute_score(
            [(" ".join(query.split()[:8]), text) for query, text in zip(texts[1:] + texts[:1], texts, strict=True)]
        )
    more = {"return_sparse": True, "return_colbert_vecs": True} if wanted == "all" else {}
    return lambda texts: model.encode(texts, max_length=2048, return_dense=True, **more)


def flagembedding(folder: str, **options: Any) -> Encode:
    """Its default asks for fp16, which it drops on CPUs; instructions are off, so that all encode the same tokens."""
    from FlagEmbedding import FlagModel

    return FlagModel(folder, query_instruction_for_retrieval=None, devices="cpu", **options).encode


def sentence_transformers(folder: str, batch_size: int = 32, **options: Any) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", **options)
    return lambda texts: model.encode(texts, batch_size=batch_size, show_progress_bar=False)


def sentence_transformers_bf16(folder: str, **options: Any) -> Encode:
    """As users do it, with bf16 weights; its result is converted by NumPy, which has no bf16, through float32."""
    import torch

    return sentence_transformers(folder, model_kwargs={"dtype": torch.bfloat16}, **options)


def exported(folder: str, backend: str, file: str | None = None, **options: Any) -> Encode:
    """sentence-transformers on another runtime, from files exported once beside the model's folder.

    Beside it and not into it, because what one version saves others may not read.
    """
    export(folder, backend)
    file = file or {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}[backend]
    return sentence_transformers(f"{folder}-{backend}", backend=backend, model_kwargs={"file_name": file}, **options)


def export(folder: str, backend: str) -> Any:
    from sentence_transformers import SentenceTransformer

    if not Path(f"{folder}-{backend}").is_dir():
        SentenceTransformer(folder, device="cpu", backend=backend).save_pretrained(f"{folder}-{backend}")


def onnx_int8(folder: str, **options: Any) -> Encode:
    """Dynamic quantisation, the recipe of sentence-transformers' documentation for this kind of CPU."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    export(folder, "onnx")
    file = "onnx/model_qint8_avx512_vnni.onnx"
    if not Path(f"{folder}-onnx", file).is_file():
        model = SentenceTransformer(f"{folder}-onnx", device="cpu", backend="onnx")
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", f"{folder}-onnx")
    return exported(folder, "onnx", file, **options)


def openvino_int8(folder: str, **options: Any) -> Encode:
    """Static quantisation, the recipe of sentence-transformers' documentation, calibrated on the driver's texts."""
    from sentence_transformers import SentenceTransformer, export_static_quantized_openvino_model

    export(folder, "openvino")
    file = "openvino/openvino_model_qint8_quantized.xml"
    if not Path(f"{folder}-openvino", file).is_file():
        model = SentenceTransformer(f"{folder}-openvino", device="cpu", backend="openvino")
        calibration = str(Path(folder).parent / "calibration")
        export_static_quantized_openvino_model(
            model, None, f"{folder}-openvino", calibration, "default", "train", "text"
        )  # fmt: skip
    return exported(folder, "openvino", file, **options)


def fastembed(folder: str, batch_size: int = 256) -> Encode:
    """Reads the file that the ONNX peer exported: its own download needs a hub."""
    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    width = json.loads(Path(folder, "config.json").read_text())["hidden_size"]
    TextEmbedding.add_custom_model(
        model="local/model", pooling=PoolingType.CLS, normalization=True, dim=width,
        sources=ModelSource(hf="local/model"), model_file="onnx/model.onnx",
    )  # fmt: skip
    model = TextEmbedding("local/model", specific_model_path=f"{folder}-onnx")
    return lambda texts: np.stack(list(model.embed(texts, batch_size=batch_size)))


def reference(folder: str) -> Encode:
    """Plain transformers in float32, one text at a time: what vectors are compared with."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)

    def encode(texts: list[str]) -> Any:
        with torch.inference_mode():
            rows = [
                model(**tokenizer(text, truncation=True, max_length=512, return_tensors="pt")).last_hidden_state[0, 0]
                for text in texts
            ]
            return torch.nn.functional.normalize(torch.stack(rows), dim=-1).numpy().astype(np.float32)

    return encode


def limit(folder: str) -> Encode:
    """The machine's matrix rate: hidden x intermediate at 4,096 rows; returns FLOP/s by dtype instead of vectors."""
    import torch

    config = json.loads(Path(folder, "config.json").read_text())

    def measure(dtype: Any) -> float:
        layer = torch.nn.Linear(config["hidden_size"], config["intermediate_size"]).to(dtype).eval()
        rows = torch.randn(4096, config["hidden_size"]).to(dtype)
        times = []
        with torch.inference_mode():
            for _ in range(45):
                start = time.perf_counter()
                layer(rows)
                times.append(time.perf_counter() - start)
        return 2 * 4096 * config["hidden_size"] * config["intermediate_size"] / sorted(times[5:])[20]

    return lambda texts: {"float32": measure(torch.float32), "bfloat16": measure(torch.bfloat16)}


#: What each peer imports, and how it loads a model.
PEERS: dict[str, tuple[str, Callable[..., Encode]]] = {
    "bgekit": ("bgekit", bgekit),
    "bgekit fp32": ("bgekit", lambda folder, **options: bgekit(folder, use_fp16=False, **options)),
    "bgekit int8": ("bgekit", lambda folder, **options: bgekit(folder, dtype="int8", **options)),
    "bgekit reranker": ("bgekit", bgekit_reranker),
    "FlagEmbedding": ("FlagEmbedding", flagembedding),
    "sentence-transformers": ("sentence_transformers", sentence_transformers),
    "sentence-transformers bf16": ("sentence_transformers", sentence_transformers_bf16),
    "sentence-transformers ONNX": (
        "sentence_transformers", lambda folder, **options: exported(folder, "onnx", **options)
    ),
    "sentence-transformers ONNX int8": ("sentence_transformers", onnx_int8),
    "sentence-transformers OpenVINO": (
        "sentence_transformers", lambda folder, **options: exported(folder, "openvino", **options)
    ),
    "sentence-transformers OpenVINO int8": ("sentence_transformers", openvino_int8),
    "fastembed": ("fastembed", fastembed),
    **{
        f"{package} m3 {wanted}": (package, partial(m3_outputs, package, wanted=wanted))
        for package in ("bgekit", "FlagEmbedding") for wanted in ("all", "dense", "pairs")
    },
    "reference": ("transformers", reference),
    "limit": ("torch", limit),
}  # fmt: skip


def status_mib(field: str) -> float:
    """A field of /proc/self/status in MiB, such as VmHWM, the most that was resident.

    `ru_maxrss` will not do: a new process begins with that of the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class OwnPages:
    """The most memory that the process has of its own (Linux): without the pages of files, which it shares.

    Args:
        every: Seconds between looks.

    Attributes:
        peak_mib: The most.
    """

    def __init__(self, every: float = 0.02) -> None:
        self.peak_mib, self._before, self._every, self._done = 0.0, 0.0, every, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def peak_mb(self) -> float:
        """The most, in 10^6 bytes."""
        return self.peak_mib * 2**20 / 1e6

    @property
    def grown_mb(self) -> float:
        """What the most is above what the process had when the watch began, in 10^6 bytes."""
        return self.peak_mb - self._before * 2**20 / 1e6

    def __enter__(self) -> OwnPages:
        self.peak_mib = self._before = status_mib("RssAnon")
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, status_mib("RssAnon"))
            if self._done.wait(self._every):
                return


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    peer, folder = sys.argv[1:3]
    name, _, batch = peer.partition(", batch ")
    module, load = PEERS[name]

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    start = time.perf_counter()
    importlib.import_module(module)
    imported = time.perf_counter()
    encode = load(folder, **({"batch_size": int(batch)} if batch else {}))
    answer(import_seconds=imported - start, load_seconds=time.perf_counter() - imported)
    for line in sys.stdin:
        request = json.loads(line)
        texts = [json.loads(text) for text in Path(request["texts"]).read_text(encoding="utf-8").splitlines()]
        seconds, result, cpu = [], None, _cpu_seconds()
        with OwnPages() if request.get("own") else nullcontext() as pages:
            for call in texts if request.get("single") else [texts]:
                start = time.perf_counter()
                result = encode(call)
                seconds.append(time.perf_counter() - start)
        if request.get("save"):
            import numpy as np

            np.save(request["save"], np.asarray(result, dtype=np.float32))
        answer(
            seconds=seconds, peak_mib=status_mib("VmHWM"), cpu_seconds=_cpu_seconds() - cpu,
            rates=result if name == "limit" else None, own_mib=None if pages is None else pages.peak_mib,
        )  # fmt: skip


if __name__ == "__main__":
    main()
