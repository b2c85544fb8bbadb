"""Every relative link of the pages leads somewhere: to a file, a heading, a symbol."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, prose

ROOMS = ("data", "policy", "rewards", "rl")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_SYMBOL = re.compile(rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)`")
_PATH_IN_CODE = re.compile(
    rf"`((?:{'|'.join(ROOMS)}|docs|recipes|tests|checkpoints)/[\w./]*\.(?:py|yaml|md|svg|png))`"
)


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page.read_text("utf-8")), re.MULTILINE):
        plain = _LINK.sub(r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = found.get(name, 0)
        names.add(f"{name}-{count}" if count else name)
        found[name] = count + 1
    return names


def names_in(body: list[ast.stmt], imports: bool) -> dict[str, list[ast.stmt]]:
    """Names that a module or class defines or, with `imports`, imports; of classes also the body."""
    names: dict[str, list[ast.stmt]] = {}
    for node in body:
        match node:
            case ast.ClassDef():
                names[node.name] = node.body
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names[node.name] = []
            case ast.Assign():
                names |= {t.id: [] for t in node.targets if isinstance(t, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = []
            case ast.ImportFrom() | ast.Import() if imports:
                names |= {(alias.asname or alias.name): [] for alias in node.names}
            case ast.If():  # TYPE_CHECKING
                names |= names_in(node.body, imports)
    return names


def module_file(parts: list[str]) -> tuple[Path, list[str]] | None:
    """The longest prefix of a dotted name that is a module, and what is left of the name."""
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file, parts[length:]
    return None


def is_defined(file: Path, names: list[str]) -> bool:
    """Whether the module defines the name, such as `Class.method`. What a package imports, it offers."""
    body = ast.parse(file.read_text("utf-8")).body
    for name in names:
        found = names_in(body, imports=file.name == "__init__.py")
        if name not in found:
            return False
        body = found[name]
    return True


def homes(name: str) -> str:
    """Modules that define a name at the top, for the message of a link to a symbol that has moved."""
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    found = [
        file.relative_to(ROOT).as_posix()
        for file in files
        if file.name != "__init__.py" and is_defined(file, [name])
    ]
    return f"; it is in {', '.join(found)}" if found else ""


def broken(page: Path, text: str) -> list[str]:
    """What is wrong with the links of a page's text, one line each."""
    problems = []
    for words, target in _LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(ROOT) or not file.exists():
            problems.append(f"({target}): there is no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file)):
            problems.append(f"({target}): there is no such heading")
        elif file.suffix == ".py" and (symbol := _SYMBOL.fullmatch(words)):
            found = module_file(symbol[1].split("."))
            if found is None or found[0] != file:
                problems.append(f"[{words}]({target}): the name is not of that file")
            elif not is_defined(*found):
                problems.append(f"[{words}]({target}): no such symbol there{homes(found[1][0])}")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name
)
def test_paths_and_names_in_code_exist(page):  # the changelog also names what is gone
    text = prose(page.read_text("utf-8"))
    missing = [path for path in _PATH_IN_CODE.findall(text) if not (ROOT / path).exists()]
    # `data.x`, `policy.x` and `rewards.x` may be keys of a recipe; `rl.x` can only be code.
    for name in re.findall(r"`(rl(?:\.\w+)+)`", text):
        found = module_file(name.split("."))
        if found is None or found[0] == ROOT / "rl" / "__init__.py" or not is_defined(*found):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](docs/rewards.md)", ""),
        ("[a](docs/rewards.md#the-zoo-of-cheats)", ""),
        ("[a](https://example.org/x)", ""),
        ("```\n[a](nowhere.md)\n```", ""),
        ("[`rewards.coverage.joint_coverage`](rewards/coverage.py)", ""),
        ("[`rewards.settings.RewardSettings.rotations`](rewards/settings.py)", ""),
        ("[`rewards.score_rig`](rewards/__init__.py)", ""),
        ("[a](nowhere.md)", "(nowhere.md): there is no such file"),
        ("![a](docs/images/nowhere.png)", "(docs/images/nowhere.png): there is no such file"),
        ("[a](../outside.md)", "(../outside.md): there is no such file"),
        ("[a](docs/rewards.md#nowhere)", "(docs/rewards.md#nowhere): there is no such heading"),
        (
            "[`rewards.coverage.joint_coverage`](rewards/sparsity.py)",
            "[`rewards.coverage.joint_coverage`](rewards/sparsity.py): the name is not of that file",
        ),
        (
            "[`rewards.sparsity.joint_coverage`](rewards/sparsity.py)",
            "[`rewards.sparsity.joint_coverage`](rewards/sparsity.py): no such symbol there; it is in ",
        ),
        (
            "[`rewards.score.joint_coverage`](rewards/score.py)",  # imported there, defined elsewhere
            "[`rewards.score.joint_coverage`](rewards/score.py): no such symbol there; it is in ",
        ),
        (
            "[`rewards.settings.RewardSettings.turns`](rewards/settings.py)",
            "[`rewards.settings.RewardSettings.turns`](rewards/settings.py): no such symbol there",
        ),
    ],
)
def test_broken_links_are_found(text, problem):
    found = broken(ROOT / "README.md", text)
    assert len(found) == bool(problem)
    assert all(line.startswith(problem) for line in found)


def test_repeated_headings_are_numbered(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n## A b c\n```\n# not a heading\n```\n## *New* [d](e.md)\n")
    assert anchors(page) == {"a-b-c", "a-b-c-1", "new-d"}
