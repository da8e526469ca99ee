#!/usr/bin/env bash
# fsspec 2026.9.0 (with s3fs 2026.9.0): a file that is written in a `with` block is there even if the block fails.
#
# `with fs.open(path, "wb") as file:` closes the file at its end, and closing is what uploads it, whether the block ended
# well or with an exception. So an error half way through replaces what was there by the half, which readers cannot tell
# from a complete file. A local file is as half, but an upload looks as if it were all or nothing, and it could be: the
# file has a method `discard`, and `autocommit=False` with `commit`, which the block does not use.
#
# Seen on 2026-11-29:
#
#   before: b'complete'; after a block that failed: b'half'
#   fsspec 2026.9.0 keeps what a failed block has written: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "fsspec==2026.9.0" "s3fs==2026.9.0" "moto[server]==5.2.5"
cd "$work"

cat > show.py <<'PYTHON'
import os

from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ.update(
    AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s",
    AWS_DEFAULT_REGION="us-east-1",
)

import fsspec  # noqa: E402

files = fsspec.filesystem("s3")
files.mkdir("bucket")
files.pipe_file("bucket/file", b"complete")
before = files.cat_file("bucket/file")
try:
    with files.open("bucket/file", "wb") as file:
        file.write(b"half")
        raise RuntimeError("what makes the rest has failed")
except RuntimeError:
    pass
after = files.cat_file("bucket/file")
print(f"before: {before}; after a block that failed: {after}")
server.stop()
if after != b"half":
    raise SystemExit("fsspec does not keep what a failed block has written any more")
print(f"fsspec {fsspec.__version__} keeps what a failed block has written: still so")
PYTHON
"$work/venv/bin/python" show.py 2>/dev/null
