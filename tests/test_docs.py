"""What docs/ says is there, and runs."""

import ast
import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from ranksort import cli
from ranksort.data.check import check_data
from ranksort.data.faults import CONSEQUENCES
from ranksort.evaluation.lrp import lrp_error
from ranksort.recipes import Recipe, list_recipes

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "findings/README.md"))]
PAGES += ROOT.glob("benchmarks/*.md")


def headings(page: Path) -> list[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower() for title in titles]
    return [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """As on GitHub, where they are relative to the page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target), f"{link}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_headings_of_a_page_differ(page: Path) -> None:
    """Else GitHub and the site number the anchors of equal ones in different ways."""
    assert [heading for heading, number in Counter(headings(page)).items() if number > 1] == []


class _Page(HTMLParser):
    """What a page of the site links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif (tag == "link" and "stylesheet" in given.get("rel", "")) or (
            tag == "link" and "icon" in given.get("rel", "")
        ):
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


def test_site_builds_without_warnings_dead_links_or_the_network(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(name, reason="the extra docs is not installed")
    if not (ROOT / "mkdocs.yml").is_file():
        pytest.skip("this is no checkout: there is no mkdocs.yml")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    pages = {path.resolve(): _Page(path.read_text()) for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > 40
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert link not in page.loads, f"{path} loads {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path} links to {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].anchors | {"__skip"}, f"{path} links to {link}"
    losses = (tmp_path / "site/losses.html").read_text()
    assert losses.count("<math ") == losses.count("</math>") > 40
    assert "$" not in re.sub(r"<(script|pre|code).*?</\1>", "", losses, flags=re.DOTALL)
    for page in (tmp_path / "site/reference").glob("*.html"):  # sections that are no code would be boxes of quotations
        assert 'class="admonition example"' not in page.read_text()
    metric = (tmp_path / "site/repository/examples/my_metric.py.html").read_text()
    assert "OptimalLRP" in metric


@pytest.mark.parametrize("name", ["migration.md", "recipes.md"])
def test_tables_are_those_of_the_recipes(name: str) -> None:
    tables = runpy.run_path(str(ROOT / "docs/tables.py"))
    page = ROOT / "docs" / name
    assert tables["with_tables"](page) == page.read_text(), "run `make docs`"
    assert {n for n in list_recipes() if f"| `{n}` |" in page.read_text()} == {
        n for n in list_recipes() if name == "recipes.md" or not n.endswith("_small")
    }


def test_results_of_the_paper_are_numbers() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines() if row.startswith("| `rank")
    ]
    results = {row[0].strip("`"): [float(cell) for cell in row[2:] if cell] for row in rows if len(row) == 6}
    assert len(results) == len(list_recipes())
    assert results["ranksort_mask_rcnn+_r50_fpn_1x_coco"] == [41.1, 66.6, 37.3, 69.4]
    assert results["ranksort_mask_rcnn_r50_fpn_1x_lvis_v1"] == [25.9, 25.2]


def test_migration_page_names_settings_that_exist() -> None:
    table = (ROOT / "docs/migration.md").read_text().partition("| mmdetection 2 | here |")[2].partition("\n\n")[0]
    here = [row.strip("|").split("|")[1] for row in table.splitlines()[2:]]
    named = set(re.findall(r"`((?:data|model|optimizer|training|evaluation)\.\w+)`", " ".join(here)))
    groups = Recipe().as_dict()
    settings = {f"{group}.{key}" for group in groups if group != "name" for key in groups[group]}
    assert len(named) > 40
    assert named <= settings


def test_numbers_of_the_olrp_page() -> None:
    page = (ROOT / "docs/olrp.md").read_text()
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    numbers = names["numbers"]
    assert isinstance(numbers, dict)
    shown = re.search(r"^# (\[.*\])$", page, re.MULTILINE)
    assert shown is not None
    metrics = ("oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn", "oLRP_threshold")
    assert json.loads(shown[1]) == [round(numbers[name], 3) for name in metrics]

    # The table of steps: LRP when the first k detections are kept.
    rows = [row.strip("| ").split(" | ") for row in page.splitlines() if re.match(r"\| \.\d \| \d ", row)]
    scores = np.array([float(row[0]) for row in rows])
    iou = np.array([0.9, 0.6, 0, 0.75, 0])
    errors, best = lrp_error(scores, iou > 0, iou == 0, iou, num_objects=4)
    for k, (row, error) in enumerate(zip(rows, errors[1:], strict=True), 1):
        tp, fp = int((iou[:k] > 0).sum()), int((iou[:k] == 0).sum())
        assert list(map(int, row[1:4])) == [tp, fp, 4 - tp]
        assert float(row[4]) == pytest.approx(sum((1 - i) / 0.5 for i in iou[:k] if i))
        assert float(row[5].rpartition("=")[2]) == pytest.approx(error)
    assert numbers["oLRP"] == pytest.approx(min(errors))
    assert best.threshold == numbers["oLRP_threshold"]
    for name in ("oLRP_loc", "oLRP_fp", "oLRP_fn"):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert float(row.strip("| ").rpartition("=")[2]) == pytest.approx(numbers[name])


def test_code_of_losses_page_runs() -> None:
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(3, 2, generator=random)
    names = {
        "logits": torch.randn(20, 4, generator=random).requires_grad_(),
        "positive": torch.tensor([3, 8, 11]),
        "labels": torch.tensor([0, 3, 1]),
        "boxes": torch.cat([corner, corner + 2], 1).requires_grad_(),
        "object_boxes": torch.tensor([[0.0, 0, 2, 2]]).repeat(3, 1),
        "ignored": None,
        "mask_logits": torch.randn(3, 7, 7, generator=random),
        "object_masks": torch.rand(3, 7, 7, generator=random) > 0.5,
    }
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/losses.md").read_text(), re.DOTALL):
        exec(code, names)
    assert names["logits"].grad.any()
    assert names["boxes"].grad.any()
    assert names["mask"] == pytest.approx((names["ranking"] + names["sorting"]).item())


def test_data_page_has_every_fault_and_its_consequences() -> None:
    page = (ROOT / "docs/data.md").read_text()
    table = page.partition("| fault |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert {row[0]: tuple(row[1:5]) for row in rows} == {kind: tuple(c) for kind, c in CONSEQUENCES.items()}
    assert len(rows) == len(CONSEQUENCES)
    assert all(len(row) == 7 and all(row) for row in rows)


def test_output_on_the_data_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square = [[100, 80, 220, 80, 220, 200, 100, 200]]
    box = {"bbox": [100, 80, 120, 120], "area": 14400, "iscrowd": 0, "segmentation": square}
    names = ["street.jpg", "phone.jpg", "export/images/park.jpg", "yard.png"]
    content = {
        "images": [{"id": n, "file_name": name, "width": 640, "height": 480} for n, name in enumerate(names, 1)],
        "categories": [{"id": 1, "name": "bicycle"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, **box},
            {"id": 2, "image_id": 1, "category_id": 2, **box, "bbox": [600, 400, 90, 60]},
            {"id": 2, "image_id": 2, "category_id": 2, **box, "area": 0},
            {"id": 4, "image_id": 3, "category_id": 2, **box, "segmentation": []},
            {"id": 5, "image_id": 3, "category_id": 1, **box, "iscrowd": 1},
            {"id": 6, "image_id": 4, "category_id": 1, **box},
        ],
    }
    monkeypatch.chdir(tmp_path)
    images, annotations = Path("my_data/images"), Path("my_data/annotations/instances_train.json")
    images.mkdir(parents=True)
    annotations.parent.mkdir()
    annotations.write_text(json.dumps(content))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    for name in ("street.jpg", "phone.jpg", "park.jpg", "yard.jpg"):
        Image.new("RGB", (640, 480)).save(images / name, exif=exif if name == "phone.jpg" else b"")
    shown = re.search(r"```text\n(.*?)\n```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    assert shown is not None
    assert str(check_data(images, annotations)) == shown[1]


def _help(*arguments: str) -> str:
    said = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(said), mock.patch.dict(os.environ, COLUMNS="500"):
        cli.main([*arguments, "--help"])
    return said.getvalue()


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Those of each command."""
    names = re.search(r"ranksort \[-h\] \{([\w,-]+)\}", _help())
    assert names is not None
    recipe = ("ranksort_atss_lite0_small",)
    helps = {name: _help(name, *recipe * (name == "train")) for name in names[1].split(",")}
    return {name: set(re.findall(r"--[a-z][\w.-]*", text)) for name, text in helps.items()}


def test_commands_have_the_options_that_pages_give_them(options: dict[str, set[str]]) -> None:
    found = Counter[str]()
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in [] if language not in ("", "bash") else block.replace("\\\n", " ").splitlines():
                command = re.match(r"(?:srun .*|.*-m )?ranksort ([a-z][\w-]*)(?: ([^#]*))?", line)
                if command is None or "{" in line:  # --data.{train,val}-images
                    continue
                assert command[1] in options, f"{page}: {line}"
                given = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", command[2] or ""))
                assert given <= options[command[1]], f"{page}: {line}"
                found[command[1]] += 1
    assert set(options) - set(found) <= {"recipes"}


OTHER_TOOLS = re.compile(
    r"--(?:rdzv|node-rank|nnodes|nproc|max-restarts|kill-on|ntasks|signal|requeue|resume-from|cfg-options|seed|eval\b|version)"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_in_the_text_exist(page: Path, options: dict[str, set[str]]) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"--data.\{train,val\}", "--data.train", text)
    named = {o for code in re.findall(r"`([^`]+)`", text) for o in re.findall(r"(?<!\S)--[a-z][\w.-]*\w", code)}
    scripts = set(re.findall(r"\"(--[a-z-]+)\"", " ".join(path.read_text() for path in ROOT.glob("benchmarks/*.py"))))
    unknown = named - set().union(*options.values()) - scripts
    assert [option for option in unknown if not OTHER_TOOLS.match(option)] == []


def test_reference_has_all_public_names() -> None:
    pages = " ".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    for package in ("", "losses", "models", "recipes", "engine", "evaluation"):
        code = (ROOT / "src/ranksort" / package / "__init__.py").read_text()  # importing all of them would take a while
        listed = re.search(r"^__all__ = (\[.*?\])", code, re.DOTALL | re.MULTILINE)
        assert listed is not None
        exported = ast.literal_eval(listed[1])
        assert [name for name in exported if not re.search(rf"\b{name}\b", pages)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_of_a_page_is_python(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(code, str(page), "exec")
