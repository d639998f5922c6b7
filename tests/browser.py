"""A page in a real Chromium, without a driver: what happens in it is written into it.

The page is opened from its file, `steps` run in it, and what they return comes back with what it
said on the console and what it asked the network for.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)
AXE = Path(__file__).parents[1] / "build" / "axe" / "package" / "axe.min.js"
"""Where `make test-browser` puts axe-core, which looks for what keeps people out."""
WATCH = """<script>
const faults = [];
addEventListener("error", event => faults.push(String(event.message)));
for (const level of ["error", "warn"]) console[level] = (...said) => faults.push(said.join(" "));
</script>"""


def open_page(html: str, steps: str, folder: Path, size: tuple[int, int] = (1200, 900)) -> Any:
    """What `steps` return: the body of an asynchronous JavaScript function.

    Fails on anything the page says on the console, and on any request.
    """
    assert CHROMIUM is not None
    ask = (
        "<script>addEventListener('load', async () => { let told; try { told = await (async () => {"
        f"{steps}}})(); }} catch (fault) {{ faults.push(String(fault)); }}"
        "const asked = performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith('data:'));"
        "const said = document.createElement('pre'); said.id = 'told';"
        "said.textContent = JSON.stringify({told, faults, asked}); document.body.append(said); });"
        "</script>"
    )
    page = folder / "page.html"
    whole = re.sub(r"(<head>)", lambda found: found[0] + WATCH, html, count=1)
    page.write_text(whole.replace("</body>", f"{ask}</body>"), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}",
        "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r'<pre id="told">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stderr[-2000:]
    result = json.loads(unescape(found[1]))
    assert result["faults"] == []
    assert result["asked"] == []
    return result["told"]


def look_for_barriers(html: str, folder: Path) -> list[str]:
    """What axe-core finds serious or critical, everything unfolded."""
    if not AXE.exists():
        pytest.skip("no axe-core here: make test-browser fetches it")
    axe = AXE.read_text("utf-8").replace("</script", "<\\/script")
    steps = """
document.querySelectorAll("details").forEach(part => { part.open = true; });
await new Promise(done => setTimeout(done, 300));
const found = await axe.run({ resultTypes: ["violations"] });
return found.violations.filter(v => ["serious", "critical"].includes(v.impact))
  .map(v => v.id + ": " + v.nodes[0].html);
"""
    found: list[str] = open_page(
        html.replace("<body>", f"<body><script>{axe}</script>", 1), steps, folder
    )
    return found
