"""What ``train.py`` and ``eval.py`` say of themselves before Hydra is asked: help, what is missing, an unknown flag.

Reads the folder ``conf/`` and the schema; composes nothing.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cloc.config.docs import field_docs
from cloc.config.schema import EvalConfig, RunConfig, TrainConfig
from cloc.usage import EXIT_CODES, USER_ERROR, is_first_process, leave

_CONF = Path(__file__).resolve().parents[2] / "conf"
_FLAGS = re.compile(r"-m|--multirun")
_WIDEST = 100  # columns of the text, however wide the terminal is


@dataclass(frozen=True)
class Program:
    """One of the two scripts.

    Attributes:
        name: how it is called.
        does: in a sentence.
        schema: of its configuration.
        examples: whole command lines.
        shown: keys that the help lists.
        groups: of ``conf/``, whose files it takes.
        page: that tells all keys.
    """

    name: str
    does: str
    schema: type
    examples: tuple[str, ...]
    shown: tuple[str, ...]
    groups: tuple[str, ...]
    page: str


TRAIN = Program(
    "python train.py",
    "Train one run, or a sweep over several (-m). The same command resumes a run that was stopped.",
    TrainConfig,
    (
        "python train.py experiment=demo_cloc",
        "python train.py experiment=demo_cloc samples=64_000 dry_run=true",
        "python train.py name=mine data.train=FOLDER samples=100_000 batch_size=64",
        "python train.py -m experiment=demo_cloc name=seeds seed=0,1,2",
        "torchrun --nproc-per-node=8 train.py experiment=demo_cloc trainer=ddp",
    ),
    ("name", "samples", "batch_size", "run_dir", "seed", "resume", "dry_run", "profile", "init_from", "objective"),
    ("data", "model", "model/prompter", "model/grounding", "loss", "optim", "trainer", "logger", "evaluation", "sweep"),
    "docs/training.md",
)
EVAL = Program(
    "python eval.py",
    "Measure a model, beside others if you like, on evaluation sets; write metrics.json and a report.",
    EvalConfig,
    (
        "python eval.py checkpoint=runs/demo/cloc 'data=[openmoji]'",
        "python eval.py checkpoint=A 'baseline=[B,C]' 'data=[FOLDER]' out=runs/mine",
        "python eval.py checkpoint=A 'data=[coco_val]' evaluation=quick",
        "torchrun --nproc-per-node=8 eval.py checkpoint=A 'data=[coco_val]'",
    ),
    ("checkpoint", "baseline", "data", "out", "cache", "limit", "pictures", "device", "precision", "seed"),
    ("evaluation",),
    "docs/evaluation.md",
)


def front(program: Program, arguments: Sequence[str]) -> None:
    """Answer what needs no configuration: a call for help, one without anything, one with an unknown flag.

    Args:
        program: which.
        arguments: as in ``sys.argv``, behind the program.

    Raises:
        SystemExit: it is answered.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text(program))
        sys.exit(0)
    if all(_FLAGS.fullmatch(one) for one in arguments):
        _leave_bare(program)
    _check_flags(program, arguments)


def help_text(program: Program, width: int | None = None) -> str:
    """What the program does, with examples, groups, main keys and exit codes.

    Args:
        program: which.
        width: columns; those of the terminal where None, 80 where there is none.
    """
    width = min(_WIDEST, width or shutil.get_terminal_size((80, 24)).columns)
    meanings = {name: text for cls in (RunConfig, program.schema) for name, text in field_docs(cls).items()}
    keys = {name: meanings[name].replace("``", "").replace("**", "") for name in program.shown}
    groups = {name: ", ".join(_files(name)) for name in program.groups}
    parts = [_fold(program.does, width), f"  {program.name} [GROUP=FILE …] [KEY=VALUE …]"]
    parts += ["Examples:\n" + "\n".join(f"  {one}" for one in program.examples)]
    if program is TRAIN:
        parts += [_list("Experiments, each a whole run (experiment=NAME):", _experiments(), width)]
    else:
        parts += [_list("Evaluation sets (data=[NAME,…]); a folder of shards is one too:", _sets(), width)]
    parts += [_list("Groups (GROUP=FILE); the files are in conf/:", groups, width)]
    parts += [_list(f"Main keys (KEY=VALUE); all of them: {program.page}", keys, width)]
    parts += ["Hydra: --cfg job prints the whole configuration, --hydra-help the other flags."]
    return "\n\n".join([*parts, EXIT_CODES])


def _leave_bare(program: Program) -> NoReturn:
    """Say what is missing, where nothing was given."""
    if is_first_process():
        if program is TRAIN:
            said = [
                _list("error: nothing to train; give an experiment (experiment=NAME):", _experiments(), 80),
                "or a run of your own: python train.py name=mine data.train=FOLDER samples=100_000 batch_size=64",
            ]
        else:
            names = ", ".join(_sets())
            said = [
                "error: nothing to measure; give checkpoint=RUN and 'data=[SET,…]', and 'baseline=[RUN,…]' if you like",
                _fold(f"sets: {names}, or a folder of shards", 80),
            ]
        print("\n".join([*said, f"see {program.name} --help"]), file=sys.stderr)
    sys.exit(USER_ERROR)


def _check_flags(program: Program, arguments: Sequence[str]) -> None:
    """Refuse in a line what Hydra's parser refuses in five, with another exit code."""
    from hydra._internal.utils import get_args_parser

    parser: Any = get_args_parser()
    parser.error = lambda message: leave(message, program.name)
    if not {"--version", "--hydra-help"} & set(arguments):
        parser.parse_args(list(arguments))


def _experiments() -> dict[str, str]:
    """Names and the first sentence of each file, without the command that follows it."""
    found = {}
    for file in sorted((_CONF / "experiment").glob("*.yaml")):
        lines = [line[2:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        text = next((line for line in lines if not line.startswith("@package")), "")
        found[file.stem] = re.split(r":? (?=python |torchrun )|:$", text)[0].rstrip(":")
    return found


def _sets() -> dict[str, str]:
    entries = yaml.safe_load((_CONF / "datasets" / "default.yaml").read_text(encoding="utf-8"))
    return {name: entry.get("description", "") for name, entry in entries.items()}


def _files(group: str) -> list[str]:
    return [file.stem for file in sorted((_CONF / group).glob("*.yaml"))]


def _fold(text: str, width: int, first: str = "", others: str = "") -> str:
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def _list(title: str, rows: dict[str, str], width: int) -> str:
    """A heading, and rows of a name and a text that is folded beside it."""
    wide = max(map(len, rows)) + 4
    return "\n".join([title, *(_fold(text, width, f"  {name:<{wide - 2}}", " " * wide) for name, text in rows.items())])
