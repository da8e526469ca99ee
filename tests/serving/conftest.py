"""Servers of tiny models."""

from __future__ import annotations

import json

import pytest

from serving.documents import DOCUMENTS


@pytest.fixture(scope="session")
def index_of(tmp_path_factory):
    """Make an index of documents with all their metadata: `index_of(model_folder, documents)`."""

    def make(model, documents=DOCUMENTS, folder=None, parts=()):
        from bgekit import FlagModel
        from bgekit.data import read_records
        from bgekit.search import index_records

        folder = folder or tmp_path_factory.mktemp("index")
        (folder / "docs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
        records = read_records(folder / "docs.jsonl", keep="*")
        index_records(FlagModel(model), records, folder / "index", parts=parts)
        return folder / "index"

    return make


@pytest.fixture(scope="session")
def bge_name(make_model):
    """A tiny model that is called as one with an instruction."""
    return make_model(name="bge-small-en-v1.5")


@pytest.fixture
def page_app(bge_name, tiny_reranker, index_of):
    """A server with an index and a page that drives the server's."""
    from starlette.responses import HTMLResponse

    from bgekit.serving import create_app

    def make(harness):
        index = index_of(bge_name, parts=["bm25"])
        app = create_app({"tiny": bge_name, "judge": tiny_reranker}, index=index, hidden=("secret",))

        async def asked(scope, receive, send):
            if scope["type"] == "http" and scope["path"] == "/harness":
                await HTMLResponse(harness)(scope, receive, send)
            else:
                await app(scope, receive, send)

        return asked

    return make
