"""``python -m cloc``: the commands beside training and evaluation.

Stands outside of ``data → models → losses → evaluation → engine`` and puts the groups of ``commands`` together. No
logic lives here or there, and heavy modules are imported where a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys

from cloc.command import prepare, run

if __name__ == "__main__":
    prepare()  # before the imports that take time

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402

from cloc.commands import data, embed, export, sweep  # noqa: E402
from cloc.commands.shared import RUN  # noqa: E402
from cloc.usage import OneLineErrors, epilog, one_line, refuse_several  # noqa: E402


class _Commands(OneLineErrors, TyperGroup):
    """All commands; a command line that cannot be read is one line, with exit code 1."""


app = typer.Typer(
    cls=_Commands,
    help="Localized contrastive pretraining: what goes before and after a run. Training is `python train.py`, "
    "measuring `python eval.py`.",
    no_args_is_help=True,
    epilog=epilog("python -m cloc data convert openmoji data/openmoji", f"python -m cloc embed {RUN} photos OUT"),
    pretty_exceptions_show_locals=False,  # they may be secrets
)
SHARED = {"embed"}  # commands whose work several processes share


@app.callback()
def _begin(context: typer.Context) -> None:
    import logging

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    # Who names a part (--part 3/8) does one of several on purpose, maybe as a task of srun.
    if context.invoked_subcommand not in SHARED and not any(one.startswith(("--part", "--help")) for one in sys.argv):
        refuse_several(f"python -m cloc {context.invoked_subcommand}")


for _name, _group in (("data", data.app), ("export", export.app), ("sweep", sweep.app)):
    app.add_typer(_group, name=_name)
app.add_typer(embed.app)


def main() -> None:
    """Run the command line; what the user can mend prints as one line, with exit code 1."""
    from cloc.config.secrets import guard_output

    guard_output()
    one_line(app)


if __name__ == "__main__":
    run(main)
