"""No body makes the server fail or hang, whatever it is."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from bgekit.serving import create_app
from serving.fuzz import Fuzzer
from serving.running_server import running

#: Statuses of answers: 424 is TEI's for a model of the other kind.
GOOD = {200, 400, 404, 413, 415, 422, 424, 429}


@pytest.fixture
def app(bge_name, tiny_reranker, index_of):
    return create_app({"tiny": bge_name, "judge": tiny_reranker}, index=index_of(bge_name))


def check(path, kind, body, response, seen):
    asked = f"{path} {kind!r} {body[:300]!r}"
    assert response.status_code in GOOD, f"{response.status_code}: {response.text[:300]}\n{asked}"
    json.loads(response.content)
    assert "Traceback" not in response.text, asked
    seen[response.status_code] = seen.get(response.status_code, 0) + 1


def test_a_few_hundred_bodies(app):
    seen = {}
    with TestClient(app, raise_server_exceptions=False) as client:
        fuzzer = Fuzzer(client.get("/openapi.json").json(), seed=1)
        for path, kind, body in fuzzer.requests(400):
            check(path, kind, body, client.post(path, content=body, headers={"content-type": kind}), seen)
    assert seen[200] > 20 and seen[422] > 40 and seen[400] > 20 and seen[415] > 2, seen


@pytest.mark.slow
def test_ten_thousand_bodies_from_several_clients(app):
    seen = {}
    with running(app) as address, httpx.Client(timeout=60) as client:
        fuzzer = Fuzzer(client.get(f"{address}/openapi.json").json(), seed=2)

        def ask(request):
            path, kind, body = request
            return (*request, client.post(address + path, content=body, headers={"content-type": kind}))

        requests = fuzzer.requests(10_000)
        with ThreadPoolExecutor(8) as threads:
            while group := list(itertools.islice(requests, 64)):
                for path, kind, body, response in threads.map(ask, group):
                    check(path, kind, body, response, seen)
        assert client.get(f"{address}/health").status_code == 200
    print(dict(sorted(seen.items())))
    assert sum(seen.values()) == 10_000 and seen[200] > 500
