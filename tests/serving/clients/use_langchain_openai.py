from answers import KEY, NAME, QUERIES, TEXTS, URL, done, note
from langchain_openai import OpenAIEmbeddings


def made(name):
    return OpenAIEmbeddings(model=name, base_url=f"{URL}/v1", api_key=KEY, check_embedding_ctx_length=False)


note("OpenAIEmbeddings(check_embedding_ctx_length=False)", "plain", made(NAME).embed_documents(TEXTS))
note('embed_query with model="NAME:query"', "query", [made(f"{NAME}:query").embed_query(each) for each in QUERIES])
note('embed_documents with model="NAME:document"', "document", made(f"{NAME}:document").embed_documents(TEXTS))
done("langchain-openai")
