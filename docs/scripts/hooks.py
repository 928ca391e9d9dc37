"""What mkdocs does beyond its own: files of the repository that pages link to come along into the site."""

import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINKED = ("benchmarks/results/*.json*", "notebooks/*", "examples/*.py", "spring_rag/demo/tokens/config.json", "LICENSE")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what `../` leads to from a page, under the same path."""
    for pattern in LINKED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=os.fspath(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - by these names
    """Let a link that leads out of `docs/` lead into the site; on a code host it works as it is written."""
    return markdown.replace("](../", "](") if page.file.src_uri.count("/") == 0 else markdown
