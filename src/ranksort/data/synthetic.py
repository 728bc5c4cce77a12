"""The built-in data set: small synthetic pictures with exact instance masks, in COCO format, without a download.

Objects of eight classes are drawn on textured backgrounds among clutter that shares their colours, outlines and patterns, so that
neither shape nor colour alone distinguishes them. Everything is painted back to front, and a second image records the owner of each
pixel: the annotated masks are of the visible parts.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter
from pycocotools import mask as rle

from ..whole_file import replace_file

GENERATOR_VERSION = 2  # part of the stored parameters: increment it with every change that alters pictures
SUPERSAMPLING = 3
MIN_VISIBLE = 0.3  # fraction of an object that stays visible, after occlusion and image border
MIN_SIDE = 12  # pixels, of the box of the visible part
OBJECT_SIZES, CLUTTER_SIZES, CROWD_SIZES = (20, 150), (12, 110), (80, 130)  # pixels, log-uniform
OVERLAPPING = 0.2  # fraction of things placed at the edge of an object rather than anywhere
PLACEMENT_ATTEMPTS = 10
EMPTY_IMAGES, CROWD_IMAGES = 0.04, 0.06  # fractions of all images
LONG_TAIL_EXPONENT = 2.0  # the k-th class is drawn with a frequency of k^-2: 65 % down to 1 %
VAL_ID_OFFSET = 100_000  # image ids are unique over the splits, and ids of val do not depend on the size of train

BLACK, RED, BROWN = "#1c1a1e", "#d02624", "#70462a"
COLOURS = (BLACK, RED, BROWN, "white", "wheat", "gold", "darkorange", "hotpink", "mediumpurple", "royalblue", "green")
GROUNDS = (  # dark, light, and the width and height of its grains in pixels
    ("#2c5424", "#84a854", (3, 9)),  # grass
    ("#a88c62", "#e2cca0", (6, 4)),  # sand
    ("#68442a", "#ba885a", (70, 4)),  # wood
    ("#285c80", "#80bace", (28, 6)),  # water
    ("#5c5c62", "#acaaa6", (12, 12)),  # stone
    ("#46342a", "#7c624e", (5, 5)),  # soil
    ("#b0acb4", "#e8e4e2", (3, 60)),  # cloth
)


Part = tuple[str, np.ndarray]
"""A colour, and the polygon that it fills: [K, 2] (x, y) in -1..1, y downwards. `BODY`: one of several; `HOLE`: none."""
BODY, HOLE = "body", "#0000"


def radial(radii: Sequence[float] | np.ndarray) -> np.ndarray:
    """Polygon with corners at these distances from the origin, at equal angles, the first at the top."""
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.asarray(radii)[:, None]


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return radial([1.0] * 36) * (rx, ry) + (x, y)


def rectangle(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return np.array([(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)])


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([(c, s), (-s, c)])


class SyntheticClass(NamedTuple):
    id: int
    name: str
    colours: Sequence[str]  # of the body
    parts: list[Part]

    def draw(self, rng: np.random.Generator) -> list[Part]:
        body = rng.choice(self.colours)
        return [(body if colour == BODY else colour, polygon) for colour, polygon in self.parts]


LADYBIRD = [
    (BLACK, ellipse(0, -0.7, 0.42, 0.3)),
    (BODY, ellipse(0, 0.12, 0.86, 0.86)),
    (BLACK, rectangle(0, 0.12, 0.035, 0.84)),
    *((BLACK, ellipse(x * s, y, 0.17, 0.17)) for x, y in ((0.4, -0.2), (0.46, 0.3), (0.22, 0.66)) for s in (-1, 1)),
]
LEAF = [
    (BODY, rectangle(0, 0.75, 0.06, 0.25)),
    (BODY, ellipse(0, -0.15, 0.52, 0.8)),
    ("wheat", rectangle(0, -0.15, 0.045, 0.72)),
    *(("wheat", np.array([(0, y + 0.2), (x, y - 0.15), (0, y + 0.1)])) for y in (-0.4, 0, 0.3) for x in (-0.35, 0.35)),
]
FISH = [
    (BODY, np.array([(-0.4, 0), (-1, -0.55), (-0.82, 0), (-1, 0.55)])),
    (BODY, np.array([(-0.25, -0.35), (0.1, -0.8), (0.5, -0.35)])),
    (BODY, ellipse(0.2, 0, 0.8, 0.52)),
    *(("white", rectangle(x, 0, 0.08, 0.44)) for x in (-0.15, 0.2)),
    ("white", ellipse(0.62, -0.12, 0.15, 0.15)),
    (BLACK, ellipse(0.65, -0.12, 0.08, 0.08)),
]
MUSHROOM = [
    ("wheat", np.array([(-0.2, 0), (0.2, 0), (0.32, 0.95), (-0.32, 0.95)])),
    (BODY, np.minimum(ellipse(0, 0.15, 0.98, 1.0), (1.0, 0.15))),
    *(("white", ellipse(x, y, 0.14, 0.14)) for x, y in ((-0.6, -0.1), (-0.25, -0.5), (0, 0), (0.3, -0.5), (0.6, -0.1))),
]
FLOWER = [
    *((BODY, turned(ellipse(0, -0.62, 0.3, 0.38), k * np.pi / 3)) for k in range(6)),
    ("gold", ellipse(0, 0, 0.34, 0.34)),
    *((BROWN, ellipse(x, y, 0.06, 0.06)) for x, y in radial([0.18] * 6)),
]
BEE = [
    (BLACK, ellipse(0, -0.68, 0.34, 0.3)),
    (BODY, ellipse(0, 0.18, 0.52, 0.8)),
    *((BLACK, rectangle(0, y, width, 0.1)) for y, width in ((-0.2, 0.43), (0.2, 0.5), (0.6, 0.41))),
    *(("white", turned(ellipse(0.55 * side, -0.3, 0.42, 0.24), 0.25 * side)) for side in (-1, 1)),
]
STARFISH = [
    (BODY, radial([1.0, 0.42] * 5)),
    *(("wheat", ellipse(x, y, 0.1, 0.1)) for r in (0, 0.35, 0.6, 0.8) for x, y in radial([r] * 5)),
]
DOUGHNUT = [
    ("peru", ellipse(0, 0, 1, 1)),
    (BODY, radial([0.94, 0.86] * 12)),
    *((COLOURS[3 + k % 3], turned(rectangle(0, 0, 0.09, 0.04), k) + p) for k, p in enumerate(radial([0.55, 0.75] * 8))),
    (HOLE, ellipse(0, 0, 0.36, 0.36)),
]

CLASSES = (  # most frequent first, for the long tail; the ids have gaps, as in COCO
    SyntheticClass(1, "ladybird", [RED], LADYBIRD),
    SyntheticClass(2, "leaf", ["green", "goldenrod"], LEAF),
    SyntheticClass(3, "fish", ["royalblue", "darkorange", "mediumpurple"], FISH),
    SyntheticClass(5, "mushroom", [RED, BROWN], MUSHROOM),
    SyntheticClass(8, "flower", ["hotpink", "white", "mediumpurple"], FLOWER),
    SyntheticClass(13, "bee", ["gold"], BEE),
    SyntheticClass(21, "starfish", ["darkorange", RED], STARFISH),
    SyntheticClass(34, "doughnut", ["hotpink", BROWN], DOUGHNUT),
)


def draw_clutter(rng: np.random.Generator) -> list[Part]:
    """A shape without a class, plain or with stripes, spots or a hole."""
    outlines = (
        ellipse(0, 0, 1, 1),
        radial([1.0] * int(rng.integers(3, 7))),
        radial([1.0, 0.55] * int(rng.choice([4, 7]))),
        rectangle(0, 0, 1, rng.uniform(0.12, 0.6)),
    )
    (outline, pattern), grid = rng.choice(COLOURS, 2), (-0.36, 0, 0.36)
    patterns: tuple[list[Part], ...] = (
        [],
        [(pattern, rectangle(x, 0, 0.1, 0.5)) for x in grid],
        [(pattern, ellipse(x, y, 0.13, 0.13)) for x in grid for y in grid],
        [(HOLE, ellipse(0, 0, 0.4, 0.4))],
    )
    return [(outline, outlines[rng.integers(len(outlines))]), *patterns[rng.integers(len(patterns))]]


def draw_crowd(rng: np.random.Generator, kind: SyntheticClass) -> list[Part]:
    """A crowd of 12 to 30 things of one class, each too small to be an object."""
    parts: list[Part] = []
    for _ in range(rng.integers(12, 31)):
        angle, place = rng.uniform(0, 2 * np.pi), rng.uniform(-0.75, 0.75, 2)
        parts += [(colour, turned(polygon, angle) * 0.1 + place) for colour, polygon in kind.draw(rng)]
    return parts


class Thing(NamedTuple):
    """Something to paint."""

    category_id: int  # 0: clutter
    draw: Callable[[np.random.Generator], list[Part]]
    sizes: tuple[int, int]
    crowd: bool = False


def render(parts: list[Part], size: float, angle: float) -> Image.Image:
    """Draw `parts` rotated by `angle` and `size` pixels large, with margins; RGBA."""
    half = SUPERSAMPLING * int(0.65 * size)
    picture = Image.new("RGBA", (2 * half, 2 * half))
    pen = ImageDraw.Draw(picture)
    for colour, polygon in parts:
        # Round before rasterising, so that differences in the last bit of a sine do not move an edge.
        corners = np.rint(turned(polygon, angle) * SUPERSAMPLING * size / 2).astype(int) + half
        edge = tuple(channel // 2 for channel in ImageColor.getrgb(colour))
        pen.polygon(corners.ravel().tolist(), colour, edge, width=SUPERSAMPLING - 1)
    return picture.reduce(SUPERSAMPLING)


def paint_ground(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth noise at two scales between the colours of a background."""
    dark, light, grain = GROUNDS[rng.integers(len(GROUNDS))]
    fine, coarse = (
        Image.fromarray(rng.integers(0, 256, (size[1] // y + 2, size[0] // x + 2), dtype=np.uint8)).resize(size)
        for x, y in (grain, (60, 60))
    )
    return Image.composite(Image.new("RGB", size, light), Image.new("RGB", size, dark), Image.blend(fine, coarse, 0.5))


def lit(picture: Image.Image, brightness: np.ndarray, slope: Sequence[float], grain: Any = 0) -> Image.Image:
    """Multiply by `brightness`, which grows by the fraction `slope` from the centre to the right and bottom, and add grain."""
    x, y = np.linspace(-1, 1, picture.width), np.linspace(-1, 1, picture.height)[:, None]
    colours = np.asarray(picture.convert("RGB")) * brightness * (1 + slope[0] * x + slope[1] * y)[..., None] + grain
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


def visible_parts(owner: Image.Image, count: int) -> list[dict[str, Any]]:
    """The RLE of each of `count` objects; object k owns the pixels of value k + 1."""
    return [rle.encode(np.asfortranarray(np.asarray(owner) == k + 1, dtype=np.uint8)) for k in range(count)]


def compose(
    rng: np.random.Generator, image_size: tuple[int, int], frequencies: np.ndarray
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Compose one picture of objects and clutter in random depth order; it is fully determined by `rng`.

    Returns:
        The picture, and COCO annotations of the visible parts of its objects, without ids.
    """
    width, height = (int(side * rng.uniform(0.92, 1.08)) for side in image_size)
    size = (height, width) if rng.random() < 1 / 3 else (width, height)
    things = [Thing(0, draw_clutter, CLUTTER_SIZES)] * int(rng.integers(4, 10))
    if rng.random() >= EMPTY_IMAGES:
        kinds = [CLASSES[k] for k in rng.choice(len(CLASSES), rng.integers(3, 11), p=frequencies)]
        things += [Thing(kind.id, kind.draw, OBJECT_SIZES) for kind in kinds]
        things = [things[k] for k in rng.permutation(len(things))]
        if rng.random() < CROWD_IMAGES:
            things.append(Thing(kinds[0].id, partial(draw_crowd, kind=kinds[0]), CROWD_SIZES, crowd=True))

    picture, light = paint_ground(rng, size), rng.uniform(-1, 1)  # light comes from above, and from this side
    owner = Image.new("L", size)
    objects: list[Thing] = []
    areas: list[int] = []  # of their whole outlines, in pixels
    for thing in things:
        smallest, largest = thing.sizes
        for _ in range(PLACEMENT_ATTEMPTS):
            length, angle = smallest * (largest / smallest) ** rng.random(), rng.uniform(0, 2 * np.pi)
            drawing = render(thing.draw(rng), length, angle)
            centre = rng.uniform(0.04, 0.96, 2) * size
            if objects and rng.random() < OVERLAPPING:
                centre = rng.choice(np.argwhere(np.asarray(owner)))[::-1] + turned(np.array([length / 2, 0]), angle)
            left, top = (int(c - drawing.width / 2) for c in centre)
            alpha = drawing.getchannel("A")
            outline = alpha.point([0] * 128 + [255] * 128)
            is_object = thing.category_id > 0
            new_areas = [*areas, outline.histogram()[255]] if is_object else areas
            new_owner = owner.copy()
            new_owner.paste(len(new_areas) if is_object else 0, (left, top), outline)
            visible = zip(visible_parts(new_owner, len(new_areas)), new_areas, strict=True)
            if any(rle.area(v) < MIN_VISIBLE * area or min(rle.toBbox(v)[2:]) < MIN_SIDE for v, area in visible):
                continue
            owner, areas, objects = new_owner, new_areas, [*objects, thing] if is_object else objects
            shadow = alpha.filter(ImageFilter.BoxBlur(2)).point(lambda value: value // 2)
            picture.paste((0, 0, 0), (left - round(2 * light), top + 2), shadow)
            tint = rng.uniform(0.85, 1.12) * rng.uniform(0.93, 1.07, 3)
            picture.paste(lit(drawing, tint, (0.15 * light, -0.15)), (left, top), alpha)
            break
    annotations = [
        {
            "category_id": thing.category_id,
            "bbox": rle.toBbox(mask).tolist(),
            "area": int(rle.area(mask)),
            "iscrowd": int(thing.crowd),
            "segmentation": {"size": mask["size"], "counts": mask["counts"].decode("ascii")},
        }
        for thing, mask in zip(objects, visible_parts(owner, len(objects)), strict=True)
    ]
    brightness, grain = rng.uniform(0.8, 1.12) * rng.uniform(0.92, 1.08, 3), rng.integers(-7, 8, (*size[::-1], 1))
    return lit(picture, brightness, rng.uniform(-0.2, 0.2, 2).tolist(), grain), annotations


def write_synthetic_dataset(
    root: Path,
    *,
    train_images: int = 400,
    val_images: int = 100,
    image_size: tuple[int, int] = (320, 256),
    seed: int = 0,
    long_tail: bool = False,
) -> Path:
    """Write a small instance segmentation data set in COCO format; equal arguments give equal data.

    Pictures have up to 10 objects of 8 classes, 12 to 155 pixels large, partly hidden, among clutter; a few have no objects, a few a
    crowd region. Picture k of a split depends neither on the number of pictures nor on the other split.

    Args:
        root: folder for `annotations/instances_{train,val}.json` and `images/*.jpg`. If it already has this data set, nothing is
            written; after an interruption, it is written again.
        train_images: number of training pictures.
        val_images: number of validation pictures.
        image_size: long and short side in pixels; pictures vary by 8 % around them, a third are portraits.
        seed: random seed.
        long_tail: whether class frequencies fall like a power law (65 % down to 1 %) instead of being equal.

    Returns:
        `root`.

    Raises:
        ValueError: `root` has the annotations of another data set.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ranksort.data.synthetic import write_synthetic_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_synthetic_dataset(Path(folder), train_images=2, val_images=1)
        ...     [path.name for path in sorted(root.rglob("*.*"))]
        ['instances_train.json', 'instances_val.json', 'train_00000.jpg', 'train_00001.jpg', 'val_00000.jpg']
    """
    root, counts = Path(root), {"train": train_images, "val": val_images}
    parameters = {"version": GENERATOR_VERSION, "images": counts, "image_size": list(image_size)}
    parameters |= {"seed": seed, "long_tail": long_tail}
    files = {split: root / "annotations" / f"instances_{split}.json" for split in counts}
    complete = [holds(file, parameters, root / "images") for file in files.values()]
    if all(complete):
        return root
    (root / "images").mkdir(parents=True, exist_ok=True)
    frequencies = np.arange(1, len(CLASSES) + 1) ** (-LONG_TAIL_EXPONENT if long_tail else 0.0)
    for split, file in files.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(counts[split]):
            number = index + (VAL_ID_OFFSET if split == "val" else 0)
            # A random stream for each picture, keyed by its unique number.
            rng = np.random.Generator(np.random.PCG64([seed, number]))
            picture, objects = compose(rng, image_size, frequencies / frequencies.sum())
            name = f"{split}_{index:05d}.jpg"
            # Full-resolution colour: decoders differ in how they upsample it, and small objects depend on it.
            picture.save(root / "images" / name, quality=95, subsampling=0)
            images.append({"id": number + 1, "file_name": name, "width": picture.width, "height": picture.height})
            annotations += [{"id": len(annotations) + i, "image_id": number + 1} | o for i, o in enumerate(objects, 1)]
        content = {
            "info": {"description": f"ranksort synthetic data set, {split}", "parameters": parameters},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": kind.id, "name": kind.name} for kind in CLASSES],
        }
        # Last and atomically: if there is an annotation file, its pictures are complete.
        replace_file(file, json.dumps(content).encode())
    return root


def holds(annotations: Path, parameters: dict[str, Any], images: Path) -> bool:
    """Whether this annotation file exists with all its pictures; raises ValueError if its parameters differ."""
    if not annotations.exists():
        return False
    try:
        content = json.loads(annotations.read_text())
        found = content["info"]["parameters"]
    except (ValueError, KeyError, TypeError):
        found = "another data set"
    if found != parameters:
        raise ValueError(
            f"{annotations} contains {found}, not the synthetic data set {parameters}: choose another folder or remove it."
        )
    return all((images / image["file_name"]).exists() for image in content["images"])
