"""Typed recipes: overlays, overrides, refusals that name the key, and the round trip of a resolved recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.typed_recipe import (
    PathText,
    RecipeError,
    build,
    check_types,
    nearest_key,
    read_recipe,
    to_mapping,
    to_yaml,
    write_recipe,
)


@dataclass(frozen=True)
class Adapter:
    rank: int = 16
    modules: tuple[str, ...] = ("q_proj",)


@dataclass(frozen=True)
class Loop:
    steps: int = 10
    rate: float = 1e-3
    kind: Literal["muon", "adamw"] = "muon"
    size: tuple[int, float] = (1, 2.0)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"'loop.steps' must be at least 1, not {self.steps}")
        if self.rate > 1:
            raise ValueError(f"rate {self.rate} is too high\nby far")


@dataclass(frozen=True)
class Recipe:
    name: str = "run"
    path: str | None = None
    meshes: str | list[str] | None = None
    loop: Loop = field(default_factory=Loop)
    adapter: Adapter | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    flag: bool = False


@dataclass(frozen=True)
class Needy:
    steps: int


def write(folder: Path, **files: str) -> Path:
    """Write <name>.yaml for each keyword; the path of the last one."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, *overrides: str) -> Recipe:
    return build(Recipe, read_recipe(path, overrides))


