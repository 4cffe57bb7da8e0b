"""Is an archive of ``torch.export`` a program of tensors and nothing else? Asked before PyTorch reads it.

PyTorch's loader trusts its archive: it evaluates expressions of sizes (``sympify`` is ``eval``), turns names and guards
into Python source, imports what a structure of arguments names, calls any function below ``torch`` that a node names,
and unpickles. So everything in an archive is held to what a program of tensors consists of: members by name, and in its
JSON each text by the key that it stands under. What no rule admits is refused.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

MODEL = "models/model.json"
PAYLOADS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
SAMPLES = "data/sample_inputs/model.pt"
# Members with other names are unpickled, loaded as compiled code, or read as the format of PyTorch 2.7.
MEMBER = re.compile(
    rf"{MODEL}|{'|'.join(PAYLOADS)}|{SAMPLES}|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|extra/(inputs|outputs)|archive_format|archive_version|byteorder|version|\.data/\w+"
)
PAYLOAD = re.compile(r"(weight|tensor)_\d+")  # custom and opaque objects are unpickled, whatever is said of them

TENSOR_OPERATOR = re.compile(r"torch\.ops\.(aten|torchvision)\.([A-Za-z_]\w*)\.([A-Za-z]\w*)", re.ASCII)
OF_FILES = ("from_file", "save")  # PyTorch's only operators that open a file
OPERATOR = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|torch\.sym_(float|int|ite|max|min|not|sum)|math\.(ceil|floor|trunc)"
)
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
TEXT = re.compile(r"[^/\\\x00-\x1f]{0,500}")  # an operator's argument (a mode, a message), which is quoted in source
GUARD = re.compile(r"[\w ()\[\]'\".*+%<>=!-]{1,1000}", re.ASCII)  # no line break, comment, brace or backslash
REMEDY = "export the model again"
SYMBOL = re.compile(r"[a-z]+\d+|true|false", re.ASCII)
SIZE = re.compile(r"L(\['\w+'\]|\[\d+\])+(\.(size|stride)\(\)\[\d+\]|\.ndim|\.storage_offset\(\))?", re.ASCII)
LONGEST = 2000  # of an expression
NUMBERS = 1 << 63
FUNCTIONS = {
    *("Add", "Mul", "Min", "Max", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "Abs"),
    *("IntTrueDiv", "FloatTrueDiv", "ToFloat", "FloorToInt", "CeilToInt", "TruncToInt", "Integer", "Identity"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Equality", "Unequality", "LessThan", "GreaterThan"),
    *("StrictLessThan", "StrictGreaterThan"),
}
ASSUMPTIONS = {"positive", "nonnegative", "integer", "real", "finite", "zero", "nonzero", "commutative"}
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.USub, ast.UAdd, ast.Not)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.And, ast.Or)
GRAMMAR = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load, *ARITHMETIC, *COMPARISONS)
METADATA = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"}
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def check_archive(file: Path) -> None:
    """Refuse an archive that holds anything but a program of tensors.

    Raises:
        ValueError: it is damaged, or a member or a text in it could run code; names it.
    """
    names = _members(file)
    try:
        reader = PT2ArchiveReader(str(file))  # PyTorch's own view of the file is what counts
        if sorted(reader.get_file_names()) != sorted(names):
            raise ValueError(f"{file} is damaged: its two lists of members differ")
        for name in PAYLOADS:
            for entry, payload in json.loads(reader.read_bytes(name))["config"].items():
                if payload.get("use_pickle") or not PAYLOAD.fullmatch(str(payload.get("path_name"))):
                    raise ValueError(f"{file}: {entry} is stored as a pickle, which can run code; {REMEDY}")
            check_texts(json.loads(reader.read_bytes(name)), f"{file}: {name}")
        check_texts(json.loads(reader.read_bytes(MODEL)), f"{file}: {MODEL}")
        _check_samples(reader.read_bytes(SAMPLES), f"{file}: {SAMPLES}")
    except (KeyError, AttributeError, TypeError, RuntimeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged or no torch.export program: {str(error).splitlines()[:1]}") from error


def _members(file: Path) -> list[str]:
    """Names of all members, without the archive's own in front."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is damaged or no torch.export program: {error}") from error
    names = [entry.filename.partition("/")[2] for entry in found]
    if len(set(names)) < len(names) or len({entry.filename.partition("/")[0] for entry in found}) > 1:
        raise ValueError(f"{file}: a member comes twice, so it is not known what would be loaded")
    for entry, name in zip(found, names, strict=True):
        if not MEMBER.fullmatch(name) or entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{file}: {entry.filename} is not part of a plain program (code, or an old format)")
    return names


def _check_samples(content: bytes, where: str) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(f"{where} would run code when it is loaded; {REMEDY}") from error


