#!/usr/bin/env bash
# Makes the environment of a client, with its packages in the releases that were tested, and prints the program that
# runs scripts there: `environment.sh NAME FOLDER`. What is there already is not made again.
#   PYTHON=/path/to/python3.11   the interpreter to build on, instead of python3
set -euo pipefail
name=${1:?usage: environment.sh NAME FOLDER} folder=${2:?usage: environment.sh NAME FOLDER}/$1
case $name in
    openai) packages="openai==3.57.0 numpy" ;;
    openai_node) packages="openai@7.59.0" ;;
    cohere) packages="cohere==7.3.1" ;;
    huggingface_hub) packages="huggingface_hub==2.4.0 numpy" ;;
    langchain_openai) packages="langchain-openai==1.7.4" ;;
    llama_index) packages="llama-index-core==0.14.25 llama-index-embeddings-openai==0.7.0
        llama-index-embeddings-text-embeddings-inference==0.6.0" ;;
    litellm) packages="litellm==1.110.2" ;;
    haystack) packages="haystack-ai==3.4.1 huggingface-api-haystack==3.1.0" ;;
    *) echo "environment.sh: no client is called $name" >&2; exit 2 ;;
esac
case $name in
    *_node) program=$folder/node ;;
    *) program=$folder/bin/python ;;
esac
if [ "$(cat "$folder/made-of" 2> /dev/null)" != "$packages" ]; then
    rm -rf "$folder"
    mkdir -p "$folder"
    if [ "$program" = "$folder/node" ]; then
        # Beside its modules, a script finds them wherever it lies itself.
        (cd "$folder" && npm install --silent --no-fund --no-audit --prefix "$folder" "$packages" > /dev/null)
        printf '#!/bin/sh\ncp "$1" "%s/script.mjs" && exec node "%s/script.mjs"\n' "$folder" "$folder" > "$program"
        chmod +x "$program"
    else
        "${PYTHON:-python3}" -m venv "$folder"
        # shellcheck disable=SC2086
        "$program" -m pip install -qq --disable-pip-version-check $packages >&2
    fi
    printf '%s\n' "$packages" > "$folder/made-of"
fi
printf '%s\n' "$program"
