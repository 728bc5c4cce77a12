"""Kinds of errors and what they cost, detection by detection, as TIDE's section 2.2 and 2.3 have them."""

from typing import Any

from .lrp import box_iou

LOCALIZATION, CLASS, DUPLICATE, BACKGROUND, BOTH, MISSED = range(6)


def average_precision(detections: list[tuple[float, int, bool]], num_objects: int) -> float:
    """Of (score, place, is it right), where equal scores follow by place: the mean of the highest precisions at recall 0, .01, ..., 1."""
    true, points = 0, []
    for n, (_, _, right) in enumerate(sorted(detections, key=lambda row: (-row[0], row[1])), 1):
        true += right
        points.append((true / num_objects, true / n))
    reached = [[precision for recall, precision in points if recall >= r / 100] for r in range(101)]
    return sum(max(precisions, default=0) for precisions in reached) / 101


def find_errors(truth: dict[str, Any], found: list[dict[str, Any]], lvis: bool = False) -> dict[str, Any]:
    """`kinds` by index into `found`; `missed` indices into the annotations; `ap` and `costs` (of each kind) by category id."""
    objects = truth["annotations"]
    images = {image["id"]: image for image in truth["images"]}
    order = sorted(
        range(len(found)), key=lambda n: (found[n]["category_id"], -found[n]["score"], found[n]["image_id"], n)
    )
    place = {n: k for k, n in enumerate(order)}
    taken: dict[int, int] = {}  # object: detection
    kinds: dict[int, int] = {}
    about: dict[int, int] = {}
    right = set()
    for n in order:
        row, image = found[n], images[found[n]["image_id"]]
        here = [k for k, o in enumerate(objects) if o["image_id"] == row["image_id"]]
        own = [k for k in here if objects[k]["category_id"] == row["category_id"]]
        if lvis and not own and row["category_id"] not in image["neg_category_ids"]:
            continue
        overlap = {k: box_iou(row, objects[k]) for k in here if not objects[k]["iscrowd"]}
        free = [k for k in own if k in overlap and k not in taken and overlap[k] >= 0.5]
        if free:
            best = max(free, key=lambda k: (overlap[k], k))
            taken[best] = n
            right.add(n)
            continue
        if any(objects[k]["iscrowd"] and box_iou(row, objects[k]) >= 0.5 for k in own):
            continue
        if lvis and row["category_id"] in image["not_exhaustive_category_ids"]:
            continue
        nearest = max((overlap[k], k) for k in [*own] if k in overlap) if set(own) & overlap.keys() else (0, -1)
        others = [(overlap[k], -k) for k in overlap if k not in own]
        other = max(others, default=(0, 1))
        if 0.1 <= nearest[0] < 0.5:
            kinds[n], about[n] = LOCALIZATION, nearest[1]
        elif other[0] >= 0.5:
            kinds[n], about[n] = CLASS, -other[1]
        elif nearest[0] >= 0.5:
            kinds[n], about[n] = DUPLICATE, nearest[1]
        elif other[0] < 0.1:
            kinds[n] = BACKGROUND
        else:
            kinds[n], about[n] = BOTH, -other[1]

    fixable = [n for n in order if kinds.get(n) in (LOCALIZATION, CLASS) and about[n] not in taken]
    fixed: dict[int, int] = {}  # object: detection
    for n in sorted(fixable, key=lambda n: (-found[n]["score"], place[n])):
        fixed.setdefault(about[n], n)
    missed = [k for k, o in enumerate(objects) if not o["iscrowd"] and k not in taken and k not in fixed]

    def ap(without: int | None) -> dict[Any, float]:
        rows: dict[Any, list[tuple[float, int, bool]]] = {}
        for n in order:
            category, is_right = found[n]["category_id"], n in right
            if n not in kinds and not is_right:
                continue
            if n in kinds and kinds[n] == without:
                if n not in fixed.values():
                    continue
                category, is_right = objects[about[n]]["category_id"], True
            rows.setdefault(category, []).append((found[n]["score"], place[n], is_right))
        values = {}
        for category in {o["category_id"] for o in objects if not o["iscrowd"]}:
            of_class = [k for k, o in enumerate(objects) if o["category_id"] == category and not o["iscrowd"]]
            left = [k for k in of_class if without != MISSED or k not in missed]
            values[category] = average_precision(rows.get(category, []), len(left)) if left else 1.0
        return values

    before = ap(None)
    costs = [{c: value - before[c] for c, value in ap(kind).items()} for kind in range(6)]
    return {"kinds": kinds, "about": about, "missed": missed, "ap": before, "costs": costs}
