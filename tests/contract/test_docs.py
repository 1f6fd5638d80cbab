"""What is written about the pack is true of it, and the pack is what the registry and ComfyUI want.

The nodes' sources are parsed, not imported: `comfy_api` exists only inside ComfyUI.
"""

import argparse
import ast
import hashlib
import json
import re
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from PIL import Image

from trainer import __main__ as command_line
from trainer.merging import MERGE_METHODS
from trainer.recipes import RECIPES
from trainer.settings import TrainSettings

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PREFIX = "ContinualLoRA_"
SETTING = "Setting"
WIDGETS = {"Int", "Float", "String", "Boolean", "Combo", SETTING}


@dataclass(frozen=True)
class Input:
    """One input of a schema."""

    name: str
    kind: str
    optional: bool

    @property
    def is_widget(self):
        return self.kind in WIDGETS


@dataclass(frozen=True)
class Node:
    """What a node's source says of it."""

    id: str
    title: str
    inputs: list[Input]
    outputs: list[str]


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def keyword(call, name):
    values = [item.value for item in call.keywords if item.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def names_of(call, comprehensions):
    """The literal name of an input; one for each value where it is an f-string inside a list comprehension."""
    first = call.args[0]
    if isinstance(first, ast.Constant):
        return [first.value]
    assert isinstance(first, ast.JoinedStr), ast.unparse(call)
    (around,) = [item for item in comprehensions if item.elt is call]
    return [
        "".join(str(part.value) if isinstance(part, ast.Constant) else str(value) for part in first.values)
        for value in ast.literal_eval(around.generators[0].iter)
    ]


def settings_inputs(call):
    advanced = keyword(call, "advanced")
    chosen = [item for item in fields(TrainSettings) if item.metadata.get("advanced", False) == advanced]
    return [Input(item.name, SETTING, optional=False) for item in chosen]


def read_node(path):
    """Parse the schema of a node file; None where there is none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    schemas = [item for item in ast.walk(tree) if isinstance(item, ast.FunctionDef) and item.name == "define_schema"]
    if not schemas:
        return None
    calls = [item for item in ast.walk(schemas[0]) if isinstance(item, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    comprehensions = [item for item in ast.walk(schemas[0]) if isinstance(item, ast.ListComp)]
    found, inputs, outputs = {}, [], []
    for call in calls:
        called = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
        if called == "Schema":
            found = {"id": keyword(call, "node_id"), "title": keyword(call, "display_name")}
        elif called == "Input":
            owner = call.func.value
            kind = owner.attr if isinstance(owner, ast.Attribute) else owner.id
            optional = keyword(call, "optional") is True
            inputs += [Input(name, kind, optional) for name in names_of(call, comprehensions)]
        elif called == "Output":
            outputs.append(keyword(call, "display_name"))
        elif called == "setting_inputs":
            inputs += settings_inputs(call)
    return Node(**found, inputs=inputs, outputs=outputs)


NODES = [node for path in sorted((ROOT / "nodes").glob("*.py")) if (node := read_node(path))]
BY_ID = {node.id: node for node in NODES}
each_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.id)


def shipped(*suffixes):
    """The shipped code files."""
    files = [ROOT / "__init__.py"]
    for folder in ("nodes", "trainer", "js"):
        files += sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return files


def section(title):
    """The text of one section of the README."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text_of("README.md"), re.DOTALL | re.MULTILINE)
    return found


def rows(text):
    """The cells of the tables in a text, without their heads."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [cells for cells in table[1:] if not set("".join(cells)) <= set("-: ")]


def documented_commands(module):
    """Arguments of every `python -m <module> ...` line of the code blocks about the command line."""
    page = text_of("docs/command_line.md")
    lines = [line for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) for line in block.split("\n")]
    return [shlex.split(line)[3:] for line in lines if line.startswith(f"python -m {module} ")]


# README

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def test_where_is_table_names_paths_that_exist():
    table = rows(section("Where is ..."))
    assert len(table) >= 15
    for what, where in table:
        paths = re.findall(r"`([^`]+)`", where)
        assert paths, what
        missing = [path for path in paths if not (ROOT / path).exists()]
        assert not missing, f"{what}: {missing}"


def test_node_table_is_complete():
    assert sorted(name for name, _ in rows(section("Nodes"))) == sorted(node.title for node in NODES)


def test_recipe_table_is_complete():
    assert [cells[0].strip("`") for cells in rows(section("Recipes"))] == list(RECIPES)


def test_readme_is_american_and_names_no_machine():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *HELP.values()]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(licence|colour|behaviour|optimis|normalis)|/home/|/root/|[A-Z]:\\", text), path


@pytest.mark.parametrize("file", PAGES)
def test_local_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#]+)\)", text_of(file)):
        assert target.startswith("https://") or ((ROOT / file).parent / target).exists(), target


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
    for file in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)", text_of(file), re.MULTILINE)
        assert set(named) <= set(targets), file


# Command line


@pytest.mark.parametrize("command", [None, *command_line.COMMANDS])
def test_help_of_each_command(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trainer", *([command] if command else []), "--help"])
    with pytest.raises(SystemExit) as exit_:
        command_line.main()
    assert exit_.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_documented_commands_can_be_parsed():
    given = documented_commands("trainer")
    assert {command for command, *_ in given} == set(command_line.COMMANDS)
    for command, *arguments in given:
        parser = argparse.ArgumentParser()
        command_line.COMMANDS[command][0](parser)
        parser.parse_args(arguments)  # exits where an argument is unknown or missing


# Help pages

HELP = {path.stem: path for path in sorted((ROOT / "js" / "docs").glob("*.md"))}


def test_there_is_a_help_page_for_each_node_and_no_other():
    assert set(HELP) == set(BY_ID)


@each_node
def test_help_page_names_every_input_and_output(node):
    text = HELP[node.id].read_text(encoding="utf-8")
    head, inputs, outputs = re.fullmatch(r"(.*)\n## Inputs\n(.*?)\n## Outputs\n(.*)", text, re.DOTALL).groups()
    assert head.startswith(f"# {node.title}\n")
    assert "## What it does not do" in outputs
    listed = [name for cells in rows(inputs) for name in re.findall(r"`([^`]+)`", cells[0])]
    assert sorted(listed) == sorted(item.name for item in node.inputs)
    outputs = outputs.split("\n## ", maxsplit=1)[0]
    assert [cells[0].strip("`") for cells in rows(outputs)] == node.outputs


@each_node
def test_help_page_shows_the_node(node):
    (target,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", HELP[node.id].read_text(encoding="utf-8"))
    assert target == f"images/{node.id}.jpg"  # the page puts /extensions/<pack>/docs/ before it
    path = HELP[node.id].parent / target
    assert path.stat().st_size < 100_000
    with Image.open(path) as image:
        assert image.format == "JPEG" and 300 <= image.width <= 1400


def test_help_pictures_are_those_of_the_nodes():
    assert {path.stem for path in (ROOT / "js" / "docs" / "images").iterdir()} == set(BY_ID)


def test_citation_agrees_with_the_project():
    text, project = text_of("CITATION.cff"), tomllib.loads(text_of("pyproject.toml"))["project"]
    facts = dict(re.findall(r"^([a-z-]+): \"?([^\"\n]+)\"?$", text, re.MULTILINE))
    assert facts["cff-version"] == "1.2.0" and facts["type"] == "software"
    assert facts["version"] == project["version"] and facts["license"] == project["license"]
    assert facts["repository-code"] == project["urls"]["Repository"]
    authors = re.findall(r"given-names: ([^,]+), family-names: ([^}]+)}", text)
    (cited,) = re.findall(r"author    = {(.*)}", text_of("README.md"))
    assert [" ".join(author) for author in authors] == cited.split(" and ")
    (title,) = re.findall(r"title     = {(.*)}", text_of("README.md"))
    assert f'title: "{title}"' in text


def test_help_pages_know_every_choice():
    train, merge = (text_of(f"js/docs/{PREFIX}{name}.md") for name in ("Train", "MergeSequence"))
    assert [name for name in RECIPES if f"`{name}`" not in train] == []
    assert [name for name in MERGE_METHODS if f"`{name}`" not in merge] == []


# The embedded base


def test_tiny_base_page_agrees_with_the_lists():
    page = text_of("docs/tiny_base.md")
    concepts = json.loads(text_of("scripts/tiny_base/concepts.json"))
    for split, nouns in concepts.items():
        count = sum(map(len, nouns.values()))
        assert re.search(rf"`{split}`: {count} concepts in {len(nouns)} class nouns", page), split
    for package in text_of("scripts/tiny_base/packages.txt").split():
        assert f"`{package}`" in page


# Nodes, imports, and what the registry wants


def test_node_ids_are_unique_literals_with_our_prefix():
    ids = [node.id for node in NODES]
    assert len(ids) == len(set(ids)) == 10
    assert all(id_.startswith(PREFIX) for id_ in ids)  # a name that is no literal would be None


def test_every_node_is_listed():
    listed = re.findall(r"^    (\w+),$", text_of("nodes/__init__.py"), re.MULTILINE)
    assert len(set(listed)) == len(NODES)


def test_dependencies_are_two_packages_without_versions():
    wanted = ["peft", "open_clip_torch"]
    assert tomllib.loads(text_of("pyproject.toml"))["project"]["dependencies"] == wanted
    assert sorted(text_of("requirements.txt").split()) == sorted(wanted)


def test_project_facts_are_complete():
    project = tomllib.loads(text_of("pyproject.toml"))
    comfy = project["tool"]["comfy"]
    assert set(comfy) >= {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    assert comfy["DisplayName"] == "Continual LoRA"
    assert comfy["PublisherId"]
    assert comfy["requires-comfyui"] == ">=0.3.75"
    facts = project["project"]
    assert facts["name"] == "continual-lora"
    assert facts["license"] == "Apache-2.0"
    assert facts["requires-python"] == ">=3.10"
    assert facts["urls"]["Repository"].startswith("https://")
    assert f"## [{facts['version']}]" in text_of("CHANGELOG.md")
    assert f"git clone {facts['urls']['Repository']}\n" in text_of("README.md")


def test_web_directory_holds_the_help_pages():
    assert 'WEB_DIRECTORY = "./js"' in text_of("__init__.py")


def test_the_chart_library_is_as_it_came():
    folder = ROOT / "js" / "vendor" / "uplot"
    script, style = ((folder / name).read_bytes() for name in ("uPlot.min.mjs", "uPlot.min.css"))
    came = script.removesuffix(b"export default uPlot;\n")
    assert len(came) < len(script)
    changed = b"for(t of l.matchAll(i))"
    assert came.count(changed) == 1
    came = came.replace(changed, b"for(;t=i.exec(l);)")
    # Of dist/uPlot.iife.min.js and dist/uPlot.min.css in the npm package uplot 1.6.32.
    assert hashlib.sha256(came).hexdigest() == "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    assert hashlib.sha256(style).hexdigest() == "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"
    assert "MIT License" in text_of("js/vendor/uplot/LICENSE")
    assert "uPlot 1.6.32" in text_of("js/vendor/uplot/README.md") and "uPlot" in text_of("README.md")


def test_old_style_mappings_are_nowhere():
    # Even an empty NODE_CLASS_MAPPINGS makes ComfyUI ignore comfy_entrypoint.
    assert [str(path) for path in shipped(".py") if "NODE_CLASS_MAPPINGS" in path.read_text(encoding="utf-8")] == []


def test_imports_of_the_pack_are_relative():
    # Inside ComfyUI `nodes` is ComfyUI's own module, and `trainer` is nobody's.
    own = {"nodes", "trainer", "scripts", "tests", "benchmarks"}
    for path in shipped(".py"):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.Import):
                used = {alias.name.split(".")[0] for alias in item.names}
            elif isinstance(item, ast.ImportFrom) and item.level == 0:
                used = {item.module.split(".")[0]}
            else:
                continue
            assert not used & own, f"{path}:{item.lineno}"


def test_no_test_folder_is_named_as_a_package_of_the_pack():
    assert not {"nodes", "trainer"} & {path.name for path in (ROOT / "tests").iterdir()}