def check_texts(content: Any, where: str, key: str = "") -> None:
    """Hold every text in an archive's JSON to the rule of its key, and every key to a name.

    Args:
        content: of a member.
        where: file and member, for messages.
        key: that the content stands under.

    Raises:
        ValueError: a text or key that no rule admits.
    """
    if key == "metadata":  # where a node came from: kept beside the program, never part of it
        wrong = sorted(set(content) - METADATA) or [name for name in content if not isinstance(content[name], str)]
    elif isinstance(content, dict):
        wrong = [name for name in content if name and not _is_name(name)]
        for name, inner in content.items():
            check_texts(inner, where, name)
    elif isinstance(content, list):
        wrong = []
        for inner in content:
            check_texts(inner, where, key)
    else:
        wrong = [content] if isinstance(content, str) and not (key in RULES and RULES[key](content)) else []
    if wrong:
        raise ValueError(f"{where}: {key} {wrong[0][:80]!r} is not part of a plain program; {REMEDY}")


def _is_name(text: str) -> bool:
    """A name that becomes Python source: identifiers, none of them Python's own."""
    parts = text.split(".")
    return NAME.fullmatch(text) is not None and not any(
        keyword.iskeyword(part) or (part.startswith("__") and part.endswith("__")) for part in parts
    )


def _is_operator(text: str) -> bool:
    """An operator of tensors or of sizes; not any other function that the loader would find below ``torch``."""
    match = TENSOR_OPERATOR.fullmatch(text)
    if match is None:
        return OPERATOR.fullmatch(text) is not None
    library, name, overload = match.groups()
    found = getattr(getattr(getattr(torch.ops, library), name, None), overload, None)
    return name not in OF_FILES and isinstance(found, torch._ops.OpOverload)


def _is_structure(text: str) -> bool:
    """A structure of arguments: tuples, lists and dictionaries with names as keys."""

    def plain(node: dict[str, Any]) -> bool:
        context = json.loads(node["context"]) if node["context"] is not None else None
        keys = context if isinstance(context, list) else []
        named = (context is None or isinstance(context, list)) and all(isinstance(k, str) and _is_name(k) for k in keys)
        return named and node["type"] in CONTAINERS and all(plain(child) for child in node["children_spec"])

    try:
        protocol, spec = json.loads(text)
        return protocol == 1 and plain(spec)
    except (KeyError, TypeError, ValueError):
        return False


def is_expression(text: str) -> bool:
    """Whether a text is arithmetic of integers and of symbols of sizes (``s0``), as sympy prints it."""
    return len(text) <= LONGEST and _parses(text, _arithmetic)


def is_guard(text: str) -> bool:
    """Whether a text compares sizes of inputs: ``L['boxes'].size()[0] == L['tokens'].size()[0]``."""
    return GUARD.fullmatch(text) is not None and _parses(text, _size)


def _parses(text: str, leaf: Callable[[ast.AST], bool | None]) -> bool:
    try:
        return _made_of(ast.parse(text, mode="eval"), leaf)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _made_of(node: ast.AST, leaf: Callable[[ast.AST], bool | None]) -> bool:
    """Whether each part of a tree is of the grammar, or admitted by ``leaf`` (None looks inside)."""
    answer = leaf(node)
    if answer is None:
        return isinstance(node, GRAMMAR) and all(_made_of(child, leaf) for child in ast.iter_child_nodes(node))
    return answer


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) < NUMBERS


def _arithmetic(node: ast.AST) -> bool | None:
    if isinstance(node, ast.Constant):
        return _is_number(node)
    if isinstance(node, ast.Name):
        return SYMBOL.fullmatch(node.id) is not None
    if not isinstance(node, ast.Call):
        return None
    function = node.func.id if isinstance(node.func, ast.Name) else ""
    if function == "Symbol":
        assumed = all(word.arg in ASSUMPTIONS and _is_number(word.value) for word in node.keywords)
        name = node.args[0] if len(node.args) == 1 else None
        return assumed and isinstance(name, ast.Constant) and SYMBOL.fullmatch(str(name.value)) is not None
    return function in FUNCTIONS and not node.keywords and all(_made_of(part, _arithmetic) for part in node.args)


def _size(node: ast.AST) -> bool | None:
    if isinstance(node, ast.Constant):
        return _is_number(node)
    if isinstance(node, ast.Subscript | ast.Call | ast.Attribute | ast.Name):
        return SIZE.fullmatch(ast.unparse(node)) is not None
    return None


RULES: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        ("name", "as_name", "parameter_name", "buffer_name", "fqn"), lambda text: not text or _is_name(text)
    ),
    **dict.fromkeys(("tensor_constant_name", "user_input_name", "forward_arg_names"), _is_name),
    **dict.fromkeys(("target", "as_operator"), _is_operator),
    **dict.fromkeys(("in_spec", "out_spec"), _is_structure),
    **dict.fromkeys(("as_string", "as_strings"), TEXT.fullmatch),
    **dict.fromkeys(("as_float", "as_floats", "real", "imag"), re.compile(r"-?Infinity|NaN").fullmatch),
    "expr_str": is_expression,
    "guards_code": is_guard,
    "path_name": PAYLOAD.fullmatch,
    "type": re.compile(r"[a-z]+(:\d+)?").fullmatch,  # of a device
    "verifiers": re.compile(r"[A-Z_]+").fullmatch,
    "torch_version": re.compile(r"[\w.+<=]+", re.ASCII).fullmatch,
}
