"""Test `spring-rag index` and `collections`, on real databases."""

import json
from pathlib import Path

import pytest
from cli_parts import fails, run

from chroma_spring_rag import connect_folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "bridge.txt").write_text("The bridge of Morven was built in 1811.", "utf-8")
    (folder / "ship.txt").write_text("The ship Petrel was lost.", "utf-8")
    return folder


def test_a_bad_file_is_named_at_the_end(documents: Path, tmp_path: Path) -> None:
    (documents / "latin.txt").write_bytes("Straße".encode("latin-1"))
    (documents / "photo.jpg").write_bytes(b"\xff\xd8")
    done = run("index", documents, "--db", tmp_path / "db")
    assert done.returncode == 1
    assert (
        done.stdout == "2 files: 2 chunks added, 0 unchanged, 0 removed; the collection 'documents' holds 2\n"
    )
    *said, last = done.stderr.splitlines()
    assert f"skipped: {documents / 'photo.jpg'} (of a kind that isn't read)" in said
    assert last.startswith("error: 1 file left out: ")
    assert "latin.txt isn't UTF-8 text" in last
    report = json.loads(run("index", documents, "--db", tmp_path / "db", "--json").stdout)
    assert list(report["bad"]) == [str(documents / "latin.txt")]


def test_what_is_gone_is_told_and_pruned(documents: Path, tmp_path: Path) -> None:
    db = ["--db", tmp_path / "db"]
    assert run("index", documents, *db).returncode == 0
    renamed = documents.rename(tmp_path / "renamed")
    done = run("index", renamed, *db)
    assert done.returncode == 0
    assert "2 chunks of files that are gone can still be found; --prune removes them" in done.stderr
    assert "2 removed; the collection 'documents' holds 2" in run("index", renamed, *db, "--prune").stdout
    for file in renamed.iterdir():
        file.unlink()
    assert "--prune" in fails("index", renamed, *db)
    assert "2 removed; the collection 'documents' holds 0" in run("index", renamed, *db, "--prune").stdout


def test_pruning_makes_no_database(documents: Path, tmp_path: Path) -> None:
    for file in documents.iterdir():
        file.unlink()
    assert "doesn't exist" in fails("index", documents, "--db", tmp_path / "db", "--prune")
    assert not (tmp_path / "db").exists()


def test_collections(documents: Path, tmp_path: Path) -> None:
    db = ["--db", tmp_path / "db"]
    for name in ("first", "second"):
        assert run("index", documents, *db, "--collection", name).returncode == 0
    assert run("collections", "list", *db).stdout == "first: 2 chunks\nsecond: 2 chunks\n"
    shown = run("collections", "show", "first", *db).stdout.splitlines()
    assert shown[0] == "first: 2 chunks, embedded by spring-rag-weighted-words"
    assert f"    {documents / 'bridge.txt'}: 1 chunk" in shown
    facts = json.loads(run("collections", "show", "first", *db, "--json").stdout)
    assert facts["sources"] == {str(documents / name): 1 for name in ("bridge.txt", "ship.txt")}
    assert "the database has 'first', 'second'" in fails("collections", "show", "third", *db)
    assert "the database has" in fails("collections", "delete", "third", *db, "--yes")
    assert (
        run("collections", "delete", "first", *db, "--yes").stdout
        == "the collection 'first' is deleted, with 2 chunks\n"
    )
    assert [each.name for each in connect_folder(tmp_path / "db").list_collections()] == ["second"]