def refusal(schema: type, values: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        build(schema, values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- reading


def test_later_overlays_then_the_recipe_then_overrides_win(tmp_path):
    path = write(
        tmp_path,
        first="name: a\npath: a\nmeshes: [a, b]\nloop: {steps: 1, rate: 0.1}\n",
        second="path: b\nmeshes: [c]\nloop: {steps: 2}\n",
        recipe="defaults: [first.yaml, second.yaml]\nloop: {kind: adamw}\n",
    )
    expected = Recipe(name="a", path="b", meshes=["c"], loop=Loop(steps=2, rate=0.1, kind="adamw"))
    assert load(path) == expected
    assert load(path, "loop.steps=3", "path=c", "loop.steps=4").loop == Loop(4, 0.1, "adamw")


def test_overlays_are_found_beside_the_recipe_that_names_them(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", base="loop: {steps: 7}", part="defaults: base.yaml\nname: part")
    path = write(tmp_path, recipe="defaults: [parts/part.yaml]")
    assert load(path) == Recipe(name="part", loop=Loop(steps=7))


def test_an_overlay_may_be_reached_twice_but_not_lead_back_to_itself(tmp_path):
    path = write(
        tmp_path,
        base="name: base",
        left="defaults: [base.yaml]\nflag: true",
        right="defaults: [base.yaml]\npath: right",
        recipe="defaults: [left.yaml, right.yaml]",
    )
    assert load(path) == Recipe(name="base", path="right", flag=True)
    circle = write(tmp_path, one="defaults: [two.yaml]", two="defaults: [one.yaml]")
    with pytest.raises(RecipeError, match=r"one\.yaml: its 'defaults' form a cycle through '.*two\.yaml'"):
        read_recipe(circle)
    itself = write(tmp_path, own="defaults: [own.yaml]")
    with pytest.raises(RecipeError, match="form a cycle"):
        read_recipe(itself)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "a recipe must be a mapping"),
        ("5\n", "not a readable YAML file"),
        ("name: [1, 2\n", r"not a readable YAML file \(.* in line 2\)"),
        ("name: a\nname: b\n", "duplicate"),
        ("defaults: 5\n", "'defaults' must be a list of recipe files"),
        ("defaults:\n", "'defaults' must be a list of recipe files"),
        ("defaults: [1]\n", "'defaults' must be a list of recipe files"),
        (
            "defaults: [gone.yaml]\n",
            r"gone\.yaml', listed in the defaults of '.*recipe\.yaml', does not exist",
        ),
        ("name: ${nothing}\n", "'name': .*'nothing' not found"),
        ("name: 'a ${'\n", "name"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    path = write(tmp_path, recipe=text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe '.*gone\.yaml' does not exist"):
        read_recipe(tmp_path / "gone.yaml")
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RecipeError, match=r"binary\.yaml: not a readable YAML file"):
        read_recipe(tmp_path / "binary.yaml")


def test_an_empty_recipe_is_all_defaults(tmp_path):
    assert load(write(tmp_path, recipe="")) == Recipe()


def test_interpolation(tmp_path):
    assert load(write(tmp_path, recipe="name: x\npath: out/${name}"), "name=y").path == "out/y"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loop.rate=1e-6", Recipe(loop=Loop(rate=1e-6))),
        ("loop.rate=1", Recipe(loop=Loop(rate=1.0))),
        ("loop.size=[3,4]", Recipe(loop=Loop(size=(3, 4.0)))),
        ("path=a=b", Recipe(path="a=b")),
        ("path=null", Recipe()),
        ("path=None", Recipe()),
        ("path='null'", Recipe(path="null")),
        ("path='None'", Recipe(path="None")),
        ("meshes=**/*.glb", Recipe(meshes="**/*.glb")),
        ("meshes=[a.glb, 'b c.glb']", Recipe(meshes=["a.glb", "b c.glb"])),
        ("adapter.rank=8", Recipe(adapter=Adapter(rank=8))),
        ("adapter={}", Recipe(adapter=Adapter())),
        ("extra.deep.er=[1]", Recipe(extra={"deep": {"er": [1]}})),
        ("flag=true", Recipe(flag=True)),
    ],
)
def test_override_values(tmp_path, override, expected):
    assert load(write(tmp_path, recipe=""), override) == expected


def test_1e_minus_6_is_a_number_in_files_too(tmp_path):
    assert load(write(tmp_path, recipe="loop: {rate: 1e-6}")).loop.rate == 1e-6


def test_an_override_can_switch_a_section_off_and_on(tmp_path):
    path = write(tmp_path, recipe="adapter: {rank: 4, modules: [a, b]}")
    assert load(path).adapter == Adapter(4, ("a", "b"))
    assert load(path, "adapter=null").adapter is None
    assert load(path, "adapter=null", "adapter.rank=2").adapter == Adapter(2)


@pytest.mark.parametrize("override", ["loop.steps", "=3", "loop.=3", ".steps=3", "loop..steps=3", ""])
def test_malformed_overrides(tmp_path, override):
    with pytest.raises(RecipeError, match=r"override '.*' must have the form key\.sub=value, such as"):
        read_recipe(write(tmp_path, recipe=""), [override])


def test_broken_yaml_in_an_override_is_text_and_refused_by_the_type(tmp_path):
    path = write(tmp_path, recipe="")
    with pytest.raises(RecipeError, match=r"'loop\.size' must be a list, not '\[1,2'"):
        load(path, "loop.size=[1,2")


# ---------------------------------------------------------------- checking


@pytest.mark.parametrize(
    ("values", "key", "nearest"),
    [
        ({"nmae": "x"}, "nmae", "name"),
        ({"loop": {"step": 1}}, "loop.step", "loop.steps"),
        ({"adapter": {"Rank": 1}}, "adapter.Rank", "adapter.rank"),
        ({"steps": 1}, "steps", "loop.steps"),  # the right key in the wrong place
        ({"ranks": 1}, "ranks", "adapter.rank"),  # also inside an optional section
        ({"LOOP": {}}, "LOOP", "loop"),
        ({7: 1}, "7", "name"),  # nothing is near: still a valid key
    ],
)
def test_unknown_keys_name_the_nearest(values, key, nearest):
    message = refusal(Recipe, values)
    assert message.startswith(f"unknown key '{key}'; the nearest valid key is '")
    if key != "7":
        assert message.endswith(f"'{nearest}'")


def test_outer_keys_come_first_among_equals():
    @dataclass
    class Outer:
        loop: Loop
        steps: int = 1

    assert nearest_key(Outer, "step") == "steps"
    assert nearest_key(Outer, "rates") == "loop.rate"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": 3}, "'name' must be text, not 3"),
        ({"flag": 1}, "'flag' must be true or false, not 1"),
        ({"flag": "yes"}, "'flag' must be true or false, not 'yes'"),
        ({"loop": {"steps": 1.0}}, "'loop.steps' must be an integer, not 1.0"),
        ({"loop": {"steps": True}}, "'loop.steps' must be an integer, not true"),
        ({"loop": {"steps": "5"}}, "'loop.steps' must be an integer, not '5'"),
        ({"loop": {"rate": "fast"}}, "'loop.rate' must be a number, not 'fast'"),
        ({"loop": {"rate": False}}, "'loop.rate' must be a number, not false"),
        ({"loop": {"kind": "sgd"}}, "'loop.kind' must be one of 'muon', 'adamw', not 'sgd'"),
        ({"loop": {"size": [1]}}, "'loop.size' must have 2 entries, not 1"),
        ({"loop": {"size": [1, "b"]}}, "'loop.size[1]' must be a number, not 'b'"),
        ({"loop": 3}, "'loop' must be a section of keys, not 3"),
        ({"loop": None}, "'loop' must be a section of keys, not null"),
        ({"adapter": True}, "'adapter' must be a section of keys or null, not true"),
        ({"adapter": {"modules": "q_proj"}}, "'adapter.modules' must be a list, not 'q_proj'"),
        ({"adapter": {"modules": [1]}}, "'adapter.modules[0]' must be text, not 1"),
        ({"meshes": 3}, "'meshes' must be text or a list or null, not 3"),
        ({"meshes": {"a": 1}}, "'meshes' must be text or a list or null, not a section of keys"),
        ({"extra": [1]}, "'extra' must be a section of keys, not [1]"),
        ({"scores": {"a": "high"}}, "'scores.a' must be a number, not 'high'"),
    ],
)
def test_wrong_types_name_the_key_the_type_and_the_value(values, message):
    assert refusal(Recipe, values) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loop: {rate: .nan}", "'loop.rate' must be a finite number, not .nan"),
        ("loop: {rate: -.inf}", "'loop.rate' must be a finite number, not -.inf"),
        ("loop: {size: [1, .inf]}", "'loop.size[1]' must be a finite number, not .inf"),
        ("scores: {a: .nan}", "'scores.a' must be a finite number, not .nan"),
        ("extra: {deep: {er: [1, .inf]}}", "'extra.deep.er[1]' must be a finite number, not .inf"),
        (
            f"loop: {{rate: 1{'0' * 400}}}",
            "'loop.rate' must be a number that fits into 64 bits, not one of 401 ",
        ),
    ],
)
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(tmp_path, text, message):
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, recipe=text))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("word", ["no", "off", "false", "NO"])
@pytest.mark.parametrize("key", ["name", "loop.kind", "meshes"])
def test_a_word_that_yaml_reads_as_false_is_to_be_quoted(tmp_path, key, word):
    path = write(tmp_path, recipe="")
    with pytest.raises(RecipeError) as caught:
        load(path, f"{key}={word}")
    message = str(caught.value)
    assert message.startswith(f"'{key}' must be ")
    assert "not false; YAML reads an unquoted no or off as false: put the word in quotes" in message
    assert message.endswith(f"(on a command line {key}='\"no\"')")
    # What a shell makes of the advice is accepted as text.
    assert load(path, 'name="no"').name == "no"


