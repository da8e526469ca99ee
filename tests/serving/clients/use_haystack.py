import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["OPENAI_API_KEY"] = ""
from answers import JUDGE, KEY, NAME, PASSAGES, QUERIES, QUERY, TEXTS, URL, done, note
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

key = Secret.from_token(KEY)
documents = [Document(content=each) for each in TEXTS]
embedder = OpenAIDocumentEmbedder(model=f"{NAME}:document", api_base_url=f"{URL}/v1", api_key=key, progress_bar=False)
note("OpenAIDocumentEmbedder", "document", [each.embedding for each in embedder.run(documents)["documents"]])
embedder = OpenAITextEmbedder(model=f"{NAME}:query", api_base_url=f"{URL}/v1", api_key=key)
note("OpenAITextEmbedder", "query", [embedder.run(each)["embedding"] for each in QUERIES])


def tei(kind, name, **options):
    return kind(api_type="text_embeddings_inference", api_params={"url": f"{URL}/{name}"}, token=key, **options)


embedder = tei(HuggingFaceAPIDocumentEmbedder, NAME, normalize=True, progress_bar=False)
note(
    "HuggingFaceAPIDocumentEmbedder(normalize=True)",
    "plain",
    [each.embedding for each in embedder.run(documents)["documents"]],
)
embedder = tei(HuggingFaceAPIDocumentEmbedder, NAME, progress_bar=False)
note(
    "HuggingFaceAPIDocumentEmbedder", "unnormalised", [each.embedding for each in embedder.run(documents)["documents"]]
)
embedder = tei(HuggingFaceAPITextEmbedder, f"{NAME}:query", normalize=True)
note("HuggingFaceAPITextEmbedder at /NAME:query", "query", [embedder.run(each)["embedding"] for each in QUERIES])
ranker = HuggingFaceTEIRanker(url=f"{URL}/{JUDGE}", token=key, top_k=len(PASSAGES))
found = ranker.run(
    query=QUERY, documents=[Document(id=str(place), content=each) for place, each in enumerate(PASSAGES)]
)
note("HuggingFaceTEIRanker", "rerank", [[int(each.id), each.score] for each in found["documents"]])
done("haystack-ai", "huggingface-api-haystack")
