"""Take the picture of the playground in docs/images: `python docs/scripts/screenshot.py QUESTION`. Needs a Chromium on the path."""

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from chroma_spring_rag import ChromaQA, connect_folder, index_files, open_or_create_collection
from spring_rag import SpringModel
from spring_rag.demo import paths
from spring_rag.demo.default import default_backbone
from spring_rag.playground.page import build, launch
from spring_rag.playground.ways import ways_of

PICTURE = Path(__file__).parents[1] / "images" / "playground.png"
KS = (1, 10, 50)
MINUTES = 5


def main(question: str) -> None:
    """Ask one question about the demo's documents, and take a picture of the answers."""
    with tempfile.TemporaryDirectory() as folder:
        collection = open_or_create_collection(connect_folder(Path(folder), create=True), "documents")
        os.chdir(paths.DOCUMENTS.parent)  # the page shows paths relative to this folder
        index_files(collection, [Path(paths.DOCUMENTS.name)])
        model = SpringModel.from_pretrained(default_backbone(), tokens=paths.TOKENS)
        for folder in sorted(paths.SKILLS.glob("*")):
            model.add_skill(folder)
        ways = ways_of(model, [], KS)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        address = launch(build(ChromaQA(model, collection), ways), "127.0.0.1", port, block=False)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(address)
            page.get_by_label("Question").fill(question)
            page.get_by_role("button", name="Ask").click()
            answered = f"[...document.querySelectorAll('.reply')].filter(r => r.innerText.includes('tokens')).length == {len(ways)}"
            page.wait_for_function(answered, timeout=MINUTES * 60_000)
            page.screenshot(path=PICTURE)
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
