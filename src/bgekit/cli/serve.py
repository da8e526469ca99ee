"""`bge serve`: models behind HTTP, in the shapes that clients of OpenAI, TEI, Cohere, Jina, vLLM and infinity speak.

Serve embedders and rerankers, several at once, from one process. A request names a model by NAME, which is the last
part of the id or path unless given; NAME:query puts the model's instruction before each text, NAME:document the one of
documents. Every route is at /NAME/..., too. docs/serve.md has the routes, the clients, and how to run it for long.

Examples:
  bge serve BAAI/bge-small-en-v1.5
  bge serve small=BAAI/bge-small-en-v1.5 reranker=BAAI/bge-reranker-base --port 8080 --api-key-file keys.txt
  bge serve packaged:all-MiniLM-L6-v2 --index docs.index
  bge serve --config serve.yaml --host 0.0.0.0
  curl -s localhost:8080/v1/embeddings -H 'content-type: application/json' -d '{"input": "a text", "model": "small"}'
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any, Final

from ..errors import UsageError, require_extra
from . import options

#: What is said when it is interrupted before it listens.
INTERRUPTED: Final = "nothing was served yet"
#: Addresses that only this machine reaches.
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "served", nargs="*", metavar="[NAME=]MODEL",
        help="folder, Hugging Face id or packaged:NAME, with the name that requests use [its last part]",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="serve.yaml: models with their settings, and these options")
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on [127.0.0.1]")
    group.add_argument("--port", type=options.not_negative, default=8080, metavar="N", help="port, 0 for any [8080]")
    group.add_argument("--uds", metavar="PATH", help="listen on this Unix socket instead")
    group.add_argument("--fd", type=options.not_negative, metavar="N", help="listen on this open socket (systemd)")
    group.add_argument("--api-key-file", metavar="FILE", help="keys, one a line, of which requests must have one")
    group = parser.add_argument_group("models")
    options.add_list_option(
        group, "--devices", old=["--device"], metavar="DEVICE",
        help="devices, such as cpu, cuda:0; each beyond the first is a process [all visible GPUs, else the CPU]",
    )  # fmt: skip
    group.add_argument("--lazy", action="store_true", default=None, help="load a model when it is first asked for")
    group.add_argument(
        "--keep-alive", type=_seconds, metavar="SECONDS", help="let go of a model that nobody used for so long [never]"
    )
    group.add_argument(
        "--no-truncate", dest="auto_truncate", action="store_false", default=None,
        help="refuse texts that are too long, where a request does not say [cut them]",
    )  # fmt: skip
    group.add_argument(
        "--accept-token-ids", action="store_true", default=None,
        help="take token ids in /v1/embeddings as the model's own [refuse them]",
    )  # fmt: skip
    group = parser.add_argument_group("search")
    group.add_argument("--index", metavar="DIR", help="an index of bge search, served at /v1/search")
    options.add_list_option(group, "--hide", metavar="COLUMN", help="columns of its metadata that are never answered")
    group = parser.add_argument_group("limits")
    for name, kind, what in (
        ("--max-wait", _seconds, "refuse a request that would wait for longer with 429 [10]"),
        ("--max-body", options.positive, "bytes of a body [33554432]"),
        ("--max-inputs", options.positive, "texts or pairs of a request [4096]"),
        ("--max-tokens", options.positive, "tokens of a request [1000000]"),
        ("--max-requests", options.positive, "requests that are answered at the same time [4096]"),
        ("--grace", _seconds, "time to finish accepted work after SIGTERM [30]"),
        ("--stuck", _seconds, "a batch that takes longer means that a worker is stuck [60]"),
    ):
        metavar = "SECONDS" if kind is _seconds else "N"
        group.add_argument(name, type=kind, metavar=metavar, help=what)
    options.add_report_options(parser)
    parser.add_argument(
        "--access-log",
        metavar="FILE",
        help="a line of JSON for each request; - is standard output [-, with --quiet off]",
    )


def run(args: argparse.Namespace) -> int:
    """Serve."""
    options.log_to_stderr(logging.ERROR if args.quiet else logging.DEBUG if args.verbose else logging.INFO)
    require_extra("serve", "starlette", "uvicorn", "msgspec", "prometheus_client")
    from ..serving import config

    models: dict[str, str] = {}
    own: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    if args.config:
        models, own, settings = config.read_config(args.config)
    for name, model in config.named(args.served).items():
        if name in models:
            raise UsageError(f"two models are called {name}: one of the command line, one in {args.config}")
        models[name] = model
    if not models:
        raise UsageError("name at least one model, such as: bge serve BAAI/bge-small-en-v1.5")
    settings |= options.given(
        args, "lazy", "keep_alive", "auto_truncate", "accept_token_ids", "max_wait", "max_body", "max_inputs",
        "max_tokens", "max_requests", "grace", "stuck",
        devices=tuple(args.devices) if args.devices else None, hidden=tuple(args.hide) if args.hide else None,
    )  # fmt: skip
    keys = config.read_keys(args.api_key_file) if args.api_key_file else []
    if args.host not in _LOCAL and not keys and args.uds is None:
        logging.getLogger("bgekit.serve").warning(
            "%s is reached by other machines, and no keys are needed: --api-key-file FILE", args.host
        )
    if args.access_log or not args.quiet:
        _log_accesses(args.access_log or "-")
    _spin_briefly()
    # After all that can be wrong without a model: these import torch.
    from ..serving import create_app
    from ..serving import run as serve

    app = create_app(models, args.index, keys, options=own, **settings)
    sockets = options.given(args, "uds", "fd")
    return serve(app, host=args.host, port=args.port, **sockets)


def _spin_briefly() -> None:
    """Have OpenMP's threads look for more work for a fraction of a millisecond, then sleep, unless the user said how.

    By default they look for it for milliseconds, on the core that the thread needs which answers: a query over HTTP was
    2 ms slower so, on two cores. Between the products of a query they still stay awake. Read when torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _log_accesses(target: str) -> None:
    """Write the access log, and nothing else, to a file or standard output."""
    handler = logging.StreamHandler(sys.stdout) if target == "-" else logging.FileHandler(target, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("bgekit.access")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return value
