"""One peer of the encode benchmark: loads a model in its own environment and answers requests as JSON lines.

Started by encode.py as `python worker.py PEER MODEL_FOLDER`. Needs nothing but the peer itself.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], Any]


def bgekit(folder: str, **options: Any) -> Encode:
    from bgekit import FlagModel

    return FlagModel(folder, **options).encode


def flagembedding(folder: str) -> Encode:
    from FlagEmbedding import FlagModel

    return FlagModel(folder, query_instruction_for_retrieval=None, devices="cpu").encode


def sentence_transformers(folder: str, batch_size: int = 32, **options: Any) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", **options)
    return lambda texts: model.encode(texts, batch_size=batch_size, show_progress_bar=False)


def sentence_transformers_bf16(folder: str, batch_size: int = 32) -> Encode:
    import numpy as np
    import torch

    encode = sentence_transformers(folder, batch_size, model_kwargs={"dtype": torch.bfloat16})
    return lambda texts: np.asarray(encode(texts), dtype=np.float32)


def onnx_int8(folder: str) -> Encode:
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    file = "onnx/model_qint8_avx512_vnni.onnx"
    if not (Path(folder) / file).is_file():
        model = SentenceTransformer(folder, device="cpu", backend="onnx")
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", folder)
    return sentence_transformers(folder, backend="onnx", model_kwargs={"file_name": file})


def openvino_bf16(folder: str) -> Encode:
    config = {"INFERENCE_PRECISION_HINT": "bf16"}
    return sentence_transformers(folder, backend="openvino", model_kwargs={"ov_config": config})


def fastembed(folder: str) -> Encode:
    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    width = json.loads((Path(folder) / "config.json").read_text())["hidden_size"]
    TextEmbedding.add_custom_model(
        model="local/model", pooling=PoolingType.CLS, normalization=True, dim=width,
        sources=ModelSource(hf="local/model"), model_file="onnx/model.onnx",
    )  # fmt: skip
    model = TextEmbedding("local/model", specific_model_path=folder)
    return lambda texts: np.stack(list(model.embed(texts)))


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

    config = json.loads((Path(folder) / "config.json").read_text())

    def measure(dtype: Any) -> float:
        layer = torch.nn.Linear(config["hidden_size"], config["intermediate_size"]).to(dtype).eval()
        rows = torch.randn(4096, config["hidden_size"]).to(dtype)
        times = []
        with torch.inference_mode():
            for _ in range(25):
                start = time.perf_counter()
                layer(rows)
                times.append(time.perf_counter() - start)
        return 2 * 4096 * config["hidden_size"] * config["intermediate_size"] / sorted(times[5:])[10]

    return lambda texts: {"float32": measure(torch.float32), "bfloat16": measure(torch.bfloat16)}


PEERS: dict[str, Callable[[str], Encode]] = {
    "bgekit": bgekit,
    "bgekit fp32": lambda folder: bgekit(folder, use_fp16=False),
    "bgekit int8": lambda folder: bgekit(folder, dtype="int8"),
    "FlagEmbedding": flagembedding,
    "sentence-transformers": sentence_transformers,
    "sentence-transformers bf16": sentence_transformers_bf16,
    "sentence-transformers bf16, batch 8": lambda folder: sentence_transformers_bf16(folder, 8),
    "sentence-transformers ONNX": lambda folder: sentence_transformers(folder, backend="onnx"),
    "sentence-transformers ONNX int8": onnx_int8,
    "sentence-transformers OpenVINO": lambda folder: sentence_transformers(folder, backend="openvino"),
    "sentence-transformers OpenVINO bf16": openvino_bf16,
    "fastembed": fastembed,
    "reference": reference,
    "limit": limit,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    peer, folder = sys.argv[1:3]

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    start = time.perf_counter()
    encode = PEERS[peer](folder)
    answer(load_seconds=time.perf_counter() - start)
    for line in sys.stdin:
        request = json.loads(line)
        texts = [json.loads(text) for text in Path(request["texts"]).read_text(encoding="utf-8").splitlines()]
        times = []
        for _ in range(request.get("repeat", 1)):
            start = time.perf_counter()
            result = encode(texts[0] if request.get("single") and peer != "fastembed" else texts)
            times.append(time.perf_counter() - start)
        if request.get("save"):
            import numpy as np

            np.save(request["save"], np.asarray(result, dtype=np.float32))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer(seconds=times, peak_mib=peak, rates=result if peer == "limit" else None)


if __name__ == "__main__":
    main()
