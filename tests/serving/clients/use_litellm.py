import litellm
from answers import JUDGE, KEY, NAME, PASSAGES, QUERIES, QUERY, TEXTS, URL, done, lists, note

litellm.telemetry = False


def embedded(model, texts, base=f"{URL}/v1", **options):
    answer = litellm.embedding(model=model, input=texts, api_base=base, api_key=KEY, **options)
    return lists(each["embedding"] for each in answer.data)


def reranked(model, base, **options):
    answer = litellm.rerank(model=model, query=QUERY, documents=PASSAGES, api_base=base, api_key=KEY, **options)
    return [[each["index"], each["relevance_score"]] for each in answer.results]


note('embedding("openai/NAME")', "plain exactly", embedded(f"openai/{NAME}", TEXTS))
note('embedding("openai/NAME:query")', "query", embedded(f"openai/{NAME}:query", QUERIES))
note('embedding("hosted_vllm/NAME")', "plain exactly", embedded(f"hosted_vllm/{NAME}", TEXTS))
note(
    'embedding("huggingface/NAME")',
    "plain",
    embedded(f"huggingface/{NAME}", TEXTS, f"{URL}/{NAME}", input_type="feature-extraction"),
)
note('rerank("hosted_vllm/NAME")', "rerank", reranked(f"hosted_vllm/{JUDGE}", URL))
# It takes the documents of answers for strings, as infinity has them; vLLM's, which it asks for alike, are objects.
found = reranked(f"infinity/{JUDGE}", URL, return_documents=False)
note('rerank("infinity/NAME", return_documents=False)', "rerank", found)
note('rerank("cohere/NAME", top_n=3)', "rerank 3", reranked(f"cohere/{JUDGE}", URL, top_n=3))
note('rerank("jina_ai/NAME")', "rerank", reranked(f"jina_ai/{JUDGE}", f"{URL}/v1/rerank"))
note('rerank("huggingface/NAME")', "rerank", reranked(f"huggingface/{JUDGE}", f"{URL}/{JUDGE}"))
done("litellm")
