"""Test reading files of every kind that is indexed, and leaving all others alone."""

import os
import zipfile
from pathlib import Path

import pytest

from chroma_spring_rag import DocumentError, connect_folder, read_files, reading
from chroma_spring_rag.reading import KINDS, is_markdown

PAGE = """<!doctype html><html><head><title>T</title><style>p {color: red}</style></head>
<body><script>alert(1)</script><h1>Morven</h1><p>The bridge was built by <b>Ada&nbsp;Quill</b>.</p>
<table><tr><th>Year</th></tr><tr><td>1811</td></tr></table></body></html>"""


def write_pdf(file: Path, text: str) -> None:
    """The smallest PDF with a line of text; the table of positions is left for the reader to mend."""
    drawn = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> /MediaBox [0 0 612 792] >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, positions = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        positions.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{position:010} 00000 n \n" for position in positions)
    end = f"xref\n0 6\n0000000000 65535 f \n{table}trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    file.write_bytes(body + end.encode())


def write_docx(file: Path, text: str) -> None:
    """The smallest document with a heading and a paragraph."""
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    links = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    words = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{types}"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{links}"><Relationship Id="rId1" Type="{office}" Target="word/document.xml"/></Relationships>',
        )
        archive.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{words}"><w:body><w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Morven</w:t></w:r></w:p>'
            f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>",
        )


def test_links_to_themselves_and_folders_that_cannot_be_read_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("A fox.", "utf-8")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    read = read_files([tmp_path])
    assert list(read.texts.values()) == ["A fox."]
    assert {path.name: reason for path, reason in read.skipped.items()} == {
        "loop.txt": "a link to nothing",
        "closed": "can't be read (Permission denied)",
    }


def test_what_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_BYTES", 1000)
    (tmp_path / "huge.txt").write_bytes(b"x" * 1001)
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(100_000))
    assert (tmp_path / "bomb.docx").stat().st_size < 1000
    read = read_files([tmp_path])
    assert not read.texts
    assert {path.name for path in read.bad} == {"huge.txt", "bomb.docx"}
    assert all("1,000 are the most: split it" in reason for reason in read.bad.values())


def test_half_characters_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, ".pdf", lambda _: "a \ud800 fox")  # as broken fonts of a PDF give them
    (tmp_path / "a.pdf").write_bytes(b"")
    assert list(read_files([tmp_path]).texts.values()) == ["a ? fox"]


def test_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Plain.", "utf-8")
    (tmp_path / "b.HTML").write_text(PAGE, "utf-8")
    write_pdf(tmp_path / "c.pdf", "The bridge was built in 1811.")
    write_docx(tmp_path / "d.docx", "The bridge was built in 1811.")
    read = read_files([tmp_path])
    texts = {path.name: text for path, text in read.texts.items()}
    assert (read.bad, read.skipped) == ({}, {})
    assert texts["a.txt"] == "Plain."
    assert texts["c.pdf"].strip() == "The bridge was built in 1811."
    assert texts["d.docx"].splitlines()[0] == "# Morven"
    assert texts["d.docx"].endswith("The bridge was built in 1811.")
    page = texts["b.HTML"]
    assert page.startswith("# Morven")
    assert "**Ada\xa0Quill**" in page
    assert "| 1811 |" in page
    assert not any(word in page for word in ("alert", "color", "<"))
    assert [is_markdown(tmp_path / name) for name in texts] == [False, True, False, True]


def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("Good.", "utf-8")
    (tmp_path / "latin.txt").write_bytes("Straße".encode("latin-1"))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (tmp_path / "broken.docx").write_bytes(b"PK no more")
    write_pdf(tmp_path / "scan.pdf", "")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / ".hidden.txt").write_text("Hidden.", "utf-8")
    connect_folder(tmp_path / "db", create=True)
    read = read_files([tmp_path])
    assert [path.name for path in read.texts] == ["good.txt"]
    bad = {path.name: reason for path, reason in read.bad.items()}
    assert bad.keys() == {"latin.txt", "broken.pdf", "broken.docx", "scan.pdf"}
    assert "isn't UTF-8" in bad["latin.txt"]
    assert "pictures" in bad["scan.pdf"]
    assert {path.name: reason for path, reason in read.skipped.items()} == {
        "photo.jpg": "of a kind that isn't read"
    }


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_lead_nowhere_outside_of_the_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside, inside):
        folder.mkdir()
        (folder / "text.txt").write_text(f"The text {folder.name}.", "utf-8")
    (inside / "file.txt").symlink_to(outside / "text.txt")
    (inside / "folder").symlink_to(outside)
    (inside / "again.txt").symlink_to(inside / "text.txt")
    (inside / "nothing.txt").symlink_to(inside / "nowhere.txt")
    read = read_files([inside])
    assert list(read.texts.values()) == ["The text inside."]
    skipped = {path.name: reason for path, reason in read.skipped.items()}
    assert skipped == {
        "file.txt": "a link out of the folder",
        "folder": "a link out of the folder",
        "nothing.txt": "a link to nothing",
    }
    # Who names a link means what it leads to.
    assert list(read_files([inside / "file.txt"]).texts.values()) == ["The text outside."]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert list(read_files([tmp_path]).skipped.values()) == ["no plain file"]
    for endless in (tmp_path / "pipe.txt", Path("/dev/zero")):
        read = read_files([endless])
        assert "no plain file" in read.bad[endless]
        with pytest.raises(DocumentError, match=r"nothing was indexed: .*no plain file"):
            read.refuse_nothing([endless])
