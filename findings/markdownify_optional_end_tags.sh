#!/usr/bin/env bash
# markdownify 1.2.3 on beautifulsoup4 4.15.0 with its default parser, Python's html.parser.
#
# HTML lets the end tags of list items and table cells be left out (</li>, </td>, </tr>): pages that were written by hand
# or minified do so. Python's html.parser knows no such rule and puts each item or cell into the one before; what
# markdownify makes of that is one line for the whole list ("* one* two* three") and one row for the whole table. With
# lxml (`bs4_options={"features": "lxml"}`) both are what they say. Whoever cuts such pages into passages, or embeds
# their items, works on texts that have run together.
#
# Seen on 2026-11-29:
#
#   html.parser: '* one* two* three' 1
#   lxml:        '* one\n* two\n* three' 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q markdownify==1.2.3 beautifulsoup4==4.15.0 lxml==6.1.3
cat > "$folder/try.py" << 'PY'
import markdownify

LIST = "<ul><li>one<li>two<li>three</ul>"
TABLE = "<table><tr><td>a<td>b<tr><td>c<td>d</table>"


def seen(**options):
    listed = markdownify.markdownify(LIST, **options).strip()
    table = markdownify.markdownify(TABLE, **options)
    rows = [line for line in table.splitlines() if any(each in line for each in "abcd")]
    return listed, len(rows)


plain, lxml = seen(), seen(bs4_options={"features": "lxml"})
print("html.parser:", *map(repr, plain))
print("lxml:       ", *map(repr, lxml))
assert plain == ("* one* two* three", 1), plain
assert lxml == ("* one\n* two\n* three", 2), lxml
PY
"$folder/env/bin/python" "$folder/try.py"
