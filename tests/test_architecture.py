"""The rooms of the project: arrows between packages go one way, and no imports run in a circle."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "policy", "rewards", "rl")

# What each room and wing may import besides itself. A wing that is not listed has no rule of its own.
MAY_IMPORT = {
    "data": set(),
    "policy": {"data"},
    "rewards": {"data", "policy.skintokens", "policy.tokens"},
    "rl": {"data", "policy", "rewards"},
    "rewards.kernels": set(),
    "rl.metrics": {"rl"},
    "rl.recipe": {"rl"},
    "rl.engine": {"rl", "rl.recipe"},
    "rl.benchmarks": {"rl", "rl.engine"},
    "rl.preflight": {"rl", "rl.recipe", "rl.engine"},
    "rl.render": set(),
    "rl.report": {"rl", "rl.recipe"},
    "rl.child_runs": {"rl", "rl.recipe", "rl.preflight"},
    "rl.ablation": {"rl", "rl.recipe", "rl.child_runs"},
    "rl.sweeps": {"rl", "rl.recipe", "rl.child_runs"},
    "data.creatures": {"data"},
    "data.gltf": {"data"},
    "data.augment": {"data"},
    "data.formats": {"data", "data.gltf"},
    "data.sets": {"data", "data.formats", "data.creatures"},
    "policy.tokens": set(),
    "policy.layers": set(),
    "policy.skintokens": {"policy.layers"},
    "policy.tokenrig": {"policy.layers", "policy.tokens"},
    "policy.released": {"policy.layers", "policy.skintokens", "policy.tokenrig", "policy.tokens"},
    "policy.pretraining": {"policy.layers", "policy.tokens"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever in it, also for type checking alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from package import name` imports the module of that name if there is one.
            names |= {
                inner if (inner := f"{node.module}.{alias.name}") in MODULES else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: write absolute imports")
    return {name for name in names if name in MODULES}


GRAPH = {name: imported(path) - {name} for name, path in MODULES.items()}


def wing(module: str) -> str:
    """`policy.tokens` for a module of that wing, `policy` for one at the top of its room."""
    room, _, rest = module.partition(".")
    is_wing = "." in rest or f"{module}.__init__" in MODULES or MODULES[module].name == "__init__.py"
    return f"{room}.{rest.partition('.')[0]}" if rest and is_wing else room


def arrows() -> Iterator[tuple[str, str]]:
    return ((source, target) for source, targets in GRAPH.items() for target in sorted(targets))


def test_every_room_is_found() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(ROOMS)
    assert "policy.tokens.vocabulary" in GRAPH["policy.tokens.grammar"]  # the reader of imports works
    assert wing("policy.tokens.grammar") == wing("policy.tokens") == "policy.tokens"
    assert wing("policy.bundle") == wing("policy") == "policy"


def test_arrows_between_rooms_go_one_way() -> None:
    wrong = []
    for source, target in arrows():
        room, goal = source.partition(".")[0], target.partition(".")[0]
        if goal != room and not {goal, wing(target)} & MAY_IMPORT[room]:
            wrong.append(f"{source} imports {target}")
    assert not wrong


def test_wings_import_only_what_lies_below_them() -> None:
    wrong = []
    for source, target in arrows():
        own, goal = wing(source), wing(target)
        same_room = goal.partition(".")[0] == own.partition(".")[0]
        has_rule = "." in own and own in MAY_IMPORT
        if has_rule and same_room and goal not in {own, *MAY_IMPORT[own]}:
            wrong.append(f"{source} imports {target}")
    assert not wrong


def test_every_wing_has_a_rule() -> None:
    wings = {wing(module) for module in MODULES}
    assert {name for name in wings if name.partition(".")[0] in ("data", "policy")} <= set(MAY_IMPORT)


def test_no_imports_run_in_a_circle() -> None:
    # A package's __init__ only gathers names; its modules import each other, never the package itself.
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {name: targets - packages for name, targets in GRAPH.items() if name not in packages}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def loaded_with(module: str) -> set[str]:
    """All modules of the project that importing or using a module may load, packages included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += GRAPH[name]
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return seen


@cache
def imports_torch(path: Path) -> bool:
    trees = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return any(
        (isinstance(node, ast.Import) and any(alias.name == "torch" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch")
        for node in trees
    )


def test_every_process_that_computes_with_torch_makes_its_first_call_on_one_thread() -> None:
    # Processes begin at a command or at an actor; the layers' package makes the first call when imported.
    # rl.launch only starts processes: it computes nothing.
    processes = [name for name, path in MODULES.items() if "__main__" in path.read_text(encoding="utf-8")]
    processes = [*(name for name in processes if name != "rl.launch"), "rewards.ray_actors"]
    computing = [
        name for name in processes if any(imports_torch(MODULES[loaded]) for loaded in loaded_with(name))
    ]
    assert {"rl.train_grpo", "rl.rig", "policy.pretrain_tokenrig", "rewards.ray_actors"} <= set(computing)
    assert [name for name in computing if "policy.layers.vector_math" not in loaded_with(name)] == []
