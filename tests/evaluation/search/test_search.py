"""Searching an index: the order is that of all cosines, pictures are drawn, and what is wrong is a line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloc import __main__ as command_line
from cloc.encoder import Encoder
from cloc.evaluation.embed import RegionChoice, embed
from cloc.evaluation.embed.regions import parse_grid
from cloc.evaluation.search import Finder, Index, Options, Query, parse_box, search
from cloc.evaluation.search.pictures import PictureReader, place_of

CELLS = parse_grid("1,2")


@pytest.fixture(scope="module")
def made(data: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of nine pictures in folders, with the cells of two grids."""
    out = tmp_path_factory.mktemp("made") / "index"
    embed(str(runs / "cloc"), data / "classes", out, device="cpu", regions=RegionChoice((), CELLS))
    return out


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "index"))


def cloc(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    """Call the command line in a folder, as `python -m cloc` does; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["cloc", "search", *words])
    monkeypatch.setattr("cloc.config.secrets.guard_output", lambda: None)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return int(ended.value.code or 0)


def query(encoder: Encoder, text: str = "a red thing") -> Query:
    return Query(text, encoder.encode_text(text)[0], text)


@pytest.mark.parametrize("kind", ["images", "regions"])
def test_the_order_is_that_of_all_cosines(made: Path, encoder: Encoder, kind: str) -> None:
    with np.load(made / f"{kind}.npz") as stored:
        keys, rows = stored["key"], stored["embedding"]
    asked = query(encoder)
    best: dict[str, float] = {}
    for key, score in zip(keys.tolist(), (rows @ asked.embedding.numpy()).tolist(), strict=True):
        best[key] = max(score, best.get(key, -2))
    expected = sorted(best.items(), key=lambda pair: -pair[1])
    found = Finder(Index.open(made)).find(asked, kind, 5)
    assert [hit.key for hit in found] == [key for key, _ in expected[:5]]
    assert [hit.score for hit in found] == pytest.approx([score for _, score in expected[:5]], abs=1e-5)
    assert [hit.box is None for hit in found] == [kind == "images"] * 5
    least = expected[2][1] - 1e-6
    assert len(Finder(Index.open(made)).find(asked, kind, 5, least)) == 3


def test_a_picture_finds_itself_and_a_cell_its_picture(made: Path, data: Path) -> None:
    picture = data / "classes" / "green_ish" / "2.png"
    options = Options(device="cpu", count=1)
    boxes, images = search(made, (), [picture], options=options)
    for one in (boxes, images):
        assert one.looks[0].hit.score == pytest.approx(1, abs=1e-4) or one.kind == "regions"
    assert images.looks[0].hit.key.startswith("green_ish/")  # all of them are the same green
    found = search(made, (), [picture], [CELLS[2]], options)[0]
    assert found.kind == "regions" and found.looks[0].hit.score == pytest.approx(1, abs=1e-4)


def test_the_command_prints_draws_and_names_what_opens_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    text = 'l\'été "<b>" 犬'
    assert cloc(monkeypatch, tmp_path, str(made), text, "--count", "3", "--device", "cpu", "--out", "f.html") == 0
    printed = capsys.readouterr().out
    assert f"“{text}” · pictures" in printed and f"“{text}” · boxes" in printed
    assert printed.splitlines()[-1] == f"next: python -m webbrowser {(tmp_path / 'f.html').as_uri()}"
    page = (tmp_path / "f.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 6 and "<b>&#34;" not in page and "&lt;b&gt;" in page
    assert page.count('class="line"') == 6  # boxes of the regions, and where the text was found in the pictures


def test_json_alone_and_a_sheet_of_several_queries(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = [str(made), "a", "b", "--device", "cpu", "--count", "2", "--json", "-"]
    assert cloc(monkeypatch, tmp_path, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["query"], one["kind"]) for one in found["results"]] == [
        ("a", "regions"), ("a", "images"), ("b", "regions"), ("b", "images"),
    ]  # fmt: skip
    first, other = found["results"][0]["found"][0], found["results"][1]["found"][0]
    assert set(first) == {"picture", "score", "box", "phrase", "fit"} and first["fit"] is None
    assert set(other["grounded"]) == {"box", "fit"} and -1 <= other["grounded"]["fit"] <= 1
    assert not list(tmp_path.glob("found.*"))
    picture = ["--picture", str(data / "classes" / "red_ish" / "0.png"), "--kind", "images"]
    assert cloc(monkeypatch, tmp_path, *words[:-2], *picture, "--json", "all.json") == 0
    assert len(json.loads((tmp_path / "all.json").read_text())["results"]) == 3
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.width > 900 and sheet.height > 900


def test_a_query_that_finds_nothing_says_what_to_try(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert cloc(monkeypatch, tmp_path, str(made), "a dog", "--min-score", "0.99", "--device", "cpu") == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 2 and "the nearest has " in told.err
    assert "lower --min-score" in told.err and not list(tmp_path.glob("found.*"))


def test_pictures_that_have_moved_are_told_and_found_again(data: Path, runs: Path, tmp_path: Path, capsys: Any) -> None:
    photos = Path(shutil.copytree(data / "classes", tmp_path / "photos"))
    embed(str(runs / "clip"), photos, tmp_path / "index", device="cpu")
    photos.rename(tmp_path / "moved")
    out = tmp_path / "found.html"
    found = search(tmp_path / "index", ["a dog"], options=Options(count=3, device="cpu", out=(out,)))
    assert [one.kind for one in found] == ["images"] and len(found[0].looks) == 3
    told = capsys.readouterr()
    assert "3 of 3 pictures cannot be shown" in told.err and "--images" in told.err and not out.exists()
    moved = Options(count=3, device="cpu", out=(out,), images=tmp_path / "moved")
    search(tmp_path / "index", ["a dog"], options=moved)
    assert out.exists() and "cannot be shown" not in capsys.readouterr().err


def test_names_that_lead_out_of_the_folder_are_not_followed(index: Path, data: Path) -> None:
    reader = PictureReader(Index.open(index))
    for key in ("../shards/secret.png", "/etc/passwd", "red_ish/../../x.png"):
        picture, missing = reader.read(key)
        assert picture is None and "leads out of" in missing
    assert reader.read("red_ish/0.png")[0] is not None


def test_pictures_of_shards_are_found_behind_those_that_were_skipped(data: Path, runs: Path, tmp_path: Path) -> None:
    assert [place_of(row, (1, 2, 5)) for row in range(4)] == [0, 3, 4, 6]
    embed(str(runs / "cloc"), data / "shards", tmp_path / "index", device="cpu")
    found = search(tmp_path / "index", ["noise"], options=Options("images", count=12, device="cpu"))[0]
    assert all(look.picture is not None and look.picture.shape == (3, 24, 32) for look in found.looks)
    reader = PictureReader(Index.open(tmp_path / "index"), tmp_path)
    assert "--images" in reader.read("s00")[1]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "plan.json").unlink(), "no index .* python -m cloc embed"),
        (lambda folder: (folder / "plan.json").write_text("{"), "plan.json is damaged"),
        (lambda folder: (folder / "plan.json").write_text("[]"), "not the plan of an index"),
        (lambda folder: (folder / "images.npz").unlink(), "images.npz is not there, the work is not finished"),
        (lambda folder: (folder / "images.npz").write_bytes(b"PK garbage"), "images.npz is damaged"),
        (lambda folder: np.savez(folder / "images.npz", key=["a"]), "no table of an index"),
        (lambda folder: shutil.copy(folder / "images.npz", folder / "regions.npz"), "do not belong to one index"),
        (lambda folder: (folder / "skipped.json").write_text("{}"), "skipped.json is damaged"),
    ],
)
def test_a_damaged_index_is_a_line(index: Path, spoil: Any, told: str) -> None:
    spoil(index)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        Index.open(index)


def change_plan(index: Path, **made_by: Any) -> None:
    plan = json.loads((index / "plan.json").read_text())
    plan["made_by"] |= made_by
    (index / "plan.json").write_text(json.dumps(plan))


def test_the_model_is_the_one_that_made_the_index(index: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the model that made .* by --model, or embed the pictures again"):
        Index.open(index).load_model(str(runs / "clip"), "cpu")
    change_plan(index, run=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="gone any more; say where it is by --model"):
        Index.open(index).load_model(device="cpu")
    assert Index.open(index).load_model(str(runs / "cloc"), "cpu").name == "cloc"
    change_plan(index, run="open_clip:hf-hub:somebody/model")
    with pytest.raises(ValueError, match="may have to be downloaded; allow it by --model"):
        Index.open(index).load_model(device="cpu")
    change_plan(index, layout=99, cloc="9.0")
    with pytest.raises(ValueError, match="made by cloc 9.0, this is .*pip install -U"):
        Index.open(index)


def test_an_index_of_another_version_is_searched_by_the_same_weights(index: Path, runs: Path, encoder: Encoder) -> None:
    import copy

    from cloc.evaluation.cache import model_digest

    before = copy.copy(encoder)
    before.info = encoder.info | {"code": "0.0.7"}
    plan = json.loads((index / "plan.json").read_text()) | {"model": model_digest(before)}
    plan["made_by"]["cloc"] = "0.0.7"
    (index / "plan.json").write_text(json.dumps(plan))
    assert Index.open(index).load_model(device="cpu").name == "cloc"
    del plan["made_by"]  # of a version that did not say where its model was
    (index / "plan.json").write_text(json.dumps(plan | {"model": model_digest(encoder)}))
    with pytest.raises(ValueError, match="does not say by which model; give --model"):
        Index.open(index).load_model(device="cpu")
    assert Index.open(index).load_model(str(runs / "cloc"), "cpu").name == "cloc"


@pytest.mark.parametrize("given", ["", "1,2,3", "a,b,c,d", "0.5,0,0.2,1", "0,0,1,nan", "10,20,300,400", "0,0,1,1,1"])
def test_what_is_no_box_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="--box"):
        parse_box(given)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to search for"),
        ([" "], "a query is empty"),
        (["a", "--box", "0,0,1,1"], "--box: of which picture?"),
        (["--picture", "nowhere.jpg"], "--picture nowhere.jpg: no such file"),
        (["a", "--kind", "all"], "--kind 'all'"),
        (["a", "--count", "0"], "--count 0"),
        (["a", "--out", "found.pdf"], "the ending must be"),
        (["a", "--images", "nowhere"], "--images nowhere"),
        (["a", "--json", "nowhere/found.json"], "--json nowhere"),
    ],
)
def test_wrong_use_is_a_line(
    words: list[str], told: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert cloc(monkeypatch, tmp_path, str(made), *words) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and told in text and text.count("\n") == 1


def test_an_index_without_regions_says_how_to_make_them(data: Path, runs: Path, tmp_path: Path) -> None:
    embed(str(runs / "clip"), data / "classes", tmp_path / "index", device="cpu")
    with pytest.raises(ValueError, match="holds no regions; embed with --phrases or --grid"):
        search(tmp_path / "index", ["a dog"], options=Options("regions", device="cpu"))


# --- other readers ----------------------------------------------------------------------------------------------------


def test_a_graph_of_usearch_finds_the_same(data: Path, runs: Path, tmp_path: Path, encoder: Encoder) -> None:
    pytest.importorskip("usearch.index", reason="the extra 'search' is not installed", exc_type=ImportError)
    choice = RegionChoice((), parse_grid("4"))
    embed(str(runs / "cloc"), data / "classes", tmp_path, device="cpu", regions=choice, index="usearch")
    opened = Index.open(tmp_path)
    graph, exact = Finder(opened, graph=True), Finder(opened)
    assert set(graph.graphs) == {"images", "regions"} and not exact.graphs
    for kind in ("images", "regions"):
        one, other = (own.find(query(encoder), kind, 4) for own in (graph, exact))
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-3)
    whole = bytearray((tmp_path / "images.usearch").read_bytes())
    whole[len(whole) // 2] ^= 1  # usearch itself would end the process
    (tmp_path / "images.usearch").write_bytes(whole)
    with pytest.raises(ValueError, match="images.usearch is damaged"):
        Finder(opened, graph=True)
    (tmp_path / "graphs.json").write_text("[]")
    with pytest.raises(ValueError, match="graphs.json is damaged"):
        Finder(opened, graph=True)
    (tmp_path / "images.usearch").unlink()
    with pytest.raises(FileNotFoundError, match="--index usearch, or search without --graph"):
        Finder(opened, graph=True)


def test_a_graph_wants_usearch(made: Path, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(ImportError, match=r"cloc-pretrain\[search\]"):
        embed(str(runs / "clip"), data / "classes", made.parent / "x", device="cpu", index="usearch")


def test_faiss_reads_an_index_in_two_lines(made: Path, encoder: Encoder) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rows = np.load(made / "images.npz")["embedding"]
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    asked = query(encoder)
    scores, places = flat.search(asked.embedding.numpy()[None], 3)
    found = Finder(Index.open(made)).find(asked, "images", 3)
    assert scores[0].tolist() == pytest.approx([hit.score for hit in found], abs=1e-5)
    assert places[0].tolist() == [hit.row for hit in found] or len({hit.score for hit in found}) < 3


def test_an_index_as_parquet_is_searched_as_one_of_npz(made: Path, data: Path, runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is not installed")
    embed(str(runs / "cloc"), data / "classes", tmp_path, "parquet", device="cpu", regions=RegionChoice((), CELLS))
    one, other = Index.open(made).tables, Index.open(tmp_path).tables
    for kind in ("images", "regions"):
        assert one[kind].key.tolist() == other[kind].key.tolist()
        np.testing.assert_array_equal(one[kind].embedding, other[kind].embedding)
    np.testing.assert_array_equal(one["regions"].box, other["regions"].box)
