"""Archives of torch.export that are not trusted: a program of tensors passes, and nothing else in one runs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from cloc.export.archive import MODEL, is_expression, is_guard
from cloc.export.graphs import drop_unused
from cloc.export.torch import load_program

WITNESS = "RAN"
CODE = f"__import__('pathlib').Path('{WITNESS}').touch()"


class Program(nn.Module):
    """Sizes in expressions, a guard, a subgraph, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        with torch.no_grad():
            kept = self.linear(tokens) + self.shift * torch.tensor([0.5, 1, 2, 3])
        rows = torch.cat([kept, boxes], 1)
        return nn.functional.gelu(rows.reshape(-1, 4), approximate="tanh").unflatten(0, (rows.shape[0], -1))


class Part(nn.Module):
    """One part of a larger model, with more than it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = Program()
        self.other = nn.Linear(300, 300)
        self.register_buffer("idle", torch.ones(90_000))
        self.register_buffer("unsaved", torch.ones(90_000), persistent=False)

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        found: Tensor = self.whole(tokens, boxes)
        return found


@pytest.mark.parametrize("strict", [True, False])
def test_a_program_holds_the_weights_that_it_uses(strict: bool, tmp_path: Path) -> None:
    examples = {"tokens": torch.rand(2, 3, 4), "boxes": torch.rand(2, 5, 4)}
    part = Part()
    program = torch.export.export(part, (), kwargs=examples, strict=strict)
    drop_unused(program)
    file = tmp_path / "part.pt2"
    torch.export.save(program, file, extra_files={"outputs": '["rows"]', "inputs": '["tokens", "boxes"]'})
    assert file.stat().st_size < 100_000
    again = load_program(file)[0]
    assert set(again.state_dict) == {"whole.linear.weight", "whole.linear.bias", "whole.shift"}
    assert not again.constants.keys() & {"idle", "unsaved"}
    torch.testing.assert_close(again.module()(**examples), part(**examples))


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(WITNESS),)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("archives") / "good.pt2"
    batch, count = Dim("batch", min=1), Dim("count", min=1)
    shapes = {"tokens": {0: batch}, "boxes": {0: batch, 1: count}}
    examples = {"tokens": torch.zeros(2, 3, 4), "boxes": torch.zeros(2, 5, 4)}
    program = torch.export.export(Program(), (), kwargs=examples, dynamic_shapes=shapes, strict=True)
    torch.export.save(program, file, extra_files={"outputs": '["rows"]', "inputs": '["tokens", "boxes"]'})
    return file


@pytest.fixture
def changed(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The archive with some members changed, added, or stored in another way."""
    monkeypatch.chdir(tmp_path)

    def write(
        change: Callable[[Any], Any] | None = None,
        member: str = MODEL,
        extra: dict[str, bytes] | None = None,
        method: int = zipfile.ZIP_STORED,
    ) -> Path:
        with zipfile.ZipFile(good) as old, zipfile.ZipFile("bad.pt2", "w", method) as new:
            for name in old.namelist():
                content = old.read(name)
                if change and name.endswith(member):
                    content = json.loads(content)
                    change(content)
                    content = json.dumps(content).encode()
                new.writestr(name, content)
            for name, content in (extra or {}).items():
                new.writestr(f"good/{name}", content)
        return tmp_path / "bad.pt2"

    return write


def refused(file: Path, match: str = "") -> None:
    with pytest.raises(ValueError, match=match) as caught:
        program, _ = load_program(file)
        program.module()(tokens=torch.zeros(1, 3, 4), boxes=torch.zeros(1, 2, 4))
    assert "\n" not in str(caught.value) and not Path(WITNESS).exists()


def graph(content: dict[str, Any]) -> dict[str, Any]:
    return content["graph_module"]["graph"]


def first_expression(content: Any) -> dict[str, Any]:
    found = [content] if isinstance(content, dict) and "expr_str" in content else []
    for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        found += [first_expression(inner)] if first_expression(inner) else []
    return found[0] if found else {}


def test_a_program_of_tensors_passes(good: Path, changed: Callable[..., Path]) -> None:
    with zipfile.ZipFile(good) as archive:
        content = json.loads(archive.read(f"good/{MODEL}"))
    assert content["guards_code"] and first_expression(content)  # what the rules are for is in it
    program, names = load_program(good)
    again, _ = load_program(changed(lambda content: None))
    tokens, boxes = torch.randn(3, 3, 4), torch.randn(3, 2, 4)
    assert names == ("rows",)
    expected = program.module()(tokens=tokens, boxes=boxes)
    assert expected.shape == (3, 5, 4) and again.module()(tokens=tokens, boxes=boxes).equal(expected)


