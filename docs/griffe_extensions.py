"""What the API reference reads differently in docstrings."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Show sections `Example:` as code, as griffe does those called `Examples:`."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename them before they are parsed."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
