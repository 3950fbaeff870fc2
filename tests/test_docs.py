"""What README and docs say is held to what is there: programs run, links lead somewhere, lists match."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SHELVES = ("tutorial", "how-to", "reference", "explanation")
UNSHELVED = ("index.md", "changes", "benchmarks")  # the front page, and what the site leaves out

PAGES = [
    README,
    ROOT / "sdk/README.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] != "changes"),
]
TEXTS = [
    *PAGES,
    *sorted(DOCS.glob("changes/*.md")),
    *sorted((ROOT / "plugins").glob("*/README.md")),
    ROOT / "conformance/README.md",
    ROOT / "CONTRIBUTING.md",
]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

PROGRAM = re.compile(
    r'^```python\n(?P<code>.*?)^```$(?:\n+^```text title="Output"\n(?P<output>.*?)^```$)?', re.MULTILINE | re.DOTALL
)
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\]\(<?([^)<>\s]+)>?(?: \"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")

# Runs the programs of a page one after the other, each as `__main__`, and keeps what each prints.
DRIVER = """
import contextlib, pathlib, runpy, sys
for name in sys.argv[1:]:
    with open(name + ".out", "w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
        runpy.run_path(name, run_name="__main__")
"""


class Program(NamedTuple):
    """A block of Python in a page."""

    file: str
    code: str
    output: str | None


def programs_of(page: Path) -> list[Program]:
    text = page.read_text(encoding="utf-8")
    return [
        Program(
            named[1]
            if (named := re.match(r"# ([\w/]+\.py)\n", match["code"]))
            else f"line_{text[: match.start()].count(chr(10)) + 1:04}.py",
            match["code"],
            match["output"],
        )
        for match in PROGRAM.finditer(text)
    ]


def install_packages_of(page: Path, folder: Path) -> None:
    """Leave what installing the page's own package would leave, so that its entry points are found."""
    for text in TOML.findall(page.read_text(encoding="utf-8")):
        manifest = tomllib.loads(text)
        if "name" not in manifest.get("project", {}):
            continue
        project = manifest["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = [
            f"[{group}]\n{name} = {value}\n"
            for group, points in project["entry-points"].items()
            for name, value in points.items()
        ]
        (info / "entry_points.txt").write_text("".join(lines))


def run_tests_of(programs: list[Program], folder: Path) -> None:
    """Run the programs that are tests as pytest runs them for a reader."""
    tests = [program.file for program in programs if program.file.startswith("test_")]
    if tests:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--rootdir=.", *tests],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stdout


def address(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose_of(page: Path) -> str:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def slugs_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        named = re.search(r"\{ ?#([\w.:-]+) ?\}$", title)
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\{.*\}$", "", title)).strip().lower()
        found.add(named[1] if named else re.sub(r"[-\s]+", "-", plain))
    return found


# --- Programs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if programs_of(page)], ids=address)
def test_the_programs_of_a_page_run_and_print_what_it_says(page: Path, tmp_path: Path) -> None:
    programs = programs_of(page)
    for program in programs:
        (tmp_path / program.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program.file).write_text(program.code, encoding="utf-8")
    install_packages_of(page, tmp_path)

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER, *(program.file for program in programs)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ran.returncode == 0, ran.stderr
    run_tests_of(programs, tmp_path)
    for program in programs:
        if program.output is not None:
            printed = (tmp_path / f"{program.file}.out").read_text(encoding="utf-8")
            assert doctest.OutputChecker().check_output(program.output, printed, doctest.ELLIPSIS), (
                f"{program.file} printed:\n{printed}\nand the page says:\n{program.output}"
            )


@pytest.mark.parametrize("page", PAGES, ids=address)
def test_no_block_of_python_or_output_escapes_the_test_above(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    matches = list(PROGRAM.finditer(text))

    assert len(re.findall(r"```\s*(?:python|py\b)", text)) == len(matches)
    assert text.count('title="Output"') == sum(match["output"] is not None for match in matches)


# --- Commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS, ids=address)
def test_every_make_command_in_a_text_is_a_target(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    named = re.findall(r"(?:^|`|\$ |&& )(?: {4})?make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)

    assert set(named) <= targets


def test_the_readme_names_one_command_for_the_main_job_and_one_for_the_tests() -> None:
    shell = re.findall(r"^```sh\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

    assert "make demo\n" in shell
    assert "make test\n" in shell


def test_what_the_readme_installs_are_the_packages_of_the_workspace() -> None:
    installed = re.search(r"^pip install (.+)$", README.read_text(encoding="utf-8"), re.MULTILINE)

    assert installed is not None
    folders = re.findall(r"\./([\w/-]+)", installed[1])
    assert folders
    assert all((ROOT / folder / "pyproject.toml").is_file() for folder in folders)


# --- Links and shelves -------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS, ids=address)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for link in ("".join(groups) for groups in LINK.findall(prose_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page

        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor and target.suffix == ".md" and not anchor.startswith("forebay"):
            assert anchor in slugs_of(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=address)
def test_every_page_is_on_one_shelf_and_has_one_title(page: Path) -> None:
    top = page.relative_to(DOCS).parts[0]
    titles = re.findall(r"^# .+$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)

    assert top in SHELVES or top in UNSHELVED
    assert len(titles) == 1


def test_no_two_pages_have_the_same_name_or_title() -> None:
    shelved = [page for page in PAGES if page.is_relative_to(DOCS) and page.relative_to(DOCS).parts[0] in SHELVES]
    titles = Counter(page.read_text(encoding="utf-8").partition("\n")[0] for page in shelved)

    assert [title for title, count in titles.items() if count > 1] == []


@pytest.mark.parametrize("shelf", SHELVES)
def test_the_front_page_leads_to_every_page_of_a_shelf(shelf: str) -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in sorted((DOCS / shelf).glob("*.md"))]

    assert pages
    assert [page for page in pages if f"({page})" not in index] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=address)
def test_a_line_of_prose_is_one_sentence(page: Path) -> None:
    lines = [line for line in prose_of(page).splitlines() if not line.startswith(("|", "<", ":"))]

    assert [line for line in lines if re.search(r"[a-z)][.!?] [A-Z]", line.replace("e.g. ", ""))] == []


# --- What the page about the architecture says -------------------------------------------------


def test_the_floors_of_the_page_are_those_of_the_import_contract() -> None:
    page = (DOCS / "explanation/architecture.md").read_text(encoding="utf-8")
    section = page.partition("## The floors\n")[2].partition("\n## ")[0]
    shown = [
        re.findall(r"`(\w+)`( \(not built yet\))?", line.partition(":")[0])
        for line in section.splitlines()
        if line.startswith("- ")
    ]
    (contract,) = [one for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["name"] == "core floors"]

    floors = [[(name.strip(), "") for name in layer.split("|")] for layer in contract["layers"]]

    assert [[(f"({name})" if later else name, "") for name, later in floor] for floor in shown] == floors


def test_every_module_of_the_core_stands_on_a_floor_of_the_page() -> None:
    page = (DOCS / "explanation/architecture.md").read_text(encoding="utf-8")
    section = page.partition("## The floors\n")[2].partition("\n## ")[0]

    modules = {path.stem for path in (ROOT / "sdk/src/forebay").glob("*.py")} - {"__init__"}

    assert modules <= set(re.findall(r"`(\w+)`", section))


# --- The drawing -------------------------------------------------------------------------------


def test_the_drawing_and_the_page_of_settlement_name_the_same_states() -> None:
    page = (DOCS / "explanation/settlement.md").read_text(encoding="utf-8")
    drawing = (DOCS / "explanation/settlement.svg").read_text(encoding="utf-8")

    drawn = set(re.findall(r'class="state"[^>]*>([A-Z_ ]+)<', drawing))

    assert drawn == set(re.findall(r"^- \*\*([A-Z_ ]+)\*\*", page, re.MULTILINE))
