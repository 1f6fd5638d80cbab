"""The archive that the registry would get: what git tracks, less what `.comfyignore` names, as comfy-cli packs it."""

import ast
import re
import subprocess
import zipfile

import pathspec
import pytest

from .test_docs import BY_ID, ROOT, text_of

LIMIT = 25_000_000  # bytes; 21 million of them are the embedded base's weights, which hardly pack
TOP = {"CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "pyproject.toml", "requirements.txt"}
FOLDERS = {
    "js": {".js", ".mjs", ".css", ".md", ".jpg", ".png"},
    "locales": {".json"},
    "nodes": {".py"},
    "trainer": {".py", ".typed", ".safetensors", ".json", ".png", ".md"},
    "workflows": {".json", ".jpg"},
}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.getenv", "torch.load"}
CALLS |= {f"{owner}{name}" for owner in ("", "huggingface_hub.") for name in ("hf_hub_download", "snapshot_download")}
MODULES = (
    {"subprocess", "pty", "ctypes", "pickle", "cPickle", "dill", "shelve", "marshal", "pip", "ensurepip"}
    | {"requests", "urllib", "urllib3", "http", "httpx", "aiohttp", "socket", "ftplib", "smtplib", "websockets"}
    | {"wget"}
)
HARMFUL_JS = {
    "code from text": r"\b(eval|exec)\s*\(|\bnew Function\b|\bimportScripts\b|document\.write",
    "another way out": r"\bXMLHttpRequest\b|\bWebSocket\b|sendBeacon|(?<![\w.])fetch\s*\(",
    "another host": r"https?://(?!www\.w3\.org/|github\.com/leeoniya/uPlot)",  # names, not addresses
    "cookies": r"document\.cookie",
    "words of Python's that a scanner looks for in any file": r"\bsubprocess\b|requests\.",
}


def archived():
    """The paths in the archive, relative to the root."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    rules = pathspec.PathSpec.from_lines("gitignore", text_of(".comfyignore").splitlines())
    return [name for name in tracked.split("\0") if name and (ROOT / name).is_file() and not rules.match_file(name)]


ARCHIVED = archived()
PYTHON = [name for name in ARCHIVED if name.endswith(".py")]
SCRIPTS = [name for name in ARCHIVED if name.endswith((".js", ".mjs"))]


def dotted(node):
    """`os.path.join` of an expression of names and dots; empty for any other one."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def flagged(source):
    """What the registry's scanner would flag in Python, as (line, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            used = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used = set() if node.level else {(node.module or "").split(".")[0]}
            if {alias.name for alias in node.names} == {"web"}:  # of aiohttp: answers of ComfyUI's own server
                used -= {"aiohttp"}
            if node.module == "os":
                used |= {f"os.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and dotted(node.func) in CALLS:
            yield node.lineno, f"{dotted(node.func)}(...)"
            continue
        elif isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.environb"):
            yield node.lineno, "os.environ"
            continue
        else:
            continue
        yield from ((node.lineno, name) for name in used & (MODULES | {"os.environ", "os.getenv", "os.system"}))


def test_archive_holds_what_the_pack_needs():
    needed = {"pyproject.toml", "requirements.txt", "LICENSE", "README.md", "__init__.py", "nodes/__init__.py"}
    needed |= {f"js/docs/{name}.md" for name in BY_ID}
    needed |= {f"locales/{language}/nodeDefs.json" for language in ("en", "es", "ja", "ko", "zh")}
    for folder in ("js", "locales", "nodes", "trainer", "workflows"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        needed |= {path.relative_to(ROOT).as_posix() for path in files}
    assert sorted(needed - set(ARCHIVED)) == []


def test_archive_holds_nothing_else():
    for name in ARCHIVED:
        top, *rest = name.split("/")
        assert (top in FOLDERS) if rest else (top in TOP), name
        if rest and rest[-1] != "LICENSE":
            assert name[name.rindex(".") :] in FOLDERS[top], name


def test_archive_is_small(tmp_path):
    with zipfile.ZipFile(tmp_path / "node.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ARCHIVED:
            file.write(ROOT / name, name)
    assert (tmp_path / "node.zip").stat().st_size < LIMIT


def test_python_has_nothing_that_the_scanner_flags():
    assert [(name, *found) for name in PYTHON for found in flagged(text_of(name))] == []


@pytest.mark.parametrize("what", HARMFUL_JS)
def test_javascript_has_nothing_that_the_scanner_flags(what):
    assert [name for name in SCRIPTS if re.search(HARMFUL_JS[what], text_of(name))] == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import subprocess",
        "from urllib.request import urlopen",
        "import os\nx = os.environ['A']",
        "from os import environ",
        "import os\nos.system('ls')",
        "import torch\ntorch.load('x')",
        "import pickle as p",
        "from aiohttp import ClientSession",
        "import aiohttp",
        "import pip",
        "from huggingface_hub import hf_hub_download\nhf_hub_download('x')",
    ],
)
def test_what_is_flagged_is_found(source):
    assert len(list(flagged(source))) == 1


def test_what_only_looks_like_it_is_not_flagged():
    assert list(flagged("import re\nfrom . import http\nre.compile('eval(x)')\nmodel.eval()\nos.environment")) == []
