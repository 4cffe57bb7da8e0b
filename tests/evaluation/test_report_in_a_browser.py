"""The report in a browser: no error, no sideways scrolling, folded, and legible in light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cloc.evaluation.report.metrics_file import Cost
from cloc.evaluation.report.page import write_report
from tests.evaluation.test_report import CLOC, case, noise, report

HARNESS = """<!doctype html><meta charset="utf-8"><pre id="out">pending</pre>
<iframe src="index.html" width="WIDTH" height="900" style="border:0"></iframe><script>
onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, images = [...page.images];
  const color = (node, name) =>
    frame.contentWindow.getComputedStyle(node)[name].match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const folded = page.querySelectorAll("details:not([open])").length;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const sideways = [...page.querySelectorAll("body *")].filter(node => node.scrollWidth > node.clientWidth + 1 &&
    /auto|scroll/.test(frame.contentWindow.getComputedStyle(node).overflowX)).map(node => node.className);
  const ground = light(color(page.body, "backgroundColor"));
  const contrast = [...page.querySelectorAll("h1, p, td, th, small, .up, .down, .gap")].map(node => {
    const own = light(color(node, "color"));
    return (Math.max(own, ground) + .05) / (Math.min(own, ground) + .05); });
  out.textContent = JSON.stringify({images: images.length, broken: images.filter(i => !i.naturalWidth).length,
    overflow: page.scrollingElement.scrollWidth - page.documentElement.clientWidth, sideways,
    folded: folded > 5, dark: ground < .2,
    legible: Math.min(...contrast) >= 4.5, sections: page.querySelectorAll("section").length}); };
</script>"""


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False)])
def test_page_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    """No console error, no broken picture, no horizontal scroll, and text that contrasts (WCAG AA) in both modes."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on the PATH; install it to look at the report as a reader does")
    wide = report([case(), case("photo", noise(200))])
    costs: Cost = {"device": "A-very-long-name-of-a-processor-without-a-space", "picture_ms": 1.5}
    wide.cost = {"cloc": costs | {"boxes_per_second": {"prompter": 3.5}}, "clip": costs}
    wide.data[0].models.update({f"a-model-with-a-long-name-{number}": CLOC for number in range(4)})
    write_report(wide, tmp_path)
    (tmp_path / "harness.html").write_text(HARNESS.replace("WIDTH", str(width)), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr"
    flags += f" --blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    target = (tmp_path / "harness.html").as_uri()
    seen = subprocess.run([*command, "--dump-dom", target], capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="out">(\{.*?\})</pre>', seen.stdout)
    assert match, f"the harness did not finish: {seen.stdout[:300]} {seen.stderr[-600:]}"
    expected = {
        "images": 5,
        "broken": 0,
        "overflow": 0,
        "sideways": [],
        "folded": True,
        "dark": dark,
        "legible": True,
        "sections": 8,
    }
    assert json.loads(match[1]) == expected
    assert "CONSOLE" not in seen.stderr, seen.stderr
