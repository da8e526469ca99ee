import cohere
from answers import JUDGE, KEY, NAME, PASSAGES, QUERIES, QUERY, TEXTS, URL, done, lists, note

client = cohere.ClientV2(api_key=KEY, base_url=URL)


def embedded(input_type, texts, **options):
    answer = client.embed(model=NAME, input_type=input_type, texts=texts, embedding_types=["float"], **options)
    return lists(answer.embeddings.float_)


note('ClientV2.embed(input_type="search_query")', "query", embedded("search_query", QUERIES))
note('ClientV2.embed(input_type="search_document")', "document", embedded("search_document", TEXTS))
note('ClientV2.embed(input_type="classification")', "plain exactly", embedded("classification", TEXTS))
answer = client.embed(model=NAME, input_type="clustering", texts=TEXTS, embedding_types=["ubinary", "binary"])
note('ClientV2.embed(embedding_types=["ubinary"])', "ubinary", answer.embeddings.ubinary)
note('ClientV2.embed(embedding_types=["binary"])', "binary", answer.embeddings.binary)
found = client.rerank(model=JUDGE, query=QUERY, documents=PASSAGES, top_n=3)
note("ClientV2.rerank(top_n=3)", "rerank 3", [[each.index, each.relevance_score] for each in found.results])
first = cohere.Client(api_key=KEY, base_url=URL)
found = first.rerank(model=JUDGE, query=QUERY, documents=[{"text": each} for each in PASSAGES], return_documents=True)
note("Client.rerank", "rerank", [[each.index, each.relevance_score] for each in found.results])
note("Client.rerank(return_documents=True)", "texts", [[each.index, each.document.text] for each in found.results])
note("Client.embed", "query", lists(first.embed(model=NAME, texts=QUERIES, input_type="search_query").embeddings))
done("cohere")
