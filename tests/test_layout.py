"""The shape of the code: who imports whom, what lives where, how long things get.

Each rule reads one module and yields ``(line, message)``. Every rule runs over the real files and, so that it cannot
fall silent, over a snippet that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

FLOW = ["data", "models", "losses", "evaluation", "engine"]
BASE = {"checkpoints", "command", "console", "contracts", "config", "files", "launchers", "usage"}
MAY_IMPORT: dict[str, set[str]] = {
    "checkpoints": set(),
    "launchers": set(),
    "command": {"launchers"},
    "usage": {"command", "launchers"},
    "console": {"usage"},
    "contracts": set(),
    "files": set(),
    "config": {"contracts", "files", "usage"},
    **{folder: BASE | set(FLOW[:place]) for place, folder in enumerate(FLOW)},
    "encoder": BASE | {"data", "models"},
    "loading": BASE | {"data", "models", "encoder"},
    "export": BASE | {"data", "models", "losses", "encoder", "loading"},
    "labeling": BASE | {"data", "models", "losses", "encoder", "loading"},
}
for _unit in ("evaluation", "engine"):
    MAY_IMPORT[_unit] |= {"encoder", "loading"}
FREE = {"__init__", "__main__", "commands"}
COLLECTIVES = ("cloc/engine/process_group.py", "cloc/engine/rendezvous.py", "cloc/evaluation/reduce.py")
# Within evaluation: a file or folder imports from those to its left.
STEPS = [
    "reduce",
    "cache",
    "sets",
    "model_outputs",
    "metrics",
    "suite",
    "report",
    "cost",
    "seeds",
    "compare",
    "embed",
    "search",
]

Found = Iterator[tuple[int, str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One Python file: its path relative to the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def unit(self) -> str:
        """Folder or module directly below cloc/ that the file belongs to; empty elsewhere."""
        parts = Path(self.path).with_suffix("").parts
        return parts[1] if parts[0] == "cloc" else ""

    def imports(self) -> Iterator[tuple[int, str]]:
        """Yield every imported name in full, relative ones resolved, wherever the import stands."""
        package = Path(self.path).parent.parts
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else ()
                origin = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield node.lineno, f"{origin}.{alias.name}"
            elif isinstance(node, ast.Call) and _dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
                for argument in node.args[:1]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield node.lineno, argument.value


def _dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a chain of attributes on a name, else its tail."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def import_direction(module: Module) -> Found:
    if module.unit in FREE or not module.unit:
        return
    if module.unit not in MAY_IMPORT:
        yield 1, f"cloc/{module.unit} has no place in the flow; known are {', '.join(MAY_IMPORT)}"
        return
    allowed = MAY_IMPORT[module.unit] | {module.unit}
    for line, name in module.imports():
        if not _within(name, "cloc") or name == "cloc.__version__":
            continue
        target = name.split(".")[1] if "." in name else "the package root"
        if target not in allowed:
            yield line, f"{module.unit} imports {name}; it may import only {', '.join(sorted(allowed))}"


def evaluation_direction(module: Module) -> Found:
    step = Path(module.path).with_suffix("").parts[2] if module.unit == "evaluation" else "__init__"
    if step == "__init__":
        return
    if step not in STEPS:
        yield 1, f"cloc/evaluation/{step} has no place among its steps; known are {', '.join(STEPS)}"
        return
    allowed = STEPS[: STEPS.index(step) + 1]
    for line, name in module.imports():
        target = name.split(".")[2] if _within(name, "cloc.evaluation") and name.count(".") > 1 else step
        if target not in allowed:
            yield line, f"evaluation/{step} imports {name}; it may import only {', '.join(allowed)}"


def test_no_import_circles() -> None:
    """Anywhere, also within a folder, also where an import stands in a function or is for type checks alone."""
    modules = {_name(path): _read(path) for pattern in SOURCES for path in ROOT.glob(pattern)}
    graph = {name: {_owner(target, modules) for _, target in module.imports()} for name, module in modules.items()}
    assert _circle({name: found - {name, "", "cloc"} for name, found in graph.items()}) == []
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _owner(target: str, modules: dict[str, Module]) -> str:
    """The module that an imported name lies in."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """Names in or between circles: what is left when leaves and roots are taken away again and again."""
    left = {name: set(found) for name, found in graph.items()}
    while True:
        used = set().union(*left.values()) if left else set()
        kept = {name: found & left.keys() for name, found in left.items() if found & left.keys() and name in used}
        if kept == left:
            return sorted(left)
        left = kept


def lightning_in_engine_only(module: Module) -> Found:
    if module.unit == "engine" or module.path == "train.py":
        return
    for line, name in module.imports():
        if _within(name, "lightning", "lightning_fabric", "pytorch_lightning"):
            yield line, f"imports {name}; only cloc/engine and train.py know Lightning"


def collectives_at_home(module: Module) -> Found:
    if module.unit == "losses" or module.path in COLLECTIVES:
        return
    # Where parameters lie is a matter of the strategy; it moves no features between processes.
    sharding = ("torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.distributed.device_mesh")
    placed = ("strategy", "moving_average", "durable/checkpointing")
    spared = sharding if module.path in [f"cloc/engine/{name}.py" for name in placed] else ()
    uses = {
        (line, name)
        for line, name in module.imports()
        if _within(name, "torch.distributed") and not any(_within(name, part) for part in spared)
    }
    uses |= {(n.lineno, _dotted(n)) for n in ast.walk(module.tree) if isinstance(n, ast.Attribute)}
    for line in sorted({line for line, name in uses if _within(name, "torch.distributed")}):
        yield (
            line,
            f"torch.distributed; it lives in cloc/losses and {', '.join(COLLECTIVES)}",
        )


def short_files(module: Module) -> Found:
    count = len(module.text.splitlines())
    if count > MAX_FILE_LINES:
        yield count, f"the file has {count} lines; split it at {MAX_FILE_LINES}"


def short_functions(module: Module) -> Found:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {count} lines; at most {MAX_FUNCTION_LINES}"


def public_docstrings(module: Module) -> Found:
    def visit(body: list[ast.stmt]) -> Found:
        for node in body:
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            inherited = {_dotted(d).split(".")[-1] for d in node.decorator_list} & {"overload", "override", "setter"}
            if not inherited and not ast.get_docstring(node):
                yield node.lineno, f"{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body)

    yield from visit(module.tree.body)


def errors_are_not_swallowed(module: Module) -> Found:
    broad = {"Exception", "BaseException"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            silent = all(
                isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                for s in node.body
            )
            if node.type is None:
                yield node.lineno, "bare except; name the errors that are expected"
            elif silent and any(_dotted(kind) in broad for kind in kinds if kind):
                yield node.lineno, "swallows every error; name the errors that are expected"
        elif isinstance(node, ast.Call) and _dotted(node.func).split(".")[-1] == "suppress":
            if any(_dotted(argument) in broad for argument in node.args):
                yield node.lineno, "suppresses every error; name the errors that are expected"


def no_pickles(module: Module) -> Found:
    loaders = {"load", "loads", "Unpickler"}
    for line, name in module.imports():
        package, _, member = name.partition(".")
        if package in ("pickle", "cPickle", "_pickle", "dill", "cloudpickle") and member in loaders:
            yield line, f"imports {name}; unpickling runs code"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(
            r"(_?c?pickle|dill|cloudpickle)\.(loads?|Unpickler)", _dotted(node), re.IGNORECASE
        ):
            yield node.lineno, f"{_dotted(node)}; unpickling runs code"
        elif isinstance(node, ast.Call):
            for word in node.keywords:
                unsafe = (word.arg, getattr(word.value, "value", None)) in (
                    ("weights_only", False),
                    ("allow_pickle", True),
                )
                if unsafe:
                    yield word.value.lineno, f"{word.arg}={ast.unparse(word.value)}; unpickling runs code"


def ordinary_tensors(module: Module) -> Found:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute | ast.Name) and _dotted(node).split(".")[-1] == "inference_mode":
            yield node.lineno, "inference_mode; its tensors can neither be trained on nor changed: use torch.no_grad()"


_METHODS = {"write_text", "write_bytes", "touch", "mkdir", "rename", "symlink_to", "hardlink_to", "tofile"}
_METHODS |= {"savefig", "save", "savez", "savez_compressed", "savetxt", "save_file", "save_pretrained", "write_table"}
_METHODS |= {"export_chrome_trace", "to_csv", "to_parquet", "FileLock", "SoftFileLock", "NamedTemporaryFile"}
_METHODS |= {"TemporaryDirectory", "mkdtemp", "mkstemp", "copyfile", "copytree", "copy2"}
_SYSTEM = {f"os.{name}" for name in ("open", "replace", "link", "symlink", "truncate", "chmod", "mkfifo", "makedirs")}
_SYSTEM |= {"shutil.copy", "shutil.move"}
_MODE = re.compile(r"[rwaxbt+]{1,3}([:|]\w*)?")
# Of cloc.files: a writer may write into what one of them gives.
_GIVEN = {"open_new", "new_path", "into_folder", "hidden_folder", "create", "reopen"}


def _tail(call: ast.Call) -> str:
    """Last part of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else _dotted(call.func)