def test_an_expression_is_arithmetic(changed: Callable[..., Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        first_expression(content)["expr_str"] = CODE

    refused(changed(change), "expr_str")
    for text in ("Min(Integer(64), Mul(Integer(2), Symbol('s34', positive=True, integer=True)))", "s0*2 + 1", "-s1//3"):
        assert is_expression(text)
    for text in (CODE, "().__class__", "s0.x", "s0[0]", "f(s0)", "lambda: 1", "'s0'", "9**9**9", "Pow(s0, s1)", "[s0]"):
        assert not is_expression(text)
    for text in (
        "Symbol('x y')",
        "Symbol(s0)",
        "Symbol('s0', x=1)",
        "Min(*s0)",
        "Min(x=s0)",
        "Integer(9" + "9" * 30 + ")",
    ):
        assert not is_expression(text)
    assert not is_expression("(" * 1000 + "s0" + ")" * 1000) and not is_expression("s0+" * 9999 + "s0")


def test_a_guard_compares_sizes(changed: Callable[..., Path]) -> None:
    for guard in (CODE, "L['boxes'].size()[0] == 1 and " + CODE, "L[f'{" + CODE + "}']"):
        refused(changed(lambda content, guard=guard: content.update(guards_code=[guard])), "guards_code")
    assert is_guard("L['boxes'].size()[0] == L['tokens'].size()[0]") and is_guard("2 <= L['x']['y'].size()[1]")
    for guard in ("L['x'].__class__", "x == 1", "L['x'].size()[0] == 1\n", "L['x'].size() == L", "L['{x}'] == 1"):
        assert not is_guard(guard)


@pytest.mark.parametrize(
    "target",
    [
        *(
            "torch.hub.load",
            "torch.load",
            "torch.compile",
            "torch.ops.aten.from_file.default",
            "torch.ops.load_library",
        ),
        *(
            "torch.os.system",
            "torch.ops.aten.save.default",
            "torch.ops.aten.__class__.mro",
            "torch.ops.aten.add.overloads",
        ),
        *("_operator.methodcaller", "_operator.attrgetter", "_operator.call", "math.perm", "#x:y", "os.system", ""),
        *("torch.ops.profiler._record_function_enter.default", "torch.ops.higher_order.triton_kernel_wrapper_mutation"),
    ],
)
def test_a_node_is_an_operator_of_tensors(changed: Callable[..., Path], target: str) -> None:
    refused(changed(lambda content: graph(content)["nodes"][0].update(target=target)), "target")
    argument = {"name": "x", "arg": {"as_operator": target}, "kind": 1}
    refused(changed(lambda content: graph(content)["nodes"][0]["inputs"].append(argument)), "as_operator")


@pytest.mark.parametrize(
    "name",
    ["x):\n    " + CODE + "\ndef g(", "x; " + CODE, "lambda", "a.__class__", "ⅰ", "x y", "__import__", "a." + CODE],
)
def test_a_name_becomes_no_source(changed: Callable[..., Path], name: str) -> None:
    """PyTorch writes names of nodes, inputs and weights into Python source."""
    signature = "graph_module"
    for change in (
        lambda content: graph(content)["nodes"][0].update(name=name),
        lambda content: graph(content)["inputs"][0]["as_tensor"].update(name=name),
        lambda content: graph(content)["tensor_values"].update(
            {name: next(iter(graph(content)["tensor_values"].values()))}
        ),
        lambda content: content["range_constraints"].update({name: {"min_val": 1, "max_val": 2}}),
        lambda content: content[signature]["module_call_graph"][0]["signature"].update(forward_arg_names=[name]),
        lambda content: content[signature]["signature"]["input_specs"][0]["parameter"].update(parameter_name=name),
    ):
        refused(changed(change))


@pytest.mark.parametrize(
    "node",
    [
        {
            "type": "collections.defaultdict",
            "context": '{"default_factory_module": "antigravity"}',
            "children_spec": [],
        },
        {
            "type": "builtins.dict",
            "context": '[{"__enum__": true, "fqn": "antigravity:x", "name": "y"}]',
            "children_spec": [],
        },
        {"type": "builtins.dict", "context": json.dumps([CODE]), "children_spec": []},
        {"type": "builtins.tuple", "context": '{"x": 1}', "children_spec": []},
        {"type": "builtins.tuple"},
        [],
    ],
)
def test_a_structure_imports_nothing(changed: Callable[..., Path], node: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        content["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, node])

    refused(changed(change), "in_spec")


def test_what_no_rule_knows_is_refused(changed: Callable[..., Path]) -> None:
    def into(content: dict[str, Any], arg: Any) -> None:
        graph(content)["nodes"][0]["inputs"].append({"name": "x", "arg": arg, "kind": 1})

    for arg in ({"as_int": CODE}, {"as_custom_obj": {"name": "x", "class_fqn": CODE}}, {"as_string": "/etc/passwd"}):
        refused(changed(lambda content, arg=arg: into(content, arg)), "is not part of a plain program")
    names = {"os.environ": {"field_names": ["x"]}}
    refused(changed(lambda content: content["graph_module"].update(treespec_namedtuple_fields=names)), "field_names")
    refused(changed(lambda content: graph(content)["nodes"][0]["metadata"].update(code="x")), "metadata")
    refused(changed(lambda content: content.clear()), "damaged")


def test_no_member_is_unpickled(good: Path, changed: Callable[..., Path]) -> None:
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    constants = "data/constants/model_constants_config.json"
    pickled = pickle.dumps(Payload())

    def opaque(content: dict[str, Any]) -> None:  # whatever is said of it, PyTorch unpickles what has this name
        first = next(iter(content["config"].values()))
        first["path_name"] = "opaque_obj_0"

    refused(changed(opaque, constants, {"data/constants/opaque_obj_0": pickled}), "not part of a plain program")
    refused(changed(opaque, constants), "is stored as a pickle")
    for name in (
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/custom_obj_0",
        "x",
        "models/b.json",
    ):
        refused(changed(extra={name: buffer.getvalue()}), "not part of a plain program")
    refused(changed(extra={"../serialized_exported_program.json": b"{}"}), "not part of a plain program")
    refused(changed(extra={"archive_version": b"0"}), "comes twice")


def test_members_are_stored_as_they_are(changed: Callable[..., Path]) -> None:
    """A small file says nothing large, and both readers of the archive see the same."""
    refused(changed(method=zipfile.ZIP_DEFLATED), "not part of a plain program")
