from answers import KEY, NAME, QUERIES, TEXTS, URL, done, lists, note
from huggingface_hub import InferenceClient

client = InferenceClient(model=f"{URL}/{NAME}", token=KEY)
note("feature_extraction", "plain", lists(client.feature_extraction(TEXTS)))
note("feature_extraction(str)", "first", lists(client.feature_extraction(TEXTS[0])))
note('feature_extraction(prompt_name="query")', "query", lists(client.feature_extraction(QUERIES, prompt_name="query")))
note(
    "feature_extraction(normalize=False)",
    "unnormalised",
    lists(client.feature_extraction(TEXTS, normalize=False, truncate=True, truncation_direction="right")),
)
query = InferenceClient(model=f"{URL}/{NAME}:query", token=KEY)
note("feature_extraction at /NAME:query", "query", lists(query.feature_extraction(QUERIES)))
note("sentence_similarity", "similarity", client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:]))
inference = InferenceClient(model=f"{URL}/{NAME}", token=KEY, provider="hf-inference")
note("get_endpoint_info", "names", [inference.get_endpoint_info()["served_model_name"]])
assert inference.health_check()
done("huggingface_hub")
