"""Hooks of `mkdocs build`: what pages link to outside docs/ becomes part of the site, and formulas become MathML.

So a link such as `../benchmarks/README.md` works on GitHub, in a checkout and in the site, which needs no network.
"""

import html
import json
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository"  # where the site has what lies outside docs/
ALWAYS = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/*.md")]
ALWAYS += ["findings/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
LANGUAGES = {".py": "python", ".sh": "bash", ".json": "json", ".toml": "toml"}
CODE = re.compile(r"(^ *(`{3,}).*?^ *\2|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
FORMULA = re.compile(r"<(span|div) class=\"arithmatex\">\\[(\[](.*?)\\[)\]]</\1>", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/: Markdown as it is, code and folders as pages that show them."""
    known: set[str] = set()
    todo = [*ALWAYS, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while todo:
        target = with_readme(todo.pop())
        if target in known or not (ROOT / target).exists():  # what is not there, mkdocs complains about
            continue
        known.add(target)
        if not target.startswith("docs/"):
            files.append(File.generated(config, in_site(target), content=content_of(target)))
        if target.endswith((".md", ".ipynb")):
            todo += links(target)
        todo += [f"{target}/{file.name}" for file in (ROOT / target).glob("*.py")]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links between docs/ and the rest of the repository to where the site has both."""
    own = page.file.src_uri
    source = own.removeprefix(f"{OUTSIDE}/") if own.startswith(f"{OUTSIDE}/") else f"docs/{own}"
    folder = posixpath.dirname(own) or "."
    return replace_links(markdown, source, lambda target: posixpath.relpath(in_site(with_readme(target)), folder))


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers show without a script."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]).strip(), display=display)

    return FORMULA.sub(formula, content)


def links(page: str) -> list[str]:
    """What a Markdown file or notebook links to, as paths in the repository."""
    found: list[str] = []

    def note(target: str) -> str:
        found.append(target)
        return target

    replace_links(content_of(page), page, note)
    return found


def replace_links(markdown: str, source: str, replace: Callable[[str], str]) -> str:
    """Replace links outside code to files of the repository; `source` is the path of the page in it, `replace` takes that of the file."""

    def link(found: re.Match[str]) -> str:
        return replace(posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1])))

    parts = CODE.split(markdown)
    parts[::3] = [LINK.sub(link, text) for text in parts[::3]]
    del parts[2::3]  # the fences themselves, which the pattern has a group for
    return "".join(parts)


def with_readme(target: str) -> str:
    """The README.md of a folder that has one, as GitHub shows it."""
    return f"{target}/README.md" if (ROOT / target / "README.md").is_file() else target


def in_site(target: str) -> str:
    """The source of a page of the site, or of another file in it, by the path in the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if (ROOT / target).is_dir():
        return f"{OUTSIDE}/{target}/index.md"
    return f"{OUTSIDE}/{target}" if target.endswith(".md") else f"{OUTSIDE}/{target}.md"


def content_of(target: str) -> str:
    """The page that shows a file or folder of the repository."""
    path = ROOT / target
    if target.endswith(".md"):
        return path.read_text(encoding="utf-8")
    title = f"---\nsearch:\n  exclude: true\n---\n# {target}\n\n"
    if path.is_dir():
        names = sorted(
            entry.name for entry in os.scandir(path) if entry.name[0] not in "._" or entry.name.endswith(".py")
        )
        return title + "\n".join(f"- [{name}]({name})" if name.endswith(".py") else f"- {name}" for name in names)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n\n".join(map(cell, json.loads(text)["cells"]))
    return f"{title}````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def cell(content: dict[str, Any]) -> str:
    """A cell of a notebook as Markdown, without its output."""
    source = "".join(content["source"])
    return source if content["cell_type"] == "markdown" else f"````python\n{source}\n````"
