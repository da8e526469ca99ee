#!/usr/bin/env bash
# s3fs 2026.9.0: a server that stops in the middle of an answer is an IndexError of the reader, not an error of the network.
#
# `S3File._fetch_range` looks at `ex.args[0]` of every OSError to see whether a file has changed. The error of a time that
# ran out (fsspec's FSTimeoutError, a TimeoutError and so an OSError) has no args, so reading ends with
# `IndexError: tuple index out of range`. Whoever tries again after errors of the network (OSError) does not after this
# one, and the message says nothing of a network.
#
# The server here answers the first request for a range with a few bytes and then nothing; the read times out, as it
# should, after the time that is set (1 second).
#
# Seen on 2026-11-29:
#
#   reading ended with IndexError('tuple index out of range') because of FSTimeoutError()
#   s3fs 2026.9.0 hides a timeout behind an IndexError: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "fsspec==2026.9.0" "s3fs==2026.9.0"
cd "$work"

cat > show.py <<'PYTHON'
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import s3fs

SIZE = 1_000_000


class Server(BaseHTTPRequestHandler):
    """One object, whose content never comes whole."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT")
        self.end_headers()

    def do_GET(self):
        self.send_response(206)
        self.send_header("Content-Length", str(SIZE))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(b"some bytes")
        self.wfile.flush()
        time.sleep(20)
        self.close_connection = True

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
files = s3fs.S3FileSystem(
    key="k", secret="s", endpoint_url=f"http://127.0.0.1:{server.server_port}",
    config_kwargs={"read_timeout": 1, "retries": {"max_attempts": 1}},
)
files.retries = 1
try:
    files.open("bucket/file", "rb").read(SIZE)
except Exception as error:
    print(f"reading ended with {error!r} because of {error.__context__!r}")
    if not isinstance(error, IndexError):
        raise SystemExit("s3fs does not hide a timeout any more") from error
else:
    raise SystemExit("the read did not fail")
print(f"s3fs {s3fs.__version__} hides a timeout behind an IndexError: still so")
PYTHON
"$work/venv/bin/python" show.py
