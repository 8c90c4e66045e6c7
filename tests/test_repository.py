"""Promises of the repository's files: one test command, one version, one list of packages, pages that exist."""

import os
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEST_COMMAND = "python -m pip install uv && uv run --extra test pytest -n 2"
INDEXES = {"pypi.org", "files.pythonhosted.org"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _name(requirement):
    """Distribution and extras of a requirement, without its version."""
    return re.split(r"[<>=!~; ]", requirement, maxsplit=1)[0].replace("_", "-").lower()


def _code_blocks(text):
    return re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


# continuous integration


def test_readme_states_the_test_command():
    blocks = "\n".join(_code_blocks((ROOT / "README.md").read_text())).splitlines()
    assert TEST_COMMAND in [line.strip().removeprefix("$ ") for line in blocks]


def test_ci_runs_the_command_of_the_readme():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == TEST_COMMAND, "the last line decides the exit status"


def test_ci_is_a_strict_executable_script():
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK)
    assert "|| true" not in text


@pytest.mark.parametrize("step", ["ruff check", "ruff format --check", "mypy", "lint-imports"])
def test_ci_runs_every_check(step):
    assert f"\nuv run --extra lint {step}\n" in (ROOT / ".ci" / "run").read_text()


def test_hooks_are_local():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"repo: (\S+)", text)) == {"local"}
    assert "rev:" not in text


# versions and packages


def test_changelog_covers_the_version():
    headings = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", PROJECT["project"]["version"])
    assert PROJECT["project"]["version"] in headings


def test_lock_knows_only_the_public_index():
    hosts = {urlsplit(url).hostname for url in re.findall(r'https?://[^"\s]+', (ROOT / "uv.lock").read_text())}
    assert hosts <= INDEXES


def test_lock_is_that_of_the_project():
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (locked,) = (package for package in packages if package["name"] == "watos-jax")
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    asked = {_name(requirement).split("[")[0] for group in groups for requirement in group}
    assert {entry["name"] for entry in locked["metadata"]["requires-dist"]} == asked
    assert locked["version"] == PROJECT["project"]["version"]


def test_types_are_shipped():
    assert (ROOT / "watos_jax" / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


# pages


def test_every_page_is_in_the_navigation():
    entries = re.findall(r"^ {2,}- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(f"docs/{entry}" for entry in entries) == [page for page in PAGES if page.startswith("docs/")]


@pytest.mark.parametrize("page", PAGES)
def test_local_links_lead_somewhere(page):
    path = ROOT / page
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{page} links to {target}"
