"""A LangChain retriever on bgekit's encoder: python langchain_retriever.py [MODEL].

Needs the extra: pip install 'bgekit[langchain]'. Any vector store of LangChain takes `embeddings` in the same way.
"""

import sys

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from bgekit.integrations.langchain import BgeEmbeddings

MODEL = sys.argv[1] if len(sys.argv) > 1 else "BAAI/bge-small-en-v1.5"

DOCUMENTS = [
    Document("The cat sleeps on the sofa all day.", metadata={"source": "animals.txt"}),
    Document("A compiler turns source code into machine code.", metadata={"source": "computers.txt"}),
    Document("Granite is an igneous rock.", metadata={"source": "stones.txt"}),
]


def main() -> None:
    embeddings = BgeEmbeddings(MODEL, encode_kwargs={"normalize_embeddings": True})
    print(f"put before queries: {embeddings.query_instruction!r}")  # from the model's card, and yours to set
    store = InMemoryVectorStore.from_documents(DOCUMENTS, embeddings)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    for question in ("Which pet is lazy?", "How does a program become executable?"):
        (found,) = retriever.invoke(question)
        print(f"{question}\n  {found.page_content}  ({found.metadata['source']})")


if __name__ == "__main__":
    main()
