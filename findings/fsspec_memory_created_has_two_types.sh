#!/usr/bin/env bash
# fsspec 2026.9.0: when a file in memory was created is a number in a listing, and a datetime when the file is asked for.
#
# `ls(detail=True)` and `find(detail=True)` of the file system `memory` say `created` in seconds since 1970; `info` of the
# same path gives a datetime with a time zone. Local files have a number in both. Whoever keeps what a listing says, to
# tell later with `info` whether a file is still the same, finds every file changed, or fails when the two are compared
# by <. bgekit turns both into seconds.
#
# Seen on 2026-11-30:
#
#   memory: ls float, find float, info datetime, equal False
#   file: ls float, find float, info float, equal True
#   `created` of one file has two types: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "fsspec==2026.9.0"

cat > "$work/created.py" <<'PYTHON'
import sys

import fsspec

seen = {}
for protocol, folder in (("memory", "/folder"), ("file", sys.argv[1])):
    system = fsspec.filesystem(protocol)
    system.pipe(f"{folder}/one.txt", b"a")
    (listed,) = system.ls(folder, detail=True)
    (found,) = system.find(folder, detail=True).values()
    asked = system.info(f"{folder}/one.txt")
    kinds = [type(each["created"]).__name__ for each in (listed, found, asked)]
    seen[protocol] = [*kinds, listed["created"] == asked["created"]]
    print(f"{protocol}: ls {kinds[0]}, find {kinds[1]}, info {kinds[2]}, equal {seen[protocol][-1]}")
sys.exit(0 if seen == {"memory": ["float", "float", "datetime", False], "file": ["float"] * 3 + [True]} else 1)
PYTHON

mkdir "$work/files"
if "$work/venv/bin/python" "$work/created.py" "$work/files"; then
    echo "\`created\` of one file has two types: still so"
else
    echo "\`created\` of one file has two types: no longer so"
    exit 1
fi
