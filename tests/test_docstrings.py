"""Every public function and class has an example in its docstring; `make doctest` runs them."""

import doctest
import importlib

import pytest

PACKAGES = (
    "ranksort",
    "ranksort.losses",
    "ranksort.evaluation",
    "ranksort.models",
    "ranksort.recipes",
    "ranksort.engine",
    "ranksort.prediction",
)


def public_names(package: str) -> list[tuple[str, str]]:
    return [(package, name) for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize(("package", "name"), [pair for package in PACKAGES for pair in public_names(package)])
def test_public_names_have_an_example_with_output(package: str, name: str) -> None:
    docstring = getattr(importlib.import_module(package), name).__doc__
    assert "\n    Examples:\n" in docstring
    examples = doctest.DocTestParser().get_examples(docstring)
    assert any(example.want for example in examples)


def test_export_has_an_example_with_output() -> None:
    pytest.importorskip("onnx")
    test_public_names_have_an_example_with_output("ranksort.export", "export_onnx")
