"""Every command explains itself with examples that can be run, and what cannot be read is a line with exit code 1."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import typer
from hydra import compose, initialize, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from cloc import __main__ as command_line
from cloc import command
from cloc.config import ConfigError, EvalConfig, TrainConfig, check_overrides, register_eval
from cloc.config.help import EVAL, TRAIN, Program, front, help_text
from cloc.data.stream.skip_limits import SkipLimitError
from cloc.data.stream.workers import ReaderError
from cloc.engine.durable.checkpoint_file import CheckpointError
from cloc.usage import Parser, clock, meant, one_line, override
from tests.kit.paths import ROOT

ROOT_COMMAND: Any = typer.main.get_command(command_line.app)
BENCHMARKS = [
    path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if "def make_parser" in path.read_text("utf-8")
]
BENCHMARKS += [f"{path.parent.name}.__main__" for path in sorted((ROOT / "benchmarks").glob("*/__main__.py"))]
HAVE_COMMANDS = ("scaling", "tournament.__main__")


def walk(command: Any, path: str = "python -m cloc") -> Iterator[tuple[str, Any]]:
    """Every group and command below a command, by what a user types."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{path} {name}")


COMMANDS = dict(walk(ROOT_COMMAND))
LEAVES = {path: command for path, command in COMMANDS.items() if not hasattr(command, "commands")}


