"""The package as it is built and installed: what the wheel holds, what an import loads, which version it names."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from stable_baselines3 import PPO

import bilevel_gym
from bilevel_gym import agents
from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = ("agents", "cli", "envs", "wrappers")
BESIDE = ("benchmarks", "docs", "examples", "tests")
CORE = {
    "click", "gymnasium", "numpy", "pettingzoo", "pyyaml", "rich", "scipy", "stable-baselines3", "torch", "tqdm",
}  # fmt: skip
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]


def run_python(code: str, cwd: Path, **env: str) -> str:
    """Return what ``code`` prints in a fresh interpreter; its traceback fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_package_of_the_tree_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for name in SUBPACKAGES for path in (ROOT / name).rglob("*.py")}
    assert sorted(PACKAGES) == sorted(
        ["bilevel_gym", *(".".join(["bilevel_gym", *folder.parts]) for folder in folders)]
    )
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_the_root_holds_no_stray_module() -> None:
    assert {path.name for path in ROOT.glob("*.py")} <= {"__init__.py", "__main__.py"}  # all of them reach the wheel


@pytest.mark.skipif(not (ROOT / "typings").is_dir(), reason="an sdist has no links")
def test_type_checkers_see_the_installed_name() -> None:
    links = {path.name: os.readlink(path) for path in (ROOT / "typings" / "bilevel_gym").iterdir()}
    assert links == {name: f"../../{name}" for name in ("__init__.py", "__main__.py", "py.typed", *SUBPACKAGES)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist, and of the wheel built from it, of a copy of the tree, whose folder's name is no Python name."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "bilevel-gym"
    source.mkdir()
    for name in (*SUBPACKAGES, *BESIDE):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_the_sdist_holds_what_builds_and_tests_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    source = built / "bilevel-gym"
    needed = [path for name in (*SUBPACKAGES, *BESIDE) for path in (source / name).rglob("*") if path.is_file()]
    left_out = {path.relative_to(source).as_posix() for path in needed} - names
    assert {Path(name).parent.as_posix() for name in left_out} <= {"docs/results"}
    assert {Path(name).suffix for name in left_out} <= {".png"}
    assert {"pyproject.toml", "constraints.txt", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"} <= names


EXTENSIONS = sorted(path.stem for path in (ROOT / "examples" / "extending").glob("*.py"))


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """Where the wheel was extracted, and what a process said there, in a folder with the examples of extensions alone: the
    files that its packages were imported from, and what each extension printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    (folder / "empty").mkdir()
    for name in EXTENSIONS:
        shutil.copy(ROOT / "examples" / "extending" / f"{name}.py", folder / "empty")
    code = f"""if True:
        import importlib, runpy
        print("== packages")
        for name in {PACKAGES!r}: print(importlib.import_module(name).__file__)
        for name in {EXTENSIONS!r}:
            print("==", name)
            runpy.run_path(name + ".py", run_name="__main__")
    """
    # the extracted wheel stands before the editable install on the path
    said = run_python(code, folder / "empty", PYTHONPATH=str(folder / "site"))
    parts = [part.splitlines() for part in said.split("== ")[1:]]
    return folder / "site", {name: lines for name, *lines in parts}


def test_the_wheel_imports_from_elsewhere(elsewhere: tuple[Path, dict[str, list[str]]]) -> None:
    site, said = elsewhere
    expected = [site / Path(*name.split(".")) / "__init__.py" for name in PACKAGES]
    assert [Path(file) for file in said["packages"]] == expected
    assert (site / "bilevel_gym" / "py.typed").is_file()


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_is_one_file_that_runs_from_elsewhere(
    name: str, elsewhere: tuple[Path, dict[str, list[str]]]
) -> None:
    """In a folder without the package, against the wheel, by public names alone; and the leader learns."""
    text = (ROOT / "examples" / "extending" / f"{name}.py").read_text(encoding="utf-8")
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    private = [alias.name for node in imported for alias in node.names if alias.name.rpartition(".")[2].startswith("_")]
    assert private == []
    modules = {str(node.module) for node in imported if isinstance(node, ast.ImportFrom)}
    assert not any(part.startswith("_") and part != "__future__" for module in modules for part in module.split("."))
    assert not modules & set(EXTENSIONS)  # one file
    said = elsewhere[1][name]
    if name == "penalty":  # the more slack it counts on, the more it expects of such a follower
        expected = [float(re.findall(r"[\d.]+", line)[1]) for line in said]
        assert expected == sorted(expected)
        assert len(expected) == 3
    else:
        (before, after) = re.search(r"(-?[\d.]+) before, (-?[\d.]+) after", said[0]).groups()  # type: ignore[union-attr]
        assert float(after) > float(before) + 1.0


def test_the_wheel_holds_the_package_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    sources = [path.relative_to(ROOT) for name in SUBPACKAGES for path in (ROOT / name).rglob("*.py")]
    sources += [path.relative_to(ROOT) for path in (*ROOT.glob("*.py"), ROOT / "py.typed")]
    data: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    sources += [
        Path(*package.split(".")[1:], name) for package, names in data.items() for name in names if "." in package
    ]
    assert sorted(names) == sorted(f"bilevel_gym/{path.as_posix()}" for path in sources)


def test_the_core_needs_these_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = re.findall(r"^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)
    needed = [Requirement(line) for line in lines]
    assert {r.name for r in needed if r.marker is None} == CORE
    assert all("extra ==" in str(r.marker) for r in needed if r.marker is not None)


def licence(name: str) -> str:
    """What a distribution says of its licence, in short: numpy's long text, say, speaks of what gfortran has."""
    meta = distribution(name).metadata
    classified = [line for line in meta.get_all("Classifier") or [] if line.startswith("License ::")]
    (whole,) = (meta.get_all("License-Expression") or [""])[:1]
    (text,) = (meta.get_all("License") or [""])[:1]
    return whole or "; ".join(classified) or text.split("\n")[0]


def test_nothing_that_the_core_installs_is_under_the_gpl() -> None:
    found: dict[str, str] = {}
    names = sorted(CORE)
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found[name] = licence(name)
            more = [Requirement(line) for line in distribution(name).requires or []]
            names += [r.name for r in more if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(found) > len(CORE)
    assert {name: text for name, text in found.items() if re.search(r"GPL|GNU|Affero", text)} == {}


def test_the_version_is_the_same_everywhere(wheel: Path) -> None:
    version = bilevel_gym.__version__
    headings = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert [headings[0], *cited, wheel.name.split("-")[1]] == [version] * 3


def test_second_copies_of_the_classes_are_refused() -> None:
    """In the checkout's root, ``import envs`` would find the folder of that name."""
    code = f"""if True:
        import importlib
        for name in {SUBPACKAGES!r}:
            try: importlib.import_module(name)
            except ImportError as error: print(error)
    """
    said = run_python(code, ROOT).splitlines()
    assert [line.partition(":")[0] for line in said] == [
        f"import bilevel_gym.{name}, not {name}" for name in SUBPACKAGES
    ]


def test_import_loads_neither_torch_nor_sb3_and_agents_and_wrappers_come_on_first_use(tmp_path: Path) -> None:
    code = """if True:
        import sys, bilevel_gym
        assert not {"torch", "stable_baselines3"} & set(sys.modules)
        assert not {"bilevel_gym.agents", "bilevel_gym.wrappers"} & set(sys.modules)
        assert {"agents", "envs", "wrappers"} <= set(dir(bilevel_gym))
        print(bilevel_gym.wrappers.__name__, bilevel_gym.agents.__name__)
    """
    assert run_python(code, tmp_path) == "bilevel_gym.wrappers bilevel_gym.agents"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'agent'"):
        _ = bilevel_gym.agent


def constraints(python: str) -> dict[str, Requirement]:
    """Return the lines of constraints.txt that hold on a Python version, by name; no name holds twice."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    held = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    assert len(held) == len({pin.name for pin in held})
    return {pin.name: pin for pin in held}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_dependency_has_one_tested_version(python: str) -> None:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(line for name in extras for line in extras[name])]
    needed = [Requirement(line) for line in lines]
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"python_version": python})]
    pins = constraints(python)
    assert {pin for pin in pins} == {r.name for r in needed} - {"bilevel-gym"}
    for requirement in needed:
        if requirement.name != "bilevel-gym":
            (pin,) = pins[requirement.name].specifier
            assert requirement.specifier.contains(pin.version), requirement


def test_one_iteration_runs_through_few_files_and_none_is_long() -> None:
    """The second iteration and an evaluation of sampled PBRL: who changes it has this much to read."""
    leader = PBRL(
        "bilevel_gym/StackelbergGame-v0",
        PPO,
        config=PBRLConfig(n_envs=8, follower_steps=64, warmup_steps=64, estimator=Rollouts(8)),
        env_kwargs={"n_states": 5},
    )
    seen, home = set[Path](), Path(bilevel_gym.__file__).parent

    def crossed(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(home) and path.relative_to(home).parts[0] in SUBPACKAGES:
            seen.add(path.relative_to(home))

    def watched(leader: PBRL) -> bool:
        if leader.iteration == 2:
            leader.evaluate_last()
            sys.setprofile(None)
            return False
        sys.setprofile(crossed)
        return True

    leader.learn(10**6, callback=watched)
    assert {Path("agents/leaders/pbrl.py"), Path("envs/tabular.py"), Path("agents/leader.py")} <= seen
    assert len(seen) <= 12, sorted(seen)
    long = {path: n for path in seen if (n := len((home / path).read_text(encoding="utf-8").splitlines())) > 600}
    assert long == {}


def test_what_users_name_most_is_exported_and_no_more() -> None:
    assert len(agents.__all__) <= 45
    assert set(agents.__all__) == set(dir(agents))
