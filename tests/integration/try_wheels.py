"""Holds the wheels to what a user gets from them: `make try-wheels`.

Installs them into an empty environment and works there as a reader of the tutorial and the author of a plugin would,
in a folder that is not in this repository.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from venv import EnvBuilder

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorial"
THIRD_PARTY = Path(__file__).parent / "third_party"
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

USED_IT = """\
24 done, 1 set aside, 1 in the file
['notes.txt'] 24
"""


class Environment:
    """An environment with nothing in it but pip, and an empty folder to work in.

    What it runs sees neither this repository nor the settings of the Python that made it.
    """

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
        self.python = str(self.programs / "python")
        self.work = folder / "work"
        self.work.mkdir()
        EnvBuilder(with_pip=True).create(folder / "environment")

    def install(self, *what: str) -> None:
        self.run(self.python, "-m", "pip", "install", "-qq", "-c", str(ROOT / "constraints.txt"), *what)

    def run(self, *command: str, folder: Path | None = None) -> str:
        """Return what *command* prints; it must end with 0."""
        ran = subprocess.run(
            command, cwd=folder or self.work, env=self._variables(), stdout=subprocess.PIPE, text=True, timeout=600
        )
        expect(ran.returncode == 0, f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stdout}")
        return ran.stdout

    def _variables(self) -> dict[str, str]:
        """Return the variables of an activated environment: pyright goes by the path."""
        ours = ("PYTHON", "FOREBAY", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return kept | {"PATH": os.pathsep.join([str(self.programs), os.environ["PATH"]])}


def expect(fact: bool, otherwise: str) -> None:
    if not fact:
        sys.exit(f"try-wheels: {otherwise}")


def main(wheels: Sequence[Path]) -> None:
    by_name = {wheel.name.partition("-")[0]: wheel for wheel in wheels}
    for wheel in wheels:
        check_contents(wheel)
    with TemporaryDirectory() as folder:
        user = Environment(Path(folder))
        try_the_core_alone(user, by_name["forebay"])
        user.install(f"{by_name['forebay']}[trio]", *(str(wheel) for wheel in wheels))
        try_the_tutorial(user)
        try_a_plugin(user)
        try_the_types(user)


# --- Steps -------------------------------------------------------------------------------------


def check_contents(wheel: Path) -> None:
    """A wheel holds one typed package, the licence and nothing that only this repository needs."""
    say(f"what is in {wheel.name}")
    package = wheel.name.partition("-")[0]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        licences = [archive.read(name) for name in names if name.endswith(".dist-info/licenses/LICENSE")]

    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    expect(tops == {package}, f"{wheel.name} holds {sorted(tops)}, not {package} alone")
    expect(f"{package}/py.typed" in names, f"{wheel.name} has no py.typed")
    expect(licences == [(ROOT / "LICENSE").read_bytes()], f"{wheel.name} does not hold the LICENSE of the repository")
    tests = [name for name in names if re.search(r"(^|/)(tests?|conftest|test_\w+)(/|\.py$)", name)]
    expect(not tests, f"{wheel.name} holds tests: {tests}")


def try_the_core_alone(user: Environment, core: Path) -> None:
    """Without extras forebay imports, lists itself and drains a list."""
    say("the core without extras")
    user.install(str(core))
    installed = {row["name"] for row in json.loads(user.run(user.python, "-m", "pip", "list", "--format=json"))}
    expect("trio" not in installed, "the core brings trio along; it is an extra")

    user.run(user.python, "-W", "error", "-c", "import forebay, forebay.abc, forebay.hooks, forebay.testing")
    program = "import anyio, forebay; print(anyio.run(forebay.pipeline([1, 2]).map(str).run).seen)"
    expect(user.run(user.python, "-W", "error", "-c", program) == "2\n", "the core alone does not drain a list")
    expect("\nforebay (package forebay " in user.run(command(user, "forebay"), "plugins"), "forebay lists no built-ins")


def try_the_tutorial(user: Environment) -> None:
    """Every program of the tutorial runs as a reader would run it; `make test` compares what they print."""
    for page in sorted(TUTORIAL.glob("*.md")):
        programs = PROGRAM.findall(page.read_text(encoding="utf-8"))
        say(f"{len(programs)} programs of {page.name}")
        expect(bool(programs), f"{page.name} has no program")
        for number, program in enumerate(programs, 1):
            file = user.work / f"{page.stem}_{number}.py"
            file.write_text(program, encoding="utf-8")
            user.run(user.python, "-W", "error", file.name)


def try_a_plugin(user: Environment) -> None:
    """A plugin of somebody else installs, is listed, works by its names and passes the suites."""
    say("a plugin of somebody else")
    plugin = copytree(THIRD_PARTY, user.work / "third_party")
    user.install(str(plugin))

    listed = json.loads(user.run(command(user, "forebay"), "plugins", "--json"))["plugins"]
    (drawer,) = [each for each in listed if each["name"] == "drawer"]
    expect(
        (drawer["distribution"], drawer["version"]) == ("drawer-for-forebay", "4.2"),
        f"`forebay plugins` shows the package as {drawer['distribution']} {drawer['version']}",
    )
    expect(
        "(package drawer-for-forebay 4.2)" in user.run(command(user, "forebay"), "plugins"), "the list has no drawer"
    )

    printed = user.run(user.python, "-W", "error", "use_it.py", folder=plugin)
    expect(printed == USED_IT, f"use_it.py printed:\n{printed}")
    say(user.run(user.python, "-m", "pytest", "-q", "--no-header", "tests", folder=plugin).splitlines()[-1])


def try_the_types(user: Environment) -> None:
    """A type checker knows every public type, and accepts the plugin and the program that uses it."""
    plugin = user.work / "third_party"
    tools = Path(sys.executable).parent
    if (tools / "mypy").exists():
        say("mypy --strict on the plugin and its program")
        installed = ("--python-executable", user.python, "--cache-dir", str(user.work / "mypy"))
        user.run(str(tools / "mypy"), "--strict", *installed, "src", "use_it.py", "tests", folder=plugin)
    if (tools / "pyright").exists():
        say("pyright --verifytypes forebay")
        user.run(str(tools / "pyright"), "--verifytypes", "forebay", "--ignoreexternal")


def command(user: Environment, name: str) -> str:
    return str(user.programs / name)


def say(step: str) -> None:
    print(f"try-wheels: {step}", flush=True)


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[1:]])
