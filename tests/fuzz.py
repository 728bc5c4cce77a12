"""Damaged and hostile files, given to the commands that read them: each has to work, or to end with one sentence and exit code 2.

python tests/fuzz.py --seconds 600 --seed 1          # all kinds in turn; --kinds voc images   some of them

Beside that, no case may take too much time or memory, change any file but those below its own output, write over what is there, or run
code from a file. What breaks a rule is printed with the seed that makes it again, and kept as an archive; the exit code is 1 then.

The good files are made here. Each case copies those of its kind, spoils one of them, and runs one command in a forked process.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CPU_SECONDS, EXTRA_BYTES, FILE_BYTES = 20, 1 << 30, 64 << 20
NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    1e300,
    10**30,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    "",
    "x",
    "0",
    "\ud800",
    "a\nb",
    "../../x",
]
NASTY += [
    "$(touch ran)",
    "/etc/passwd",
    "con\0",
    [],
    [1],
    {},
    {"id": 1},
    [[]],
    [1e9] * 4,
    [0, 0, -5, 5],
    "犬" * 300,
    [[[[[[]]]]]],
]
Case = tuple[list[str], str]  # arguments of ranksort, and the file that was spoiled


# ---- good files


def write_good(folder: Path) -> None:
    """Data in every form, results, a calibration and a detector."""
    import torch
    from PIL import Image

    from ranksort.checkpoints import save_model
    from ranksort.cli import main
    from ranksort.data.coco_columns import Category
    from ranksort.data.synthetic import write_synthetic_dataset
    from ranksort.recipes import create_model, get_recipe

    write_synthetic_dataset(folder / "coco", train_images=3, val_images=3, image_size=(64, 48), seed=0)
    for part in ("train", "val"):  # of one word, in a fixed order
        path = folder / "coco" / "annotations" / f"instances_{part}.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content))
    rng = random.Random(0)
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": rng.random()}
        for a in content["annotations"]
    ]
    (folder / "results").mkdir()
    truth = str(shutil.copy(path, folder / "results" / "truth.json"))
    for name in ("a", "b"):
        (folder / "results" / f"{name}.json").write_text(json.dumps(results))
    calibration = str(folder / "results" / "calibration.json")
    with contextlib.redirect_stdout(io.StringIO()):
        main(["calibrate", truth, str(folder / "results" / "a.json"), "--out", calibration])

    names = [image["file_name"] for image in content["images"]]
    (folder / "yolo" / "images").mkdir(parents=True)
    (folder / "yolo" / "labels").mkdir()
    (folder / "voc" / "JPEGImages").mkdir(parents=True)
    (folder / "voc" / "Annotations").mkdir()
    (folder / "yolo" / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [ball, box]\n")
    (folder / "images").mkdir()
    for number, name in enumerate(names):
        for place in ("yolo/images", "voc/JPEGImages", "images"):
            shutil.copy(folder / "coco" / "images" / name, folder / place / name)
        stem = Path(name).stem
        (folder / "yolo" / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.4 0.4\n1 0.2 0.2 0.1 0.3 0.3 0.1\n")
        box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        (folder / "voc" / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{name}</filename>{size}<object><name>ball</name>{box}</object></annotation>"
        )
        kind = ("png", "gif", "tiff", "bmp", "webp")[number % 5]
        Image.open(folder / "images" / name).save(folder / "images" / f"{stem}_.{kind}")

    (folder / "model").mkdir()
    torch.manual_seed(0)
    recipe = get_recipe("ranksort_atss_lite0_small")
    recipe.model.backbone, recipe.model.pretrained_backbone, recipe.model.channels = "timm/lcnet_035", False, 64
    recipe.model.head_convs, recipe.model.min_size, recipe.model.max_size, recipe.model.num_classes = 0, 64, 96, 2
    model = create_model(recipe)
    categories = [Category(1, "ball"), Category(2, "box")]
    save_model(folder / "model" / "model.safetensors", model, recipe, categories)


# ---- spoiling


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cuts, flips, doubles, drops and adds bytes."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        place, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 8, 100, 5000])
        match rng.randrange(6):
            case 0:
                del data[place:]
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = rng.randbytes(length)
            case 3:
                data[place : place + length] = rng.randbytes(min(length, len(data) - place))
            case 4:
                data[place:place] = data[place : place + length] * rng.choice([1, 50])
            case 5 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


def places(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value of JSON content."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*way, key)
        yield from places(value, (*way, key))


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    """Other values, missing and repeated parts, in what remains JSON; seldom not even that."""
    choice = rng.random()
    if choice < 0.15:
        return spoil_bytes(content, rng)
    if choice < 0.2:
        deep = 10 ** rng.choice([3, 5, 6])
        return rng.choice(
            [b"[" * deep, b'{"a":' * deep, b"[" * deep + b"]" * deep, b"\xef\xbb\xbf" + content, b"1" * deep]
        )
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        ways = list(places(value))
        if not ways:
            break
        *way, key = rng.choice(ways)
        inner = value
        for step in way:
            inner = inner[step]
        match rng.randrange(5):
            case 0:
                del inner[key]
            case 1 if isinstance(inner, list):
                inner[key:key] = [inner[key]] * rng.choice([1, 3])
            case 2 if isinstance(inner[key], (int, float)):
                inner[key] = inner[key] * rng.choice([-1, 0, 1e-9, 1e9, 10**20])
            case _:
                inner[key] = rng.choice(NASTY)
    text = json.dumps(value)
    if rng.random() < 0.1:  # a key twice
        text = text.replace('{"', '{"id": 7, "', 1)
    return text.encode("utf-8", "surrogatepass")


def spoil_text(content: bytes, rng: random.Random) -> bytes:
    """Numbers and words of a text file replaced, or its bytes."""
    if rng.random() < 0.4:
        return spoil_bytes(content, rng)
    text = content.decode()
    words = text.replace("<", " <").replace(">", "> ").split()
    old = rng.choice([w for w in words if w.strip("<>/")])
    new = str(
        rng.choice(
            [
                *NASTY,
                "-5",
                "nan",
                "1e400",
                "0x10",
                "9" * 4000,
                "&amp;",
                "<a>",
                "&x;",
                "../../../x.jpg",
                "é",
                "1,5",
                "!!python/object:os.system",
            ]
        )
    )
    if rng.random() < 0.1:
        entities = "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 10))
        return f'<!DOCTYPE a [<!ENTITY x0 "ha">{entities}]>{text.replace(old, "&x9;")}'.encode()
    return text.replace(old, new, rng.choice([1, -1])).encode("utf-8", "surrogatepass")


class Runs:
    """What is run when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


