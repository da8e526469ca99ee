"""The page of a server in a real browser: it searches, compares, reranks, and shows texts as text alone."""

import html
import json
import re
import shutil
import subprocess

import pytest

pytest.importorskip("starlette")

from serving.running_server import running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)", allow_module_level=True)

#: A page that holds the server's, uses it as a reader would, and says what it saw.
HARNESS = """<!DOCTYPE html><body style="margin:0">
<iframe id="frame" src="/ui" style="width:{width}px;height:{height}px;border:0"></iframe>
<pre id="seen"></pre><script>
const frame = document.getElementById("frame"), seen = {{}};
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (test) => {{ for (let i = 0; i < 200 && !test(); i++) await sleep(50); return test(); }};
frame.addEventListener("load", async () => {{
  const page = frame.contentDocument, own = frame.contentWindow;
  const part = (id) => page.getElementById(id), all = (query) => [...page.querySelectorAll(query)];
  const send = (id, values) => {{
    const form = part(id).querySelector("form");
    for (const [name, value] of Object.entries(values))
      typeof value === "boolean" ? (form.elements[name].checked = value) : (form.elements[name].value = value);
    form.requestSubmit();
  }};
  try {{
    own.hacked = false;
    await until(() => !part("search").hidden);
    seen.sections = all("section").filter((each) => !each.hidden).map((each) => each.id);
    seen.about = part("index-about").textContent;
    send("search", {{ query: "which animal sat down?", where: "year >" }});
    await until(() => !part("search").querySelector(".trouble").hidden);
    seen.trouble = part("search").querySelector(".trouble").textContent;
    const where = part("search").querySelector("input[name=where]");
    seen.marked = [where.selectionStart, where.selectionEnd];
    send("search", {{ query: "which animal sat down?", where: "year >= 2019" }});
    await until(() => all("#search .hits li .head").length > 0);
    seen.hits = all("#search .hits .text").map((each) => each.textContent);
    seen.metadata = all("#search .hits li:first-child dt").map((each) => each.textContent);
    seen.values = all("#search .hits dd").map((each) => each.textContent);
    seen.modes = all("#search select[name=mode] option").map((each) => each.value);
    send("search", {{ query: "which animal sat down?", where: "", mode: "bm25" }});
    await until(() => [1, 2, 3].includes(all("#search .hits .text").length));
    seen.by_words = all("#search .hits .text").map((each) => each.textContent);
    seen.quiet = part("search").querySelector(".trouble").hidden;
    send("compare", {{ first: "cat", second: "cat" }});
    await until(() => part("compare").querySelector(".answer").textContent);
    seen.cosine = part("compare").querySelector(".answer").textContent;
    send("rerank", {{ query: "cat", documents: "<img src=x onerror='hacked=true'>\\n\\na cat" }});
    await until(() => all("#rerank .hits li").length > 1);
    seen.ranked = all("#rerank .hits .text").map((each) => each.textContent);
    await until(() => part("queued_tokens").textContent !== "–");
    seen.load = ["queued_requests", "tokens_per_second"].map((id) => part(id).textContent);
    seen.models = all("#models th").map((each) => each.textContent);
    seen.made = all("main img, main script").length;
    seen.hacked = own.hacked;
    seen.too_wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
    seen.dark = own.matchMedia("(prefers-color-scheme: dark)").matches;
    seen.surface = own.getComputedStyle(page.body).backgroundColor;
    seen.places = [...new Set(own.performance.getEntriesByType("resource").map((each) => new URL(each.name).host))];
  }} catch (error) {{ seen.error = String(error); }}
  document.getElementById("seen").textContent = JSON.stringify(seen);
}});
</script>"""


def shown(address, tmp_path, *more):
    """The page as the browser has it in the end, and what was written on its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=9000",
        "--dump-dom", *more, address,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout, re.findall(r"CONSOLE.*", result.stderr)


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_people_search_compare_and_rerank(width, dark, page_app, tmp_path):
    with running(page_app(HARNESS.format(width=width, height=2600))) as address:
        scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={width},2600"]
        document, console = shown(f"{address}/harness", tmp_path, *scheme)
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">([^<]+)</pre>', document)[1]))
    assert "error" not in seen, seen
    assert seen["sections"] == ["search", "compare", "rerank", "load"]
    assert "4 texts of" in seen["about"] and "secret" not in seen["about"]
    assert seen["trouble"].startswith("`where`: ") and seen["marked"] == [6, 6]
    assert seen["quiet"] and len(seen["hits"]) == 4
    assert any("<script>alert(1)</script>" in text for text in seen["hits"])
    assert seen["modes"] == ["dense", "bm25", "hybrid"]
    assert seen["by_words"] and all("sat" in text for text in seen["by_words"])
    assert seen["metadata"] == ["lang", "year", "tags"] and "a, <b>x</b>" in seen["values"]
    assert seen["cosine"].startswith("cosine 1.0000")
    assert sorted(seen["ranked"]) == ["<img src=x onerror='hacked=true'>", "a cat"]
    assert all(re.fullmatch(r"[\d,.]+", each) for each in seen["load"])
    assert seen["models"] == ["tiny", "judge"]
    assert seen["made"] == 0 and seen["hacked"] is False
    assert seen["dark"] == dark
    assert seen["surface"] == ("rgb(21, 23, 27)" if dark else "rgb(254, 254, 254)")
    assert seen["too_wide"] <= 0, "the page scrolls sideways"
    assert seen["places"] == [address.removeprefix("http://")]
    # The one line is of the condition that cannot be used.
    assert [line for line in console if "422" not in line] == []
