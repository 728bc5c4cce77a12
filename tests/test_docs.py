"""What docs/ says is there, and runs."""

import re
from pathlib import Path

import pytest
import torch

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
