"""`python docs/make_tree.py`: generates docs/tree.md, one phrase per file, from the files' first lines.

Writes docs/tree.md and the table of folders in README.md. `--check` writes nothing and exits with 1 if either
is out of date. Standard library only.

A phrase is the first line of a module's docstring, the first sentence of the comment at the head of a YAML or
build file, or the first sentence of a page in docs/. Folders that are not packages get theirs from `FOLDERS`.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("data", "policy", "rewards", "rl")
FOLDERS = {
    "recipes": "Runs as YAML files: GRPO, both pre-training stages, the skin report.",
    "recipes/ablations": "Matrices of GRPO runs for `python -m rl.ablate`.",
    "recipes/sweeps": "W&B's sweep files, for `wandb sweep` and `python -m rl.sweep`.",
    "recipes/accelerate": "Launch configurations: one process, several GPUs, DeepSpeed ZeRO-2.",
    "checkpoints": "The small policy and skin VAE that ship with the repository.",
    "docs": "These pages, and the small programs that make or check them.",
    "docs/images": "Pictures of these pages.",
    "tests": "Tests; the folders mirror the packages.",
}
BUILD_FILES = ("Makefile", "Dockerfile")
BEGIN, END = "<!-- folders: made by docs/make_tree.py -->", "<!-- end of folders -->"

_COMMAND = re.compile(r"^`(?P<command>[^`]+)`(?:: |, | — )(?P<rest>.+)$")


class TreeError(Exception):
    """A file has no first line to show."""


def phrase(path: Path) -> str:
    """What a file is for, in its own words. Raises TreeError if it has no such line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        found = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    elif path.suffix == ".md":
        body = re.sub(r"<!--.*?-->\s*", "", re.sub(r"\A# .*\n+", "", text), flags=re.DOTALL)
        found = _first_sentence(body.split("\n\n")[0])
    else:
        comment = re.match(r"(?:#.*\n)+", text)
        found = _first_sentence(re.sub(r"^# ?", "", comment[0], flags=re.MULTILINE) if comment else "")
    found = found.strip()
    if not found:
        raise TreeError(f"{path}: has no first line that says what it is for; add one")
    if command := _COMMAND.match(found):
        found = command["rest"]
    found = re.sub(r"[:;,]?$", "", found)
    is_plain = found.split(" ")[0].islower()  # glTF keeps its spelling
    return found[0].upper() + found[1:] if is_plain else found


def _first_sentence(text: str) -> str:
    """The first sentence of a paragraph, on one line; links become their words."""
    line = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", " ".join(text.split()))
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])|: (?=accelerate |python )", line)[0]


def is_command(path: Path) -> bool:
    """Whether a module can be started."""
    return path.suffix == ".py" and 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


def folder_phrase(folder: Path, root: Path = ROOT) -> str:
    """A package's phrase is that of its `__init__`; other folders are listed in `FOLDERS`."""
    name = folder.relative_to(root).as_posix()
    if name in FOLDERS:
        return FOLDERS[name]
    if not (folder / "__init__.py").is_file():
        raise TreeError(f"{folder}: is not a package; add its phrase to FOLDERS in docs/make_tree.py")
    return phrase(folder / "__init__.py")


def is_shown(path: Path) -> bool:
    """Modules, recipes and pages: no caches, no hidden files, no `__init__`, not the tree itself."""
    if path.name.startswith((".", "__")):
        return False
    if path.is_dir():
        return path.name == "images" or any(
            is_shown(inner) or inner.name == "__init__.py" for inner in path.iterdir()
        )
    return path.suffix in (".py", ".yaml", ".md") and path.name != "tree.md"


def folder_lines(folder: Path, depth: int, root: Path = ROOT) -> list[str]:
    """A folder's files, then its folders, as a nested Markdown list with links from docs/."""
    lines = []
    entries = sorted(path for path in folder.iterdir() if is_shown(path))
    for path in sorted(entries, key=lambda entry: entry.is_dir()):
        link = f"[{path.name}{'/' if path.is_dir() else ''}](../{path.relative_to(root).as_posix()})"
        if path.is_dir():
            lines.append(f"{'  ' * depth}- **{link}** – {folder_phrase(path, root)}")
            lines += folder_lines(path, depth + 1, root)
        else:
            started = " *(command)*" if is_command(path) else ""
            lines.append(f"{'  ' * depth}- {link} – {phrase(path)}{started}")
    return lines


def tree_page(root: Path = ROOT) -> str:
    """The whole of docs/tree.md."""
    lines = [
        "# Map of the source files",
        "",
        "Generated from the files' first lines by `python docs/make_tree.py`; edit those, not this page.",
        "",
    ]
    for room in (*ROOMS, "recipes", "docs"):
        lines += [f"## {room}/", "", folder_phrase(root / room, root), ""]
        lines += [*folder_lines(root / room, 0, root), ""]
    lines += ["## tests/", "", FOLDERS["tests"], "", "## At the top level", ""]
    lines += [f"- [{name}](../{name}) – {phrase(root / name)}" for name in BUILD_FILES]
    lines += [f"- [checkpoints/](../checkpoints) – {FOLDERS['checkpoints']}"]
    return "\n".join(lines) + "\n"


def folder_table(root: Path = ROOT) -> str:
    """The README's table: a row per top-level folder, with links to the packages in it."""
    rows = ["| folder | holds | folders in it |", "|---|---|---|"]
    for room in (*ROOMS, "recipes", "checkpoints", "docs", "tests"):
        inner = sorted(path for path in (root / room).iterdir() if (path / "__init__.py").is_file())
        links = ", ".join(f"[{path.name}]({room}/{path.name})" for path in inner if room in ROOMS)
        rows.append(f"| [{room}/]({room}) | {folder_phrase(root / room, root)} | {links} |")
    return "\n".join(rows)


def with_table(readme: str, table: str) -> str:
    """The README with its table of folders replaced. Raises TreeError if the two marks are not there."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise TreeError(
            f"README.md lacks the markers {BEGIN} and {END}; put them around its table of folders"
        )
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    check = parser.parse_args(argv).check
    readme = ROOT / "README.md"
    wanted = {
        ROOT / "docs" / "tree.md": tree_page(),
        readme: with_table(readme.read_text(encoding="utf-8"), folder_table()),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is out of date; run python docs/make_tree.py" if check else path)
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
