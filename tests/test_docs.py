"""What docs/ says is there, and runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from ranksort.data.check import check_data
from ranksort.data.faults import CONSEQUENCES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", [*ROOT.glob("docs/*.md"), ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


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
