import sys

from answers import GIVEN, KEY, NAME, QUERIES, TEXTS, URL, done, note
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

openai = OpenAIEmbedding(model_name=NAME, api_base=f"{URL}/v1", api_key=KEY)
note("OpenAIEmbedding(model_name=)", "plain", openai.get_text_embedding_batch(TEXTS))
openai = OpenAIEmbedding(model_name=f"{NAME}:query", api_base=f"{URL}/v1", api_key=KEY)
note('OpenAIEmbedding(model_name="NAME:query")', "query", [openai.get_query_embedding(each) for each in QUERIES])


def tei(name):
    return TextEmbeddingsInference(model_name=f"BAAI/{NAME}", base_url=f"{URL}/{name}", auth_token=KEY)


note("TextEmbeddingsInference", "plain", tei(NAME).get_text_embedding_batch(TEXTS))
# It puts its own spelling of the instruction before queries.
note(
    "TextEmbeddingsInference at /NAME:query",
    "query",
    [tei(f"{NAME}:query").get_query_embedding(each) for each in QUERIES],
)
# Its own packages first, then bgekit with what it needs.
sys.path.extend(GIVEN["paths"])
from bgekit.integrations.llama_index import BgeEmbedding  # noqa: E402

own = BgeEmbedding(f"{URL}/{NAME}", api_key=KEY)
note("bgekit's BgeEmbedding, documents", "document", own.get_text_embedding_batch(TEXTS))
note("bgekit's BgeEmbedding, queries", "query", [own.get_query_embedding(each) for each in QUERIES])
done("llama-index-core", "llama-index-embeddings-openai", "llama-index-embeddings-text-embeddings-inference")
