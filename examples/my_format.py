"""Your own data format: CSV files with one object per line, file,class,x1,y1,x2,y2 in pixels, and no header, beside a folder `images`.

ranksort import-data FOLDER --reader examples/my_format.py:read_csv --out my_data
"""

import csv
from collections import defaultdict
from functools import partial
from pathlib import Path

from ranksort.data.coco_columns import Category
from ranksort.data.images import stated_sizes
from ranksort.data.importers.dataset import ImportedDataset, ImportedImage, new_object

Rows = dict[Path, list[tuple[int, list[str]]]]  # of an image: numbers of its lines, and what they say


def read_csv(folder: Path) -> ImportedDataset:
    """Read `train.csv`, and `val.csv` and `test.csv` if they exist."""
    dataset = ImportedDataset(f"CSV data set {folder}")
    for split in ("train", "val", "test"):
        file = folder / f"{split}.csv"
        if file.is_file():
            rows: Rows = defaultdict(list)
            with file.open(newline="", encoding="utf-8") as lines:
                for number, row in enumerate(csv.reader(lines), 1):
                    if row:
                        rows[folder / "images" / row[0]].append((number, row))
            dataset.read([(split, path) for path in rows], partial(read_image, file, rows))
    images = [image for split in dataset.splits.values() for image in split]
    names = sorted({str(entry.label) for image in images for entry in image.objects})
    dataset.categories = {name: Category(number, name) for number, name in enumerate(names, 1)}
    return dataset


def read_image(file: Path, rows: Rows, path: Path) -> ImportedImage:
    """Read an image and its lines. An image for which this raises ValueError is left out, and the report says why."""
    width, height = stated_sizes(path)[0]  # upright, as viewers show it
    image = ImportedImage(path, width, height)
    for number, row in rows[path]:
        where = f"{file}, line {number}"
        try:
            _, name, *corners = row
            x1, y1, x2, y2 = map(float, corners)
        except ValueError:
            raise ValueError(f"{where}: it must be file,class,x1,y1,x2,y2, got {','.join(row)}") from None
        if found := new_object(name, (x1, y1, x2, y2)):
            image.objects.append(found)
        else:
            image.remarks.append(("objects without area, left out", where))
    return image
