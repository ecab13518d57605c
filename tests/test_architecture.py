"""The rules of the design, read from the source: who may import whom, how large things are, what importing does."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("data_prep", "train", "eval")
# Layers of the library from the ground up. A module imports from lower layers, and from its own folder or file group.
LAYERS = (
    ("config", "config_errors", "types", "frames", "endpoint", "hub"),
    ("nn",),
    ("vision", "audio", "tokens"),
    ("lm", "data"),
    ("checkpoint", "quantize", "formats", "verify", "flops", "footprint", "estimate", "presets"),
    ("serve",),
    ("cli", "commands"),
)
FREE_WITHIN = (set(LAYERS[0]), set(LAYERS[4]), {"cli", "commands"})
# from_pretrained and save_pretrained are methods of the model, as everywhere, but loading is the checkpoint's business.
ALLOWED_UPWARD = {("mmspeech.lm.model", "mmspeech.checkpoint")}
HEAVY = (
    "timm", "transformers", "datasets", "accelerate", "deepspeed", "peft", "matplotlib", "pocketsphinx", "decord",
    "jiwer", "av",
)  # fmt: skip
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_RECIPE_LINES = 400, 60, 150
MAX_LAYER_PARAMETERS = 12


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules that `path` imports, by full name; with `lazy`, those inside functions too. Imports for types only do
    not count: they never run."""
    found = set()
    pending: list[ast.AST] = [parse(path)]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                pending.append(node)
    return found


def layer_of(group: str) -> int:
    return next(index for index, groups in enumerate(LAYERS) if group in groups)


def groups_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("mmspeech.")} - {"__version__"}


def test_every_module_has_a_layer():
    known = {group for groups in LAYERS for group in groups}
    there = {path.relative_to(ROOT / "mmspeech").parts[0].removesuffix(".py") for path in sources("mmspeech")}
    assert there - {"__init__"} <= known


@pytest.mark.parametrize("path", sources("mmspeech"), ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    if name == "mmspeech":
        assert not imports(path)
        return
    own = name.split(".")[1]
    for group in groups_imported(path) - {own}:
        if (name, f"mmspeech.{group}") in ALLOWED_UPWARD:
            continue
        together = any({own, group} <= friends for friends in FREE_WITHIN)
        assert together or layer_of(group) < layer_of(own), f"{name} imports mmspeech.{group}"


def test_programs_use_the_library_and_never_each_other():
    for folder in ("mmspeech", *PROGRAMS):
        for path in sources(folder):
            tops = {name.split(".")[0] for name in imports(path)}
            others = (set(PROGRAMS) - {folder}) & tops
            assert not others, f"{module_name(path)} imports {others}"


def test_no_import_cycles():
    graph = {module_name(path): imports(path, lazy=False) for path in sources("mmspeech", *PROGRAMS)}
    graph = {name: (found & graph.keys()) - {name} for name, found in graph.items()}
    while leaves := {name for name, found in graph.items() if not found}:
        graph = {name: found - leaves for name, found in graph.items() if name not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_heavy_libraries_are_imported_where_they_are_used():
    for path in sources("mmspeech", "eval"):
        heavy = {name.split(".")[0] for name in imports(path, lazy=False)} & set(HEAVY)
        assert not heavy, f"{module_name(path)} imports {heavy} on import"


@pytest.mark.parametrize("path", sources("mmspeech", *PROGRAMS, "tests"), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            recipe = path.parent.name == "train" and path.name in ("recipe.py", "codec.py", "tower.py")
            limit = MAX_RECIPE_LINES if recipe else MAX_FUNCTION_LINES
            assert code_lines(node, path) <= limit, f"{node.name} has {code_lines(node, path)} lines"


def code_lines(function: ast.FunctionDef, path: Path) -> int:
    """Lines of a function without its signature, docstring, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if not body:
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()[body[0].lineno - 1 : function.end_lineno]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def test_layers_take_few_named_scalars_and_see_no_config():
    layers = [*sources("mmspeech/nn"), *(ROOT / "mmspeech/audio" / name for name in ("seanet.py", "quantizer.py"))]
    for path in layers:
        assert "mmspeech.config" not in imports(path), module_name(path)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                count = len(node.args.args) - 1 + len(node.args.kwonlyargs)
                assert count <= MAX_LAYER_PARAMETERS, f"{module_name(path)}:{node.lineno} takes {count} parameters"
                assert len(node.args.args) - 1 <= 2, f"{module_name(path)}:{node.lineno}: name the parameters with *"


def test_the_library_passes_no_kwargs_through():
    for path in sources("mmspeech"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef):
                assert node.args.kwarg is None, f"{module_name(path)}.{node.name} takes **{node.args.kwarg.arg}"


def test_devices_are_chosen_at_the_edge():
    for path in sources(*(f"mmspeech/{name}" for name in ("nn", "vision", "audio", "tokens", "lm"))):
        texts = [n.value for n in ast.walk(parse(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert "cuda" not in texts and ".cuda()" not in path.read_text(encoding="utf-8"), module_name(path)


def test_errors_are_not_swallowed():
    """But where one step of the model serves many calls: whatever it raises ends those calls, and the next go on. And
    where functions of others run beside a call: whatever they raise is logged, and the call goes on."""
    for path in sources("mmspeech", *PROGRAMS):
        if module_name(path) in ("mmspeech.serve.worker", "mmspeech.serve.tools"):
            continue
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler):
                name = "" if node.type is None else ast.unparse(node.type)
                assert name not in ("", "Exception", "BaseException"), f"{module_name(path)}:{node.lineno}"


def test_importing_does_nothing():
    """All modules in a fresh process: nothing printed, no settings changed, no device started, nothing heavy loaded."""
    names = [module_name(path) for path in sources("mmspeech")]
    code = f"""
import os, sys, torch
before = (dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
import importlib
for name in {names!r}:
    importlib.import_module(name)
assert before == (dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
assert not torch.cuda.is_initialized()
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
