"""A real S3 server on this machine (moto's), and a proxy before it that counts bytes and breaks connections."""

import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest


class ObjectStore:
    """The server. Requests go through the proxy, whose address is `endpoint`."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._address = self._server.get_host_and_port()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        #: Environment of a process that reaches it.
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        #: Bytes that were answered.
        self.answered = 0
        #: How many further answers of at least 64 KiB break off in their middle.
        self.breaks = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def check_credentials(self, check: bool) -> None:
        """Whether from now on only known keys are let in; there is none."""
        url, count = f"http://{self._address[0]}:{self._address[1]}/moto-api/reset-auth", b"0" if check else b"inf"
        request = urllib.request.Request(url, data=count, headers={"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(request).close()

    def stop(self) -> None:
        self._listener.close()
        self._server.stop()

    def _accept(self) -> None:
        with suppress(OSError):  # It is closed in the end.
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        server = socket.create_connection(self._address)
        threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
        with closing(client), closing(server), suppress(OSError):
            in_a_row = 0
            server.settimeout(0.05)
            while True:
                try:
                    data = server.recv(1 << 16)
                except TimeoutError:
                    in_a_row = 0  # The answer is complete.
                    continue
                if not data:
                    return
                self.answered += len(data)
                in_a_row += len(data)
                if self.breaks > 0 and in_a_row > 1 << 16:
                    self.breaks -= 1
                    return
                client.sendall(data)

    @staticmethod
    def _copy(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[str]:
    """The URL of an empty bucket, for this process and those that it starts; copies go to a folder of the test."""
    import fsspec
    import s3fs

    for name, value in (object_store.environment | {"HF_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    # What waits for an answer that never comes gives up soon.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    object_store.breaks = 0
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    name = f"bucket-{abs(hash(tmp_path)) % 10**12}"
    files.mkdir(name)
    yield f"s3://{name}"
    object_store.breaks = 0
    files.invalidate_cache()
    files.rm(name, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