def test_a_word_that_yaml_reads_as_true_is_to_be_quoted(tmp_path):
    with pytest.raises(
        RecipeError, match=r"'name' must be text, not true; YAML reads an unquoted yes or on as"
    ):
        load(write(tmp_path, recipe="name: on"))


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("010", "8 (octal)"),
        ("-07", "-7 (octal)"),
        ("12:30", "750 (base 60)"),
        ("1:2:3.5", "3723.5 (base 60)"),
    ],
)
def test_numbers_of_another_base_are_refused(tmp_path, word, number):
    path = write(tmp_path, recipe=f"loop:\n  steps: {word}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: YAML reads {word} as {number}; write ")
    empty = write(tmp_path, empty="")
    with pytest.raises(RecipeError, match=f"override 'name={word}': YAML reads {word} as "):
        load(empty, f"name={word}")
    assert load(empty, f"name='{word}'").name == word


def test_zero_and_plain_numbers_are_no_octals(tmp_path):
    loop = load(write(tmp_path, recipe="loop: {steps: 10, rate: 0, size: [0x10, 0.5]}")).loop
    assert loop == Loop(10, 0.0, size=(16, 0.5))


@dataclass(frozen=True)
class Files:
    out: PathText = "out"
    meshes: PathText | list[PathText] | None = None
    more: tuple[PathText, ...] = ()


def test_home_and_environment_variables_are_expanded_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("RUNS", "/big/runs")
    files = build(Files, {"out": "$RUNS/a", "meshes": ["~/m/*.glb", "b~"], "more": ["${RUNS}/c"]})
    assert files == Files("/big/runs/a", ["/home/ada/m/*.glb", "b~"], ("/big/runs/c",))
    assert build(Files, {"meshes": "~"}).meshes == "/home/ada"
    assert build(Files, {"meshes": None}) == Files()


