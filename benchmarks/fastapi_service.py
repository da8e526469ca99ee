"""The service of 30 lines that people write around sentence-transformers: what `serve.py` compares with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder, SentenceTransformer

app = FastAPI()
architecture = json.loads(Path(sys.argv[1], "config.json").read_text())["architectures"][0]
judges = architecture.endswith("ForSequenceClassification")
model = (CrossEncoder if judges else SentenceTransformer)(sys.argv[1], device="cpu")


class Embeddings(BaseModel):
    """A request of OpenAI's shape."""

    input: str | list[str]
    model: str = ""


@app.post("/v1/embeddings")
def embeddings(body: Embeddings) -> dict[str, object]:
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors = model.encode(texts, normalize_embeddings=True)
    data = [{"object": "embedding", "index": row, "embedding": each.tolist()} for row, each in enumerate(vectors)]
    return {"object": "list", "data": data, "model": body.model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


class Rerank(BaseModel):
    """A request of Cohere's shape."""

    query: str
    documents: list[str]


@app.post("/v1/rerank")
def rerank(body: Rerank) -> dict[str, object]:
    scores = model.predict([(body.query, each) for each in body.documents])
    ranked = sorted(enumerate(scores.tolist()), key=lambda each: -each[1])
    return {"results": [{"index": place, "relevance_score": score} for place, score in ranked]}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
