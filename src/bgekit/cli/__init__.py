"""The command `bge`: one file per verb, each with `add_parser(subparsers)` and `run(args) -> exit code`."""