def _opens_for_writing(call: ast.Call) -> bool:
    texts = [word.value for word in [*call.args, *call.keywords] if isinstance(word, ast.Constant | ast.keyword)]
    texts = [text.value if isinstance(text, ast.Constant) else text for text in texts]
    modes = [text for text in texts if isinstance(text, str) and _MODE.fullmatch(text)]
    return any(set(re.split("[:|]", mode)[0]) & set("wax+") for mode in modes)


def _writes(call: ast.Call) -> bool:
    """Whether a call writes to a path, by its name."""
    name, tail = _dotted(call.func), _tail(call)
    if call.args and _dotted(call.args[0]) == "os.devnull":
        return False
    if tail in ("open", "ZipFile", "TarFile", "GzipFile"):
        return name == "os.open" or _opens_for_writing(call)
    if tail == "replace":  # of a path; a text's takes two, a dataclass's keywords
        return name == "os.replace" or (len(call.args) == 1 and not call.keywords)
    return tail in _METHODS or name in _SYSTEM


def _is_own_tokenizer(call: ast.Call) -> bool:
    """``Tokenizer.save`` goes through ``cloc.files`` itself."""
    if _tail(call) != "save" or not isinstance(call.func, ast.Attribute):
        return False
    made = call.func.value.func if isinstance(call.func.value, ast.Call) else call.func.value
    return "tokenizer" in _dotted(made).lower().split(".")


