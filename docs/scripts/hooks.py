"""Copy files of the repository that pages link to into the site, which mkdocs doesn't do by itself."""

import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINKED = (
    "benchmarks/results/*.json*",
    "notebooks/*.*",
    "examples/*.py",
    "spring_rag/demo/tokens/config.json",
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files that a page links to by `../`, under their own paths."""
    for pattern in (*PAGES, *LINKED):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=os.fspath(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs passes them
    """Change links between `docs/` and the rest of the repository so that they lead to these files in the site."""
    return markdown.replace("](docs/" if page.file.src_uri in PAGES else "](../", "](")