CANARY = "ran_code"


def spoil_weights(content: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file, its bytes, or a pickle in its place."""
    choice = rng.random()
    if choice < 0.1:
        return pickle.dumps({"state_dict": Runs()})
    if choice < 0.5:
        length = int.from_bytes(content[:8], "little")
        header = spoil_json(content[8 : 8 + length], rng)
        stated = rng.choice([len(header)] * 4 + [0, 1, 2**40, 2**63 + 5])
        return stated.to_bytes(8, "little") + header + content[8 + length :]
    return spoil_bytes(content, rng)


# ---- cases: each spoils a copy of the good files of its kind and names the command


def _change(path: Path, spoil: Callable[[bytes, random.Random], bytes], rng: random.Random) -> str:
    path.write_bytes(spoil(path.read_bytes(), rng))
    return path.name


def annotations(folder: Path, rng: random.Random) -> Case:
    path = folder / "annotations" / "instances_val.json"
    name = _change(path, spoil_json, rng)
    if rng.random() < 0.5:
        return ["check-data", str(folder / "images"), str(path)], name
    detections = folder / "detections.json"
    detections.write_text("[]")
    return ["evaluate", str(path), str(detections), "--out", str(folder / "out")], name


def training(folder: Path, rng: random.Random) -> Case:
    """Only as far as the data: no such detector can be built."""
    name = _change(folder / "annotations" / "instances_train.json", spoil_json, rng)
    return [
        "train",
        "ranksort_atss_lite0_small",
        "--data.root",
        str(folder),
        "--model.channels",
        "65",
        "--training.output",
        str(folder / "out"),
    ], name


def results(folder: Path, rng: random.Random) -> Case:
    truth, a, b, out = (str(folder / name) for name in ("truth.json", "a.json", "b.json", "out"))
    name = _change(Path(rng.choice([a, a, truth])), spoil_json, rng)
    commands = [["evaluate", truth, a, "--out", out], ["merge", a, b, "--out", f"{out}/merged.json"]]
    commands += [["calibrate", truth, a, "--out", f"{out}/new.json"]]
    return rng.choice(commands), name


def calibrations(folder: Path, rng: random.Random) -> Case:
    calibration = folder / "calibration.json"
    name = _change(calibration, spoil_json, rng)
    return [
        "apply-calibration",
        str(calibration),
        str(folder / "a.json"),
        "--out",
        str(folder / "out" / "new.json"),
    ], name


def images(folder: Path, rng: random.Random) -> Case:
    arguments = ["predict", str(folder / "model.safetensors"), str(folder), "--out", str(folder / "out")]
    if rng.random() < 0.3:
        return arguments, _strange_file(folder, rng)
    return arguments, _change(
        rng.choice(sorted(p for p in folder.iterdir() if p.suffix != ".safetensors")), spoil_bytes, rng
    )


def _strange_file(folder: Path, rng: random.Random) -> str:
    """Something else than a file under an image's name, or one that states a size which it cannot have."""
    path = folder / f"strange.{rng.choice(['jpg', 'png', 'tiff'])}"
    match rng.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(path)
        case 2:
            path.mkdir()
        case 3:
            path.touch()
        case 4:
            path.symlink_to("/dev/zero")
        case 5:  # a PNG of up to 10^10 pixels in a few bytes
            side = rng.choice([9000, 20000, 60000, 100000, 2**31 - 1])
            header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
            data = b"IDAT" + zlib.compress(bytes(10**6))
            chunks = (
                (len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, data, b"IEND")
            )
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path.name


def weights(folder: Path, rng: random.Random) -> Case:
    model = folder / "model.safetensors"
    name = _change(model, spoil_weights, rng)
    if rng.random() < 0.3:
        model = model.rename(folder / rng.choice(["model.ckpt", "model.pth"]))
    image = next(p for p in sorted(folder.iterdir()) if p.suffix == ".jpg")
    return ["predict", str(model), str(image), "--out", str(folder / "out")], name


def yolo(folder: Path, rng: random.Random) -> Case:
    name = _change(rng.choice([folder / "data.yaml", *sorted((folder / "labels").iterdir())]), spoil_text, rng)
    return ["import-data", str(folder), "--out", str(folder / "out" / "data")], name


def voc(folder: Path, rng: random.Random) -> Case:
    name = _change(rng.choice(sorted((folder / "Annotations").iterdir())), spoil_text, rng)
    return ["import-data", str(folder), "--out", str(folder / "out" / "data")], name


KINDS: dict[
    str, tuple[Callable[[Path, random.Random], Case], tuple[str, ...]]
] = {  # what spoils, and which good folders it needs
    "annotations": (annotations, ("coco",)),
    "training": (training, ("coco",)),
    "results": (results, ("results",)),
    "calibrations": (calibrations, ("results",)),
    "images": (images, ("images", "model")),
    "weights": (weights, ("images", "model")),
    "yolo": (yolo, ("yolo",)),
    "voc": (voc, ("voc",)),
}


# ---- running


def snapshot(folder: Path) -> dict[str, str]:
    """The content of all files but those below `out`, and of what lay there before."""
    kept = "out/kept.json", "out/data/kept.txt"
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    names = {p: str(p.relative_to(folder)) for p in files}
    return {
        n: hashlib.sha256(p.read_bytes()).hexdigest() for p, n in names.items() if n in kept or not n.startswith("out/")
    }


def run(arguments: list[str], folder: Path) -> tuple[int, str, float, int]:
    """Exit code (minus a signal's number), what went to stderr, CPU seconds and peak memory of `ranksort ARGUMENTS`, in `folder`."""
    log = folder.parent / f"{folder.name}.err"
    process = os.fork()
    if process == 0:
        code = 99
        try:
            os.chdir(folder)
            signal.alarm(30 * CPU_SECONDS)  # one that waits for ever takes no time of the CPU
            resource.setrlimit(resource.RLIMIT_CPU, (3 * CPU_SECONDS, 3 * CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
            with log.open("w", encoding="utf-8", errors="replace") as errors, open(os.devnull, "w") as nothing:
                os.dup2(errors.fileno(), 2)
                os.dup2(nothing.fileno(), 1)
                sys.stdout, sys.stderr = nothing, errors
                try:
                    from ranksort.cli import main

                    main(arguments)
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else int(bool(end.code))
                except BaseException:
                    traceback.print_exc(file=errors)
                    code = 98
                errors.flush()
        finally:
            os._exit(code)
    _, status, used = os.wait4(process, 0)
    text = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    return os.waitstatus_to_exitcode(status), text, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def broken_rules(kind: str, good: Path, folder: Path, seed: str) -> tuple[list[str], list[str], int, str]:
    """Runs the case of a seed; which rules it breaks, its command, its exit code and what it said."""
    rng = random.Random(seed)
    prepare, needed = KINDS[kind]
    for name in needed:
        shutil.copytree(good / name, folder, dirs_exist_ok=True)
    arguments, _ = prepare(folder, rng)
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "kept.json").write_text("of somebody else")
    before, base = snapshot(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outside = set(folder.parent.iterdir())
    code, said, seconds, memory = run(arguments, folder)
    rules = []
    # 1: check-data has found faults, which it lists
    if code not in (0, 2) and not (code == 1 and arguments[0] == "check-data"):
        rules.append(f"exit code {code}")
    if "Traceback" in said:
        rules.append("a traceback")
    last = [line for line in said.splitlines() if line.startswith("ranksort: ")]
    if code == 2 and (len(last) != 1 or len(said) > 5000):
        rules.append("not one sentence")
    if seconds > CPU_SECONDS:
        rules.append(f"{seconds:.0f} s")
    if memory > base + EXTRA_BYTES:
        rules.append(f"{(memory - base) >> 20} MB")
    after = snapshot(folder)
    if (folder / CANARY).exists() or (folder / "ran").exists():
        rules.append("code was run")
    elif after != before:
        rules.append(f"changed {sorted(set(after.items()) ^ set(before.items()))[0][0]}")
    if set(folder.parent.iterdir()) != outside:
        rules.append("wrote outside")
    return rules, arguments, code, said


def fuzz(kinds: list[str], seconds: float, seed: int, most: int, keep: Path, stdout: Any = sys.stdout) -> int:
    """Runs cases of the kinds in turn until the time is over or there were so many; returns how many broke a rule."""
    failures, cases, refused, start = 0, 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        good = Path(place) / "good"
        good.mkdir()
        write_good(good)
        while time.monotonic() - start < seconds and cases < most:
            kind = kinds[cases % len(kinds)]
            of_case = f"{kind}-{seed}-{cases // len(kinds)}"
            folder = Path(place) / of_case
            folder.mkdir()
            rules, arguments, code, said = broken_rules(kind, good, folder, of_case)
            cases, refused = cases + 1, refused + (code == 2)
            if rules:
                failures += 1
                keep.mkdir(parents=True, exist_ok=True)
                shutil.make_archive(str(keep / of_case), "tar", folder)
                shown = " ".join(arguments).replace(f"{folder}/", "")
                print(
                    f"{of_case}: {', '.join(rules)}: ranksort {shown}\n{said.strip()[-1500:]}\n",
                    file=stdout,
                    flush=True,
                )
            shutil.rmtree(folder)
    print(f"{cases} cases, {refused} refused, {failures} broke a rule", file=stdout, flush=True)
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=10**9, help="cases")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="folder for archives of the cases that broke a rule"
    )
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # the process forks
    sys.exit(bool(fuzz(options.kinds, options.seconds, options.seed, options.most, options.keep)))


if __name__ == "__main__":
    main()
