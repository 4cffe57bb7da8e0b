"""CSV and LaTeX of the report's tables: every digit comes back, nothing becomes a command, columns are counted."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from cloc.evaluation.report.exported_tables import ExportedTable, Line, Value, comparison, file_name, tex, unique
from cloc.evaluation.report.page import lay_out, write_report
from cloc.evaluation.report.table import compare
from tests.evaluation.test_report import CLIP, CLOC, entry, report

HOSTILE = r"50% & $x_1$ #2 {a}~^\input{/etc/passwd} <i> “q” – − ± Δ"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_every_digit_with_its_interval() -> None:
    groups = compare(entry(cloc=CLOC, clip=CLIP))
    table = comparison("x", "All", ["cloc", "clip"], [family for group in groups for family in group.families])
    found = {row["Name"]: row for row in rows(table.csv)}
    retrieval = found["image_text/text_to_image_R@1"]
    assert float(retrieval["cloc"]) == CLOC["image_text/text_to_image_R@1"]
    assert [float(retrieval[f"cloc {end}"]) for end in ("low", "high")] == [0.642 - 0.01, 0.642 + 0.01]
    assert float(retrieval["Δ"]) == CLOC["image_text/text_to_image_R@1"] - CLIP["image_text/text_to_image_R@1"]
    assert (found["grounding/mIoU"]["clip"], found["grounding/mIoU"]["Δ low"]) == ("", "")
    assert found["region/prompter/top1"]["Section"] == "Name a box"
    assert len(found) == sum(len(family.rows) for group in groups for family in group.families)


def test_csv_brings_words_back_as_they_were() -> None:
    table = ExportedTable("x", "", ["Set", 'a, "b"\nc'], [Line(HOSTILE, [Value("1,2\n", None)])])
    assert rows(table.csv) == [{"Set": HOSTILE, 'a, "b"\nc': "1,2\n"}]
    assert rows(ExportedTable("x", "", ["Set"], [Line("a\rb", [])]).csv) == [{"Set": "a b"}]


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t"])
def test_csv_holds_no_formula_but_what_it_holds_of_numbers(begin: str) -> None:
    """A model that is called =HYPERLINK(…) stays a name in a spreadsheet; a difference of -0.5 stays a number."""
    name = f"{begin}HYPERLINK(1)"
    line = Line(name, [Value("−0.5", -0.5, {"low": -1.0}), Value(name)], name, name)
    header, row = csv.reader(io.StringIO(ExportedTable("x", "", [name, name, name], [line]).csv))
    assert [cell for cell in (*header, *row) if cell.startswith(("=", "+", "-", "@", "\t"))] == ["-0.5", "-1.0"]
    assert row == [f"'{name}", f"'{name}", f"'{name}", "-0.5", "-1.0", f"'{name}"]


def test_latex_escapes_what_would_be_a_command() -> None:
    said = tex(HOSTILE)
    assert said.startswith(r"50\% \& \$x\_1\$ \#2 \{a\}\textasciitilde{}\textasciicircum{}\textbackslash{}input\{")
    assert said.endswith(r"\textless{}i\textgreater{} ``q'' -- $-$ $\pm$ $\Delta$")
    assert "\\input" not in said and tex("a\n\\par b") == r"a \textbackslash{}par b"


def test_a_row_of_latex_is_no_argument_of_the_one_before() -> None:
    lines = [Line(label, [Value("1")]) for label in ("a", "[2cm] b", "* c")]
    said = ExportedTable("x", "", ["Set", "Value"], lines).latex
    assert not re.search(r"\\\\\s*[\[*]", said) and "{[}2cm] b & 1" in said and "{*} c & 1" in said


def check_latex(text: str) -> None:
    """Every row has the columns that the tabular says, braces and math close, only known commands are used."""
    columns = len(re.search(r"\\begin\{tabular\}\{(l?r*)\}", text)[1])
    body = text.split("\\toprule\n")[1].split("\\bottomrule")[0]
    for line in body.splitlines():
        if line in (r"\midrule", r"\addlinespace"):
            continue
        assert line.endswith(r" \\"), line
        spans = re.match(r"\\multicolumn\{(\d+)\}", line)
        cells = len(re.split(r"(?<!\\)&", line[:-3]))
        assert (int(spans[1]) if spans else cells) == columns, line
    assert not re.search(r"(?<!\\)[%#_^~]", text.replace(r"\label{tab:", "")), text
    plain = re.sub(r"\\[{}$\\]", "", text)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    known = (
        "begin end centering caption label toprule midrule bottomrule addlinespace multicolumn emph textbf scriptsize"
    )
    known += (
        " textbackslash textasciitilde textasciicircum textless textgreater textbar textquotedbl pm Delta cdot times"
    )
    known += " dots to surd"
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= set(known.split())


def test_every_table_of_the_page_lies_beside_it(tmp_path: Path) -> None:
    data = report()
    data.cost = {
        HOSTILE: {"device": HOSTILE, "parameters": 7, "picture_ms": 1.5, "boxes_per_second": {"crop": 3.25}},
        "b": {"parameters": 8},
    }
    write_report(data, tmp_path / "r")
    tables = lay_out(data).tables
    names = [table.name for table in tables]
    assert names[:2] == ["cost", "training"] and "openmoji-whole-images" in names
    for table in tables:
        assert (tmp_path / "r" / "tables" / f"{table.name}.csv").read_text() == table.csv
        latex = (tmp_path / "r" / "tables" / f"{table.name}.tex").read_text()
        assert latex == table.latex
        check_latex(latex)
        assert len(rows(table.csv)) == len(table.lines)
    found = {row["Cost"]: row for row in rows(tables[0].csv)}
    assert found["A picture (ms)"] == {"Cost": "A picture (ms)", HOSTILE: "1.5", "b": ""}


@pytest.mark.parametrize(
    ("parts", "name"),
    [(("openmoji", "Naming boxes"), "openmoji-naming-boxes"), (("../../etc", "A/B"), "etc-a-b"), (("…",), "table")],
)
def test_file_names_are_plain(parts: tuple[str, ...], name: str) -> None:
    assert file_name(*parts) == name
    twice = unique([ExportedTable(name, "", ["a"], [])] * 2)
    assert [table.name for table in twice] == [name, f"{name}_2"]