def examples(text: str, command: str) -> list[list[str]]:
    """Words of the lines of a help that are calls of a command, alone or under torchrun."""
    begin = re.compile(rf"^ +(?:torchrun \S+ )?(?:python )?{re.escape(command.removeprefix('python '))}(?: (.*))?$")
    lines = [line.split("   #")[0].rstrip() for line in text.splitlines()]
    return [shlex.split(found[1] or "") for line in lines if (found := begin.match(line))]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Call the command line as `python -m cloc` does; its exit code."""
    monkeypatch.setattr(sys, "argv", ["cloc", *arguments])
    monkeypatch.setattr("typer._click.utils._detect_program_name", lambda *_: "python -m cloc", raising=False)
    monkeypatch.setattr("cloc.config.secrets.guard_output", lambda: None)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return int(ended.value.code or 0)


def parse(words: list[str], command: Any = ROOT_COMMAND) -> None:
    """Read a command line without running it."""
    context = command.make_context("cloc", list(words))
    rest = [*context._protected_args, *context.args] if hasattr(command, "commands") else []
    if rest:
        parse(rest[1:], command.commands[rest[0]])


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_an_example_that_parses(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*path.split()[3:], "--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "Exit codes: 0 done, 1 " in text and "75 " in text and "130 " in text
    found = examples(text, path)
    assert found, text
    for words in found:
        parse([*path.split()[3:], *words])


@pytest.mark.parametrize("path", LEAVES)
def test_what_cannot_be_read_is_a_line(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = path.split()[3:]
    for arguments, told in ((["--nonsense"], "No such option: --nonsense"), ([], "Missing argument")):
        assert run([*words, *arguments], monkeypatch) == 1
        output = capsys.readouterr()
        assert output.err.startswith(f"error: {told}") and output.err.endswith(f"see {path} --help\n")
        assert output.err.count("\n") == 1 and output.out == ""


MISSING = {
    "data convert": ["coco", "nowhere", "out"],
    "data check": ["nowhere"],
    "data split": ["nowhere", "out"],
    "data negatives": ["nowhere", "out"],
    "data index": ["nowhere"],
    "data show": ["nowhere"],
    "data bench": ["nowhere"],
    "embed": ["nowhere", "nowhere", "out"],
    "search": ["nowhere", "a dog"],
    "sweep report": ["nowhere"],
} | {f"export {name}": ["nowhere", "out"] for name in ("hf", "open_clip", "timm", "onnx", "torch", "regions")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("export") else name for name in MISSING]
)
def test_a_file_that_is_missing_is_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*name.split(), *MISSING[name]], monkeypatch) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    assert "nowhere" in text or "pip install" in text
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_asked_for_a_missing_file() -> None:
    assert {f"python -m cloc {name}" for name in MISSING} == set(LEAVES)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dat", "check"], "did you mean 'data'?"),
        (["data", "chek", "x"], "did you mean 'check'?"),
        (["data", "check", "x", "--worker", "2"], "did you mean '--workers'?"),
        (["data", "check", "x", "--workers", "two"], "'--workers'"),
        (["export", "zip", "a", "b"], "No such command 'zip'"),
        (["data"], "python -m cloc data: name one of its commands"),
    ],
)
def test_typos(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, monkeypatch) == 1
    text = capsys.readouterr().err
    assert told.lower() in text.lower() and text.count("\n") == 1


# --- train.py, eval.py ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [TRAIN, EVAL], ids=lambda one: one.name)
def test_the_help_of_a_program(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Plugins.instance()  # they register once
    # What else is registered would otherwise stay for the tests that follow.
    monkeypatch.setattr(ConfigStore.instance(), "repo", deepcopy(ConfigStore.instance().repo))
    with pytest.raises(SystemExit) as ended:
        front(program, ["--help"])
    assert ended.value.code == 0
    text = help_text(program, 80)
    assert set(capsys.readouterr().out.split()) == set(text.split())
    assert max(map(len, text.splitlines())) <= 80
    found = examples(text.split("Examples:")[1], program.name)
    assert len(found) == len(program.examples)
    schema = {TRAIN: TrainConfig, EVAL: EvalConfig}[program]
    for words in found:
        check_overrides(words, schema)
        if "-m" in words:
            assert OverridesParser.create().parse_overrides([word for word in words if word != "-m"])
            continue
        if program is TRAIN:
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                assert compose("train", words).name
        else:
            register_eval()
            with initialize(None, version_base="1.3"):
                assert compose("eval", words).checkpoint
    for name in (*program.groups, *program.shown):
        assert f"\n  {name} " in text
    experiments = [path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")]
    assert all(f"\n  {name} " in text for name in experiments if program is TRAIN)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("train.py", ["experiment=NAME", "demo_cloc           The demo's CLOC\n", "data.train=FOLDER samples=100_000"]),
        ("eval.py", ["checkpoint=RUN", "'data=[SET,…]'", "openmoji"]),
    ],
)
def test_a_bare_call_says_what_is_missing(script: str, told: list[str]) -> None:
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: nothing to ") and "Traceback" not in done.stderr
    assert re.sub(" +", " ", done.stderr) and all(one.split()[0] in done.stderr for one in told)
    assert done.stderr.endswith(f"see python {script} --help\n")


def test_a_flag_that_hydra_does_not_know_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        front(TRAIN, ["--dryrun", "experiment=demo_cloc"])
    text = capsys.readouterr().err
    assert ended.value.code == 1 and text == ("error: unrecognized arguments: --dryrun; see python train.py --help\n")
    for arguments in (["experiment=demo_cloc"], ["-m", "seed=0,1"], ["--cfg", "job"], ["--config-name=line"]):
        front(TRAIN, arguments)  # Hydra's


# --- scripts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_help_of_a_benchmark(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open_clip_train")
    module = importlib.import_module(f"benchmarks.{name}")
    parser = module.make_parser()
    found = examples(parser.format_help(), f"python -m benchmarks.{name.removesuffix('.__main__')}")
    assert found
    for words in found:
        parser.parse_known_args(words) if name in HAVE_COMMANDS else parser.parse_intermixed_args(words)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--nonsense"])
    assert ended.value.code == 1 and capsys.readouterr().err.count("\n") == 1


def test_the_fuzzer_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.fuzz.__main__ import app

    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        app(["--help"], prog_name="python -m tests.fuzz")
    text = capsys.readouterr().out
    assert ended.value.code == 0 and (found := examples(text, "python -m tests.fuzz"))
    parse(found[0], typer.main.get_command(app))
    with pytest.raises(SystemExit) as ended:
        app(["--input", "3"], prog_name="python -m tests.fuzz")
    assert ended.value.code == 1 and "did you mean '--inputs'?" in capsys.readouterr().err


def test_a_parser_tells_a_wrong_option_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("What it does.\n\n    python -m x --rounds 3", "python -m x")
    parser.add_argument("--rounds", type=int)
    for words, told in ((["--rouds", "3"], "did you mean '--rounds'?"), (["--rounds", "x"], "invalid int value: 'x'")):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        text = capsys.readouterr().err
        assert ended.value.code == 1 and told in text and text.count("\n") == 1 and "python -m x --help" in text
    assert "\n    python -m x --rounds 3\n" in parser.format_help() and "Exit codes" in parser.format_help()


@pytest.mark.parametrize(
    "error",
    [ReaderError("a reader is gone"), SkipLimitError("too much is left out"), CheckpointError("none is whole")]
    + [ConfigError("a value"), FileNotFoundError(2, "No such file or directory", "x"), MemoryError()],
)
def test_what_a_user_can_mend_is_one_line_of_a_script(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        one_line(fail)
    text = capsys.readouterr().err
    assert ended.value.code == 1 and text.startswith("error: ") and text.count("\n") == 1
    monkeypatch.setattr(command, "_full", True)  # HYDRA_FULL_ERROR=1
    with pytest.raises(type(error)):
        one_line(fail)


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        one_line(lambda: {}["fault"])


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "runs/demo/cloc",
        "runs/lr=0.1,bs=64",
        "a b",
        'qu"ote',
        "it's",
        "back\\slash",
        "[x]",
        "ä",
        "$x",
        "a:b",
        "end\\",
        '\\"',
    ],
)
def test_an_override_survives_shell_and_hydra(value: str) -> None:
    for key, given in (("checkpoint", value), ("data", [value, "openmoji"])):
        (word,) = shlex.split(override(key, given))
        (read,) = OverridesParser.create().parse_overrides([word])
        assert (read.key_or_group, read.value()) == (key, given)


def test_small_words() -> None:
    assert [clock(seconds) for seconds in (0, 35.4, 125, 7500)] == ["0:00", "0:35", "2:05", "2:05:00"]
    assert meant("sampls", ["samples", "seed"]) == "; did you mean 'samples'?" and meant("x", ["samples"]) == ""
