"""Remakes the README's benchmark tables and figures from the results files, and from nothing else.

A table stands between `<!-- benchmark:NAME -->` and `<!-- /benchmark:NAME -->`; what stands there is replaced.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import results
from benchmarks.figures import FIGURES
from benchmarks.tables import TABLES

REPOSITORY = Path(__file__).parents[1]
_MARKED = re.compile(r"<!-- benchmark:(?P<name>[a-z]+) -->\n.*?<!-- /benchmark:(?P=name) -->", re.DOTALL)
_DEFAULT_README = REPOSITORY / "README.md"
_DEFAULT_IMAGES = REPOSITORY / "docs" / "images"


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if the README is out of date.")] = False,
    readme: Annotated[Path, typer.Option(help="The file with the markers.")] = _DEFAULT_README,
    folder: Annotated[Path, typer.Option(help="The results files.")] = results.FOLDER,
    images: Annotated[Path, typer.Option(help="Where figures go.")] = _DEFAULT_IMAGES,
) -> None:
    """Write the README's benchmark tables and figures."""
    before = readme.read_text()
    after = fill_in(before, folder)
    if check:
        if after != before:
            sys.exit(f"error: {readme} is not what {folder} gives: run python -m benchmarks.report")
        return
    readme.write_text(after)
    try:
        for name, draw in FIGURES.items():
            if (folder / f"{name}.json").is_file():
                draw(results.read(folder / f"{name}.json"), images)
    except ImportError:
        sys.exit("error: the tables are written, the figures are not: pip install matplotlib")


def fill_in(text: str, folder: Path) -> str:
    """`text` with each marked table made anew; a table without results stays as it is.

    Raises:
        ValueError: a marker names no table.
    """

    def remake(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"no benchmark table {name!r}: choose from {', '.join(TABLES)}")
        sources, make = TABLES[name]
        files = [folder / f"{source}.json" for source in sources]
        if not all(file.is_file() for file in files):
            return match[0]
        made = make(*(results.read(file) for file in files))
        return f"<!-- benchmark:{name} -->\n{made}\n<!-- /benchmark:{name} -->"

    return _MARKED.sub(remake, text)


if __name__ == "__main__":
    typer.run(main)