def _names(node: ast.AST) -> set[str]:
    """What a statement binds to a target of ``cloc.files``, or to a buffer in memory."""
    if isinstance(node, ast.With):
        bound = [(item.context_expr, item.optional_vars, _GIVEN) for item in node.items]
    elif isinstance(node, ast.Assign):
        bound = [(node.value, target, {"BytesIO", "StringIO"}) for target in node.targets]
    else:
        return set()
    calls = [(_tail(value), target, makers) for value, target, makers in bound if isinstance(value, ast.Call)]
    return {target.id for tail, target, makers in calls if tail in makers and isinstance(target, ast.Name)}


def _given(module: Module) -> set[ast.AST]:
    """Calls that write into what ``cloc.files`` gives, or into memory."""
    found: set[ast.AST] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and _tail(node) == "write_file":
            found.update(ast.walk(node))
        elif names := _names(node):
            calls = ast.walk(node if isinstance(node, ast.With) else module.tree)
            found.update(call for call in calls if isinstance(call, ast.Call) and _mentions(call, names))
    return found


def _mentions(call: ast.Call, names: set[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for word in call.args for part in ast.walk(word))


def written_in_one_place(module: Module) -> Found:
    if module.unit == "files" or module.path.startswith("cloc/export/remote/"):  # which runs where no cloc is
        return
    given = _given(module)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and _writes(node) and node not in given and not _is_own_tokenizer(node):
            yield node.lineno, f"{ast.unparse(node.func)} writes to a path; only cloc/files writes"


# The brackets keep this file from tripping over itself.
_MARKS = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")


def nothing_left_for_later(module: Module) -> Found:
    for line, text in enumerate(module.text.splitlines(), start=1):
        for mark in _MARKS.findall(text):
            yield line, f"{mark}; do it, or write an issue"


PACKAGE = ["cloc/**/*.py"]
SOURCES = [*PACKAGE, "benchmarks/**/*.py", "*.py"]
EVERYTHING = [*SOURCES, "tests/**/*.py"]
RULES: dict[Callable[[Module], Found], list[str]] = {
    import_direction: PACKAGE,
    evaluation_direction: ["cloc/evaluation/**/*.py"],
    lightning_in_engine_only: [*PACKAGE, "*.py"],
    collectives_at_home: PACKAGE,
    short_files: SOURCES,
    short_functions: SOURCES,
    public_docstrings: PACKAGE,
    errors_are_not_swallowed: SOURCES,
    no_pickles: SOURCES,
    ordinary_tensors: PACKAGE,
    written_in_one_place: [*PACKAGE, "*.py"],
    nothing_left_for_later: EVERYTHING,
}


@cache
def _read(path: Path) -> Module:
    return Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Callable[[Module], Found]) -> None:
    paths = sorted({path for pattern in RULES[rule] for path in ROOT.glob(pattern)})
    modules = [_read(path) for path in paths]
    assert modules
    broken = [f"{module.path}:{line}: {message}" for module in modules for line, message in rule(module)]
    assert not broken, "\n" + "\n".join(broken)


