#!/usr/bin/env bash
# Tool: label-studio-sdk 2.1.2, its converter's COCO format.
#
# Behaviour: for a photo stored on its side with an EXIF orientation tag (as phones write), one and the same region
# drawn once as a rectangle and once as a polygon comes out at two different places. Rectangles are scaled by the
# original_width and original_height of the result (what the annotator saw, upright), polygons by the size of the
# pixels as stored (sideways), which is also what images[].width and height say.
#
# Expected: one frame for the whole file. Label Studio stores coordinates in percent of the picture as shown, and keeps
# the shown size beside each region for turning them back into pixels, so both shapes should use it and the image entry
# should agree with them. In this file half of the objects are wrong in either reading. (The size of the image entry is
# reported upstream: HumanSignal/label-studio issue 6608, open.)
#
# Output seen: image 80x40 for a picture shown as 40x80; rectangle [10, 20, 20, 20], polygon's box [20, 10, 40, 10].
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check label-studio-sdk==2.1.2 || exit 2

cat > case.py <<'EOF'
import json
import os
import sys

from label_studio_sdk.converter import Converter
from PIL import Image, ImageOps

orientation = Image.Exif()
orientation[0x0112] = 6
Image.new("RGB", (80, 40), (90, 120, 60)).save("photo.jpg", exif=orientation)
shown = ImageOps.exif_transpose(Image.open("photo.jpg")).size
print("stored", Image.open("photo.jpg").size, "shown", shown)

config = """<View><Image name="image" value="$image"/>
<RectangleLabels name="box" toName="image"><Label value="cat"/></RectangleLabels>
<PolygonLabels name="outline" toName="image"><Label value="cat"/></PolygonLabels></View>"""
common = {"to_name": "image", "original_width": shown[0], "original_height": shown[1], "image_rotation": 0}
rectangle = {"x": 25, "y": 25, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["cat"]}
polygon = {"points": [[25, 25], [75, 25], [75, 50], [25, 50]], "closed": True, "polygonlabels": ["cat"]}
result = [
    {"id": "r", "type": "rectanglelabels", "from_name": "box", "value": rectangle, **common},
    {"id": "p", "type": "polygonlabels", "from_name": "outline", "value": polygon, **common},
]
task = {"id": 1, "data": {"image": os.path.abspath("photo.jpg")}, "annotations": [{"id": 1, "result": result}]}
with open("tasks.json", "w") as file:
    json.dump([task], file)
Converter(config, ".").convert("tasks.json", "out", "COCO", is_dir=False)

with open("out/result.json") as file:
    coco = json.load(file)
image = coco["images"][0]
boxes = [annotation["bbox"] for annotation in coco["annotations"]]
print("image entry", image["width"], "x", image["height"])
print("rectangle", boxes[0], "the same region as polygon", boxes[1])
as_stated = (image["width"], image["height"]) == (80, 40) and boxes == [[10, 20, 20, 20], [20, 10, 40, 10]]
sys.exit(0 if as_stated else 1)
EOF
env/bin/python -W ignore case.py
