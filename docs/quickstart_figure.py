"""Draws docs/figures/quickstart.jpg: what a run of `ranksort quickstart` finds, beside what is there.

python docs/quickstart_figure.py quickstart     # the folder of the quickstart
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.io import decode_image
from torchvision.utils import draw_bounding_boxes

from ranksort import load_model

OUT = Path(__file__).parent / "figures" / "quickstart.jpg"
NUMBER, HEIGHT, MARGIN = 4, 250, 6  # pictures in a row, their height, and the space between them in pixels


def truth(image: torch.Tensor, annotations: list[dict], names: dict[int, str]) -> Image.Image:
    """The image, uint8 [3, H, W], with the boxes of its annotations."""
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [names[a["category_id"]] for a in annotations]
    drawn = draw_bounding_boxes(image, boxes, labels, "white", label_colors=["black"] * len(labels), fill_labels=True)
    return Image.fromarray(drawn.permute(1, 2, 0).numpy())


def main(folder: Path) -> None:
    """The first validation images, so that none is chosen for what is found in it, with detections from the run's best thresholds on."""
    model = load_model(max((folder / "runs").glob("*/*")))
    content = json.loads((folder / "data" / "annotations" / "instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    columns = []
    for image in content["images"][:NUMBER]:
        path = folder / "data" / "images" / image["file_name"]
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        (found,) = model.predict([path], score_threshold="lrp")
        pair = [truth(decode_image(str(path)), annotations, names), found.plot()]
        width = round(image["width"] * HEIGHT / image["height"])
        columns.append([picture.resize((width, HEIGHT), Image.Resampling.LANCZOS) for picture in pair])
    total = sum(pair[0].width + MARGIN for pair in columns) - MARGIN
    sheet = Image.new("RGB", (total, 2 * HEIGHT + MARGIN), "white")
    left = 0
    for pair in columns:
        for row, picture in enumerate(pair):
            sheet.paste(picture, (left, row * (HEIGHT + MARGIN)))
        left += pair[0].width + MARGIN
    sheet.save(OUT, quality=85)
    print(f"{OUT}: {sheet.size}, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
