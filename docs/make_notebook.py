"""`python docs/make_notebook.py`: generates docs/python.ipynb from docs/python.md, a cell for each block.

`--check` writes nothing and exits with 1 if the notebook is out of date. Standard library only.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "python.ipynb"

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def notebook(page: str) -> str:
    """The notebook's text (nbformat 4.5, without outputs): Python blocks as code, the rest as Markdown."""
    cells = []
    for place, part in enumerate(_BLOCK.split(page)):  # prose and code in turns
        text = part.strip("\n")
        if not text:
            continue
        lines = text.splitlines(keepends=True)
        cell: dict[str, object] = {"cell_type": "markdown", "id": f"cell-{place}", "metadata": {}}
        if place % 2:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**cell, "source": lines})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    values = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if it is out of date"
    )
    check = parser.parse_args(argv).check
    text = notebook(PAGE.read_text(encoding="utf-8"))
    if NOTEBOOK.is_file() and NOTEBOOK.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print("docs/python.ipynb is out of date; run python docs/make_notebook.py")
        return 1
    NOTEBOOK.write_text(text, encoding="utf-8")
    print(NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