def test_paths_that_cannot_be_expanded_are_refused(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    message = "'out': the environment variable NOWHERE in '$NOWHERE/a' is not set; set it"
    assert refusal(Files, {"out": "$NOWHERE/a"}) == message
    assert "'meshes[0]'" in refusal(Files, {"meshes": ["${NOWHERE}/a"]})
    assert refusal(Files, {"out": "~nobody-of-this-name/a"}).startswith(
        "'out': '~nobody-of-this-name/a' names no"
    )
    assert refusal(Files, {"out": 3}) == "'out' must be text, not 3"
    assert refusal(Files, {"meshes": 3}) == "'meshes' must be text or a list or null, not 3"


def test_missing_keys_and_refusals_of_the_schema_itself():
    assert refusal(Needy, {}) == "'steps' is missing; add it to the recipe (an integer)"
    assert refusal(Recipe, {"loop": {"steps": 0}}) == "'loop.steps' must be at least 1, not 0"
    assert refusal(Recipe, {"loop": {"rate": 2.0}}) == "'loop': rate 2.0 is too high"
    with pytest.raises(RecipeError, match="'Loop': rate"):
        build(Loop, {"rate": 3})


def test_integers_become_floats_and_lists_become_tuples():
    loop = build(Loop, {"rate": 1, "size": [2, 3]})
    assert (type(loop.rate), loop.size, type(loop.size[1])) == (float, (2, 3.0), float)
    assert build(Recipe, {"scores": {"a": 1}}).scores == {"a": 1.0}


def test_foreign_schemas_are_checked_without_being_built():
    check_types(Loop, {"rate": 5, "kind": "adamw"}, "train")  # its own __post_init__ would refuse the rate
    with pytest.raises(RecipeError, match=r"unknown key 'train\.rat'; .* 'train\.rate'"):
        check_types(Loop, {"rat": 5}, "train")
    with pytest.raises(RecipeError, match=r"'train\.rate' must be a number, not 'x'"):
        check_types(Loop, {"rate": "x"}, "train")


# ---------------------------------------------------------------- round trip

# YAML folds the lines of U+0085, U+2028 and U+2029 like spaces; surrogates are no text.
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=12
) | st.sampled_from(
    [
        "1e-6",
        "${x}",
        "\\${x}",
        "\\\\${oc.env:HOME}",
        "${",
        "null",
        "on",
        "-1e5",
        "2020-01-01",
        "1:30",
        " ",
        "???",
    ]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | numbers | texts
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)
recipes = st.builds(
    Recipe,
    name=texts,
    path=st.none() | texts,
    meshes=st.none() | texts | st.lists(texts, max_size=3),
    loop=st.builds(
        Loop,
        steps=st.integers(1, 2**40),
        rate=numbers.filter(lambda rate: rate <= 1),
        kind=st.sampled_from(["muon", "adamw"]),
        size=st.tuples(st.integers(), numbers),
    ),
    adapter=st.none()
    | st.builds(Adapter, rank=st.integers(), modules=st.lists(texts, max_size=3).map(tuple)),
    extra=st.dictionaries(st.text("abc", min_size=1), plain, max_size=3),
    scores=st.dictionaries(st.text("abc", min_size=1), numbers, max_size=3),
    flag=st.booleans(),
)


@settings(deadline=None)
@given(recipes)
def test_a_written_recipe_reads_back_equal(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    write_recipe(recipe, path)
    again = load(path)
    assert again == recipe
    assert to_yaml(again) == path.read_text(encoding="utf-8")
    assert build(Recipe, to_mapping(recipe)) == recipe


def test_a_resolved_recipe_is_plain_yaml_with_every_default():
    text = to_yaml(Recipe(name="é", adapter=Adapter(modules=("a", "b"))))
    assert yaml.safe_load(text) == {
        "name": "é",
        "path": None,
        "meshes": None,
        "loop": {"steps": 10, "rate": 1e-3, "kind": "muon", "size": [1, 2.0]},
        "adapter": {"rank": 16, "modules": ["a", "b"]},
        "extra": {},
        "scores": {},
        "flag": False,
    }
    assert "é" in text
