"""Search by several modes, see benchmarks/README.md.

python benchmarks/hybrid.py index --work DIR [--texts 200000]
"""

from __future__ import annotations

import argparse

from hybrid_index import index_options


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (index_options,):
        add(commands)
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    raise SystemExit(main())
