"""The page of `ranksort demo`, used in a browser as people use it."""

import json
import os
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image

from ranksort import cli

sys.path.append(str(Path(__file__).parent / "prediction"))
from colour_detector import Colours, paint
from test_predictor import thresholds_of

demo = pytest.importorskip("ranksort.demo", reason="gradio is not installed: pip install gradio", exc_type=ImportError)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Objects of scores .89, .88, .86 and .6, of the classes cat, cow, cat and dog; and one of a dog alone."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "a [1].png", folder / "b.png"]
    for path, numbers in zip(paths, ((1, 2, 4, 30), (3,)), strict=True):
        image = torch.full((3, 60, 90), 255, dtype=torch.uint8)
        for place, number in enumerate(numbers):
            paint(image, (20 * place + 4, 8, 20 * place + 20, 40), number)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


@pytest.fixture(scope="module")
def address(images: list[Path]) -> Iterator[str]:
    model = Colours()
    model.class_names = ("dog", "cat", "<b>cow")
    model.thresholds = thresholds_of([0.7, 0.87, 0.5])
    # gradio hands out files below the folders of temporary files and the current one by itself: these are in neither.
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        example = Path(shutil.copy(images[1], folder))
        page = demo.build_page({"raw": model}, "my_run", [example])
        yield demo.serve(page, "127.0.0.1", 0, limit=1, in_browser=False, blocks=False)
        page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to open the page in")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


SUMMARY = "document.querySelector('#summary')?.innerText ?? ''"


def _slide(browser: Browser, value: float) -> None:
    browser.run(
        "(() => { const s = document.querySelector('#threshold input[type=range]'); "
        f"s.value = {value}; s.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


def _tick(browser: Browser, part: str, n: int) -> None:
    browser.run(f"document.querySelectorAll('{part} input[type=checkbox]')[{n}].click()")


def _says(browser: Browser, text: str) -> None:
    browser.wait(f"({SUMMARY}).includes({json.dumps(text)})", 30)


def test_the_page_in_use(browser: Browser, address: str, images: list[Path], tmp_path: Path) -> None:
    browser.open(address)
    browser.wait("document.querySelector('#upload input[type=file]') !== null", 60)
    browser.wait("document.querySelectorAll('.ranksort-scale i').length === 3")
    scale = browser.run("document.querySelector('.ranksort-scale').innerText")
    assert "dog 0.70" in scale
    assert "<b>cow 0.50" in scale

    browser.upload("#upload input[type=file]", images[0])
    _says(
        browser, "2 detections: 1 cat, 1 <b>cow"
    )  # the dog's .6 and the second cat's .86 are below the best thresholds
    browser.wait("document.querySelector('#picture img')?.naturalWidth === 90")
    labels = browser.run("[...document.querySelectorAll('#classes label')].map(l => l.innerText.trim())")
    assert labels == ["dog", "cat", "<b>cow"]
    browser.screenshot(tmp_path / "page.png")

    _slide(browser, 0.5)  # one threshold for all takes the place of the classes' own
    _says(browser, "4 detections")
    assert browser.run("document.querySelector('#lrp input').checked") is False
    _slide(browser, 0.88)
    _says(browser, "2 detections")
    _tick(browser, "#classes", 1)
    _says(browser, "1 detection: 1 <b>cow")
    content = _download(browser, tmp_path / "downloads")
    assert (content["image"], content["width"], content["height"], content["threshold"]) == (
        images[0].name,
        90,
        60,
        0.88,
    )
    (found,) = content["detections"]
    assert found["class"] == "<b>cow"
    assert found["score"] == pytest.approx(0.88)
    assert found["box"] == [24, 8, 40, 40]
    assert found["mask"]["size"] == [60, 90]
    _slide(browser, 1)
    _says(browser, "0 detections: nothing above this score")
    assert [complaint for complaint in browser.complaints if '"request"' in complaint] == []  # nothing from elsewhere


def _download(browser: Browser, folder: Path) -> dict[str, Any]:
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.run("document.querySelector('#json').click()")
    end = time.monotonic() + 30
    while not (files := list(folder.glob("*.json"))):
        assert time.monotonic() < end, "nothing was downloaded"
        browser.run("1")
        time.sleep(0.1)
    return json.loads(files[0].read_bytes())


def test_an_example(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait("document.querySelector('#examples button.thumbnail-item, #examples .thumbnail-lg') !== null")
    browser.run("document.querySelector('#examples button.thumbnail-item, #examples .thumbnail-lg').click()")
    _says(browser, "1 detection: 1 dog")


TOASTS = "[...document.querySelectorAll('.toast-body')].map(toast => toast.innerText).join()"


def test_bad_files_get_a_message(browser: Browser, address: str, images: list[Path], tmp_path: Path) -> None:
    browser.open(address)
    browser.wait("document.querySelector('#upload input[type=file]') !== null")
    (tmp_path / "cut.png").write_bytes(images[0].read_bytes()[:120])
    browser.upload("#upload input[type=file]", tmp_path / "cut.png")
    browser.wait(f"{TOASTS}.includes('cut.png')", 30)
    assert str(tmp_path) not in browser.run(TOASTS)
    assert "gradio" not in browser.run(TOASTS)
    browser.open(address)
    browser.wait("document.querySelector('#upload input[type=file]') !== null")
    (tmp_path / "large.png").write_bytes(images[0].read_bytes() + bytes(2 << 20))
    browser.upload("#upload input[type=file]", tmp_path / "large.png")
    browser.wait(f"{TOASTS}.includes('maximum')", 30)
    browser.open(address)  # and it goes on
    browser.wait("document.querySelector('#upload input[type=file]') !== null")
    browser.upload("#upload input[type=file]", images[1])
    _says(browser, "1 detection: 1 dog")


def test_only_this_machine_sees_it_and_nothing_is_sent(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    config = json.loads(urllib.request.urlopen(f"{address}config").read())
    assert config["analytics_enabled"] is False
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match="refused"):  # another address of this machine
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_models_without_thresholds_and_with_calibrated_scores(images: list[Path]) -> None:
    plain, calibrated = Colours(), Colours()
    page = demo.build_page({"raw": plain, "calibrated": calibrated}, "two")
    components = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert components["scores"].visible
    assert not components["lrp"].visible
    assert components["threshold"].value == 0.3
    assert "ranksort test" in components["scale"].value
    assert not components["examples"].visible


def test_a_port_that_is_taken(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    page = demo.build_page({"raw": Colours()}, "another")
    with pytest.raises(ValueError, match=f"cannot be shown at 127.0.0.1:{port}: the port is in use"):
        demo.serve(page, "127.0.0.1", port, limit=1, in_browser=False, blocks=False)


def test_mistakes_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([str(tmp_path / "gone.ckpt")], "gone.ckpt"),
        (["x.ckpt", "--port", "70000"], "--port must be within 0..65535"),
        (["x.ckpt", "--upload-limit", "0"], "--upload-limit must be 1 MB or more"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["demo", *arguments])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
