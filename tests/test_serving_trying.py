"""The page to try a model, and the verb ``demo``."""

import asyncio
import base64
import io
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_inference_predictor import narrow
from test_serving_web import JPEG, LIMITS, Answered, request
from tests_support import ONE_THREAD, ROOT

from effbackbones import load_predictor, save_model
from effbackbones.serving.service import Service
from effbackbones.serving.trying import add_page
from tasks.verbs.command import run_command


def asked(*requests: Any, task: str = "det") -> list[Answered]:
    """Answers of the service with the page."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("python_multipart", reason="the extra serve is not installed")
    from effbackbones.serving.web import web_app

    service = Service(load_predictor(narrow(task), device="cpu", on_error="return"), limits=LIMITS, wait=0.0)
    app = web_app(service, partial(add_page, samples=[np.zeros((8, 8, 3), np.uint8)]))

    async def all_of_them() -> list[Answered]:
        return [await request(app, path, *parts, kind=kind) for path, parts, kind in requests]

    try:
        return asyncio.run(all_of_them())
    finally:
        service.close()


def test_the_page_is_whole_and_asks_nobody_else() -> None:
    page, style, script, samples = asked(
        *((f"/demo{part}", (), "") for part in ("", "/page.css", "/page.js", "/samples"))
    )
    for one in (page, style, script):
        assert one.status == 200
        assert "default-src 'none'" in one.headers["content-security-policy"]
        assert not re.search(rb"(https?:)?//[a-z]", one.body)
    assert Image.open(io.BytesIO(base64.b64decode(samples.json["samples"][0]))).size == (8, 8)
    known = set(re.findall(r'id="(\w+)"', page.body.decode()))
    assert set(re.findall(r'\$\("(\w+)"\)', script.body.decode())) <= known


def test_an_explanation_is_answered_and_mistakes_are_told() -> None:
    kind = "image/jpeg"
    good, wrong, unknown, box, digits, broken, timed = asked(
        ("/explain?label=1", (JPEG,), kind),
        ("/explain?label=77", (JPEG,), kind),
        ("/explain?colour=1", (JPEG,), kind),
        ("/explain?box=1,2", (JPEG,), kind),
        ("/explain?box=0,0,1_0,9", (JPEG,), kind),
        ("/explain", (JPEG[:99],), kind),
        ("/predict", (JPEG,), kind),
    )
    assert (good.status, good.json["label"], good.json["task"]) == (200, 1, "det")
    heat = Image.open(io.BytesIO(base64.b64decode(good.json["heat"])))
    assert (heat.size, heat.mode) == ((60, 40), "RGBA")
    for answer, says in (
        (wrong, "label: expected 0 to 2, got 77"),
        (unknown, "'colour' is not known"),
        (box, "box: expected left,top"),
        (digits, "box: expected left,top"),
        (broken, "cannot be read as an image"),
    ):
        assert answer.status == 422
        assert says in answer.json["error"]
    assert re.fullmatch(r"decode;dur=[\d.]+, network;dur=[\d.]+", timed.headers["server-timing"])


def test_the_verb_needs_a_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.verbs.serve.require_packages", lambda: None)
    assert run_command("detect", ["demo"]) == 2
    assert "--checkpoint: no trained model is named" in capsys.readouterr().err.splitlines()[-1]


GIVE = """([kind, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], "a.jpg", { type: "image/jpeg" }));
    const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
    document.getElementById("drop").dispatchEvent(event);
}"""


def check_other_ways(page: Any, task: Any) -> None:
    """An image that is dropped, one that is pasted, and the page without a mouse; each level explains."""
    for kind in ("drop", "paste"):
        page.evaluate("document.getElementById('timing').textContent = ''")
        page.evaluate(GIVE, [kind, base64.b64encode(JPEG).decode()])
        page.wait_for_selector("#timing:has-text('60 x 40 pixels')")
    page.evaluate("document.getElementById('timing').textContent = ''")
    page.focus("#samples button")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first sample
    page.wait_for_selector("#timing:has-text('192 x 192 pixels')")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"opacity", "label", "explain", "clear"} <= set(reached)
    assert ("top" in reached) == (task != "seg")  # of which each class is told
    assert page.is_visible("#level") == ("level" in reached) == (task != "cls")  # which reads one level
    levels = page.eval_on_selector_all("#level option", "rows => rows.map((row) => row.value)")
    page.evaluate("(level) => { document.getElementById('level').value = level; }", levels[-1])
    page.focus("#explain")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#heat:has-text('seen at {levels[-1]}')")
    assert page.is_visible("#threshold") == (task != "cls")
    if "det" in task:
        assert float(page.input_value("#threshold")) == 0.3
        page.focus("#threshold")
        page.keyboard.press("End")
        page.wait_for_selector("#shown:has-text('1.00')")


def faults_for_readers(page: Any) -> list[str]:
    """What axe finds, the checker for screen readers and the like; ``AXE`` names its script, axe.min.js."""
    script = os.environ.get("AXE")
    if not script:
        return []
    page.add_script_tag(path=script)
    found: list[str] = page.evaluate(
        "axe.run().then((found) => found.violations.map((one) => one.id + ': ' + one.nodes[0].html))"
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cls", "det", "seg", ("det", "seg")])
def test_in_a_browser_an_image_is_answered_and_explained(task: Any, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("there is no Chromium")
    save_model(narrow(task), tmp_path / "model.safetensors")
    line = [
        sys.executable,
        "-m",
        "tasks.run",
        "demo",
        "--checkpoint",
        str(tmp_path / "model.safetensors"),
        "--port",
        "0",
    ]
    process = subprocess.Popen(line, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        address = next(line for line in process.stderr if line.startswith("the page: ")).split()[-1]
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
            page, wrong = browser.new_page(viewport={"width": 390, "height": 800}, bypass_csp=True), []
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(address)
            page.click("#samples button")
            page.wait_for_selector("#found li")
            assert "192 x 192 pixels; decode" in page.inner_text("#timing")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            before = page.evaluate("document.getElementById('canvas').toDataURL()")
            page.click("#explain")
            page.wait_for_selector("#heat:has-text('Heat')")
            page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
            assert page.evaluate("document.getElementById('canvas').toDataURL()") != before
            check_other_ways(page, task)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert faults_for_readers(page) == []
            assert wrong == []
            page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
            page.wait_for_selector("#error:has-text('not in one of the formats')")
            browser.close()
    finally:
        process.terminate()
        process.wait(20)
