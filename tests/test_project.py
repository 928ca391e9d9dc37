"""Test the files around the code: one version, pinned dependencies, readable forms and workflows."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GITHUB = ROOT / ".github"


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.findall(
        r"^## \[(\d.*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert PROJECT["version"] == citation["version"] == released[0]


def test_what_is_required_is_pinned() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    names = {_canonical(name) for name in pinned}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    required = {_canonical(re.split(r"[\[><=! ]", each)[0]) for group in groups for each in group}
    assert required - {"spring-rag"} <= names


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("file", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.stem)
def test_workflows_and_forms_can_be_read(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.parent.name == "workflows":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        for job in content["jobs"].values():
            for step in job["steps"]:
                made = re.fullmatch(r"make (\S+)", step.get("run", ""))
                assert made is None or made[1] in targets, step
    elif file.stem != "config":
        assert {"name", "description", "body"} <= set(content)


def test_commits_are_checked_by_what_lint_has() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in hooks:
        tool = hook["entry"].removeprefix(".venv/").split()
        assert f"$({tool[0].split('/')[0].upper()})/{tool[0].split('/')[1]}" in makefile


def test_each_target_of_make_stands_once_and_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    assert sorted(phony[1].split()) == sorted(targets)
    assert all(re.search(rf"^{target}:.* ## .", makefile, re.MULTILINE) for target in targets)
