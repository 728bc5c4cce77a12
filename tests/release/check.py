"""Checks the sdist and the wheel as users get them, in empty virtual environments: `make release-check`.

With the oldest versions that pyproject.toml allows and with the newest that pip finds: the losses where torch alone is installed, then
the toolbox with its extras, then tests of the unpacked sdist against the installed wheel. The environments are made one after another
under a temporary folder and removed. PyTorch from PyPI is made for CUDA: up to 6 GB of disk at a time, and as much to download the
first time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden" / "losses"
EXTRAS = "detection,calibration,lite0"
# Tests that need no other extra: of each package some, in about two minutes.
TESTS = [
    "losses",
    "evaluation",
    "data",
    "models/test_atss_and_paa.py",
    "models/test_rcnn.py",
    "test_recipes.py",
    "test_docs.py",
]
# Files of the repository that nobody who unpacks the sdist needs.
LEFT_OUT = re.compile(r"\.github/|\.ci/|\.editorconfig|\.pre-commit-config\.yaml")


def check_wheel(wheel: Path) -> list[Requirement]:
    """What is in the wheel: the package with its page, and nothing else. Returns what it requires."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(file.read(metadata).decode())
    package = {name.removeprefix("ranksort/") for name in names if name.startswith("ranksort/")}
    source = HERE.parents[1] / "src" / "ranksort"
    expected = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert package == expected, f"the wheel lacks {expected - package} and has {package - expected}"
    assert {"py.typed", "evaluation/page.html"} <= package
    others = {name.split("/")[0] for name in names} - {"ranksort"}
    assert others == {Path(metadata).parts[0]}, f"the wheel has {others} beside the package"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    print(f"{wheel.name}: {len(names)} files")
    return [Requirement(text) for text in headers.get_all("Requires-Dist", [])]


def check_sdist(sdist: Path) -> None:
    """All that git tracks is in the sdist, but for what serves the repository alone."""
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HERE.parents[1], capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.split("\0") if name and not LEFT_OUT.match(name)}
    assert names - {"PKG-INFO"} == tracked, (
        f"the sdist lacks {tracked - names} and has {names - tracked - {'PKG-INFO'}}"
    )
    print(f"{sdist.name}: {len(names)} files")


def lowest(requirements: list[Requirement], extras: set[str]) -> list[str]:
    """Each requirement at its lower bound. Of torch, which torchvision needs in one version, none where torchvision is."""
    found = {}
    for requirement in requirements:
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            bounds = [s.version for s in requirement.specifier if s.operator == ">="]
            found[requirement.name] = f"{requirement.name}=={bounds[0]}" if bounds else requirement.name
    if "torchvision" in found:
        del found["torch"]
    return sorted(found.values())


def golden_cases(out: Path) -> Path:
    """The golden arrays as JSON, for an interpreter without numpy."""
    cases = {}
    for path in sorted(GOLDEN.glob("*.npz")):
        with np.load(path) as arrays:
            cases[path.stem] = {name: arrays[name].tolist() for name in arrays.files}
    assert cases, f"there are no golden files in {GOLDEN}"
    out.write_text(json.dumps(cases))
    return out


class Environment:
    """A virtual environment under a folder. What it runs sees none of this checkout's packages."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"

    def install(self, *what: str) -> None:
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> None:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([self.python, *map(str, arguments)], cwd=cwd or self.python.parent, env=variables)
        if done.returncode:
            sys.exit(f"release check: {' '.join(map(str, arguments))} ended with {done.returncode}")


def check_losses(env: Environment, folder: Path) -> None:
    env.run(HERE / "losses.py", golden_cases(folder / "golden.json"))


def check_toolbox(env: Environment, sdist: Path, folder: Path, tests: list[str]) -> None:
    env.run(HERE / "toolbox.py")
    if tests:
        with tarfile.open(sdist) as file:
            file.extractall(folder, filter="data")
        root = folder / sdist.name.removesuffix(".tar.gz")
        env.install("pytest>=8", "hypothesis>=6.100", "scikit-learn>=1.5")
        env.run("-m", "pytest", "-q", "-m", "not slow", *(f"tests/{name}" for name in tests), cwd=root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="folder of one sdist and its wheel, as `make build` writes them")
    parser.add_argument("--only", choices=["contents", "oldest", "newest"], help="one part of the check")
    parser.add_argument(
        "--tests", nargs="*", default=TESTS, metavar="PATH", help="tests of the sdist to run (none: no path)"
    )
    options = parser.parse_args()
    (sdist,), (wheel,) = options.dist.resolve().glob("*.tar.gz"), options.dist.resolve().glob("*.whl")
    start = time.monotonic()
    requirements = check_wheel(wheel)
    check_sdist(sdist)
    for age in ("oldest", "newest"):
        if options.only not in (None, age):
            continue
        print(f"\n{age} versions", flush=True)
        # The newest toolbox is put on top of the losses' environment, because their torch is the same.
        with tempfile.TemporaryDirectory(prefix="ranksort-release-") as folder:
            env = Environment(Path(folder) / "venv")
            env.install(str(wheel), *(lowest(requirements, {""}) if age == "oldest" else []))
            check_losses(env, Path(folder))
            if age == "newest":
                env.install(f"{wheel}[{EXTRAS}]")
                check_toolbox(env, sdist, Path(folder), options.tests)
        if age == "oldest":
            with tempfile.TemporaryDirectory(prefix="ranksort-release-") as folder:
                env = Environment(Path(folder) / "venv")
                env.install(f"{wheel}[{EXTRAS}]", *lowest(requirements, set(EXTRAS.split(","))))
                check_toolbox(env, sdist, Path(folder), options.tests)
    print(
        f"\nnothing wrong was found in the {options.only or 'release'}: {(time.monotonic() - start) / 60:.0f} minutes"
    )


if __name__ == "__main__":
    main()
