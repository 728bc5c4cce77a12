"""The page of `ranksort demo`, used in a browser as people use it."""

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image

sys.path.append(str(Path(__file__).parent / "prediction"))
from colour_detector import Colours, paint

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
    model.lrp_thresholds = (0.7, 0.87, 0.5)
    page = demo.build_page({"raw": model}, "my_run", images[1:])
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
    link = browser.wait(
        "document.querySelector('#json a, a#json')?.href ?? document.querySelector('a[download]')?.href"
    )
    content = json.loads(urllib.request.urlopen(link).read())
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
    _says(browser, "0 detections: nothing from this score on")
    assert browser.complaints == []
