"""The service of 30 lines that people write around sentence-transformers: what `serve.py` compares with."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(sys.argv[1], device="cpu")


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


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
