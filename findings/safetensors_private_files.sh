#!/usr/bin/env bash
# safetensors 0.8.0: the mode of the files that `save_file` writes.
#
# It writes to a private temporary file and renames that, so a model has mode 600 whatever the umask says, where every
# other way of writing a file gives 644 with the usual umask of 022. A folder that one user trains and saves cannot be
# loaded by a server that runs as another user, and the files beside the weights, which can be read, do not show why.
# A file that was there with mode 644 is replaced by one of mode 600, too.
#
# Seen on 2026-11-28:
#
#   umask 022: save_file 600, bytes of `save` written with open() 644
#   over a file of mode 644: 600
#   safetensors 0.8.0 does not follow the umask: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "safetensors==0.8.0" "numpy==2.4.6"
cd "$work"
umask 022

"$work/venv/bin/python" - <<'PYTHON'
import os
import sys

import numpy as np
import safetensors
from safetensors.numpy import save, save_file


def mode(name: str) -> str:
    return oct(os.stat(name).st_mode & 0o777)[2:]


tensors = {"weight": np.ones((2, 2), dtype=np.float32)}
save_file(tensors, "by_file.safetensors")
with open("by_bytes.safetensors", "wb") as file:
    file.write(save(tensors))
print(f"umask 022: save_file {mode('by_file.safetensors')}, bytes of `save` written with open() "
      f"{mode('by_bytes.safetensors')}")
save_file(tensors, "by_bytes.safetensors")
print(f"over a file of mode 644: {mode('by_bytes.safetensors')}")
same = mode("by_file.safetensors") == mode("by_bytes.safetensors") == "600"
verdict = "still so" if same else "it has changed"
print(f"safetensors {safetensors.__version__} does not follow the umask: {verdict}")
sys.exit(0 if same else 1)
PYTHON