LONG_BODY = "    x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("rule", "path", "text", "line"),
    [
        (import_direction, "cloc/data/a.py", "import torch\nfrom cloc.models import towers", 2),
        (import_direction, "cloc/data/a.py", "from cloc import losses", 1),
        (import_direction, "cloc/data/a.py", "from ..engine.module import M", 1),
        (import_direction, "cloc/data/readers/a.py", "from ...engine import M", 1),
        (import_direction, "cloc/data/__init__.py", "from ..models import M", 1),
        (import_direction, "cloc/models/a.py", "def f():\n    import cloc.evaluation.x", 2),
        (import_direction, "cloc/models/a.py", "import importlib\nimportlib.import_module('cloc.engine')", 2),
        (import_direction, "cloc/export/a.py", "from cloc.engine import run", 1),
        (import_direction, "cloc/export/a.py", "from cloc.evaluation import run", 1),
        (import_direction, "cloc/encoder.py", "from cloc.losses import clip", 1),
        (import_direction, "cloc/encoder.py", "import cloc", 1),
        (import_direction, "cloc/contracts.py", "from cloc.config import Config", 1),
        (import_direction, "cloc/utils.py", "", 1),
        (evaluation_direction, "cloc/evaluation/sets/a.py", "from cloc.evaluation.metrics.catalog import ALL", 1),
        (evaluation_direction, "cloc/evaluation/report/a.py", "import torch\nfrom cloc.evaluation import compare", 2),
        (evaluation_direction, "cloc/evaluation/metrics/a.py", "from ..report.table import compare", 1),
        (evaluation_direction, "cloc/evaluation/helpers.py", "", 1),
        (lightning_in_engine_only, "cloc/data/a.py", "from lightning import Trainer", 1),
        (lightning_in_engine_only, "eval.py", "import lightning.pytorch as pl", 1),
        (collectives_at_home, "cloc/models/a.py", "import torch.distributed as dist", 1),
        (collectives_at_home, "cloc/models/a.py", "from torch import distributed", 1),
        (collectives_at_home, "cloc/engine/a.py", "import torch\ntorch.distributed.barrier()", 2),
        (short_files, "cloc/data/a.py", "x = 1\n" * (MAX_FILE_LINES + 1), MAX_FILE_LINES + 1),
        (short_functions, "cloc/data/a.py", f"x = 1\ndef f():\n{LONG_BODY}", 2),
        (public_docstrings, "cloc/data/a.py", "def f():\n    return 1", 1),
        (public_docstrings, "cloc/data/a.py", "class A:\n    '''Doc.'''\n    def f(self): ...", 3),
        (errors_are_not_swallowed, "cloc/data/a.py", "try:\n    f()\nexcept:\n    raise", 3),
        (errors_are_not_swallowed, "cloc/data/a.py", "try:\n    f()\nexcept (OSError, Exception):\n    pass", 3),
        (errors_are_not_swallowed, "cloc/data/a.py", "with contextlib.suppress(Exception):\n    f()", 1),
        (no_pickles, "cloc/data/a.py", "import pickle\npickle.loads(b'')", 2),
        (no_pickles, "cloc/data/a.py", "from pickle import load", 1),
        (no_pickles, "cloc/data/a.py", "torch.load(\n    p,\n    weights_only=False,\n)", 3),
        (ordinary_tensors, "cloc/data/a.py", "@torch.inference_mode()\ndef f():\n    return 1", 1),
        (written_in_one_place, "cloc/data/a.py", "x = 1\npath.write_text(text)", 2),
        (written_in_one_place, "cloc/data/a.py", "def f():\n    with path.open('wb') as file:\n        pass", 2),
        (written_in_one_place, "cloc/data/a.py", "open(path, mode='a')", 1),
        (written_in_one_place, "cloc/data/a.py", "open(path, 'r+b')", 1),
        (written_in_one_place, "cloc/data/a.py", "tarfile.open(path, 'w:gz')", 1),
        (written_in_one_place, "cloc/data/a.py", "zipfile.ZipFile(path, 'w')", 1),
        (written_in_one_place, "cloc/data/a.py", "part.replace(path)", 1),
        (written_in_one_place, "cloc/data/a.py", "os.replace(part, path)", 1),
        (written_in_one_place, "cloc/data/a.py", "folder.mkdir(exist_ok=True)", 1),
        (written_in_one_place, "cloc/data/a.py", "FileLock(path)", 1),
        (written_in_one_place, "cloc/data/a.py", "tempfile.mkdtemp()", 1),
        (written_in_one_place, "cloc/models/a.py", "torch.save(state, path)", 1),
        (written_in_one_place, "cloc/models/a.py", "with new_path(path) as part:\n    torch.save(state, path)", 2),
        (written_in_one_place, "cloc/export/a.py", "save_file(weights, path)", 1),
        (written_in_one_place, "cloc/export/a.py", "tokenizer.save_pretrained(folder)", 1),
        (written_in_one_place, "cloc/engine/a.py", "figure.savefig(path)", 1),
        (written_in_one_place, "train.py", "np.save(path, array)", 1),
        (nothing_left_for_later, "cloc/data/a.py", "x = 1  # {} later".format("todo".upper()), 1),
    ],
)
def test_rule_bites(rule: Callable[[Module], Found], path: str, text: str, line: int) -> None:
    assert [found for found, _ in rule(Module(path, text))] == [line]


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (import_direction, "cloc/engine/a.py", "from cloc.evaluation import run\nfrom cloc.encoder import Encoder"),
        (import_direction, "cloc/export/a.py", "from cloc import __version__\nfrom ..encoder import Encoder"),
        (import_direction, "cloc/data/a.py", "from . import b\nfrom .b import c\nfrom cloc.contracts import Sample"),
        (import_direction, "cloc/__main__.py", "from cloc.engine import run"),
        (evaluation_direction, "cloc/evaluation/report/a.py", "from cloc.evaluation.metrics.catalog import ALL"),
        (evaluation_direction, "cloc/evaluation/__init__.py", "import torch"),
        (lightning_in_engine_only, "train.py", "import lightning"),
        (collectives_at_home, "cloc/engine/process_group.py", "import torch.distributed as dist"),
        (errors_are_not_swallowed, "cloc/data/a.py", "try:\n    f()\nexcept KeyError:\n    pass"),
        (no_pickles, "cloc/data/a.py", "torch.load(p, weights_only=True)\njson.load(f)"),
        (written_in_one_place, "cloc/files/whole.py", "path.open('wb')"),
        (written_in_one_place, "cloc/export/remote/a.py", "tokenizer.save_pretrained(folder)"),
        (written_in_one_place, "cloc/data/a.py", "path.open('rb')\ntext.replace('a', 'b')\nreplace(item, name='a')"),
        (written_in_one_place, "cloc/data/a.py", "write_file(path, lambda file: image.save(file, 'PNG'))"),
        (written_in_one_place, "cloc/data/a.py", "with new_path(path) as part:\n    torch.save(state, str(part))"),
        (written_in_one_place, "cloc/data/a.py", "buffer = io.BytesIO()\nimage.save(buffer, 'PNG')"),
        (written_in_one_place, "cloc/export/a.py", "encoder.tokenizer.save(folder)\nTokenizer.of(tower).save(folder)"),
    ],
)
def test_rule_lets_pass(rule: Callable[[Module], Found], path: str, text: str) -> None:
    assert list(rule(Module(path, text))) == []
