"""The package's imports run down only.

Every module belongs to a layer, the longest dotted name of ``LAYERS`` that it lies under. A layer imports itself and
the layers named beside it. The syntax tree is read, so that imports inside functions and for type checkers count too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "bilevel_gym"
SUBPACKAGES = {"agents", "cli", "envs", "wrappers"}
SCRIPTS = {"benchmarks", "docs", "examples", "tests"}

_ORACLES = {"agents.oracles", "agents.oracles.sb3", "agents.oracles.replay"}
_METHOD = {"agents.files", "agents.schedules", "agents.estimators", "agents.penalties", "agents.common", *_ORACLES}
_GROUND = {"envs", "envs.mdp", "wrappers", *_METHOD}
LAYERS: dict[str, set[str]] = {
    "envs.mdp": set(),
    "envs": {"envs.mdp"},
    "wrappers": {"envs", "envs.mdp"},
    "agents.files": {"envs.mdp"},
    "agents.schedules": {"envs.mdp"},
    "agents.estimators": {"envs.mdp"},
    "agents.penalties": {"envs.mdp", "agents.schedules", "agents.estimators"},
    "agents.oracles": {"envs.mdp", "agents.schedules", *_ORACLES},
    "agents.oracles.sb3": {"envs", "envs.mdp", "wrappers", "agents.files", "agents.schedules", *_ORACLES},
    "agents.oracles.replay": {"envs.mdp", "wrappers"},
    "agents.common": _GROUND - {"agents.common"},
    "agents.text": {"envs", "envs.mdp", "wrappers", "agents.files"},  # language models as followers
    "agents.preferences": _GROUND,  # parts of the methods that learn a reward from preferences
    "agents.leaders": _GROUND | {"agents.preferences"},
    "agents.baselines": _GROUND | {"agents.preferences"},
    "cli": _GROUND | {"", "agents", "agents.preferences"},  # the command line: nothing imports it
}
FACES = {"", "agents"}  # the root and agents/__init__.py: these import anything, and nothing below imports them
OWN_NAME = "the package is imported by its own name, not relatively"
FOREIGN_TO_MDP = {"gymnasium", "logging", "pettingzoo", "sb3_contrib", "stable_baselines3"}


def layer_of(module: str) -> str | None:
    """Return the layer of a module named below the package, or None if it lies in none."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LAYERS), module if module in FACES else None)


def module_name(path: Path) -> str:
    """Return the dotted name, below the package, of a file whose path is relative to the package's root."""
    parts = path.with_suffix("").parts
    if parts[-1] in {"__init__", "__main__"}:
        parts = parts[:-1]
    return ".".join(parts)


def imports(tree: ast.Module, path: Path, modules: set[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the kind and the dotted target of each import of the file at ``path``.

    The kind is "relative", "own" (absolute, by the package's installed name) or "foreign". Targets of the first two are
    named below the package; ``from .a import b`` aims at ``a.b`` where that is a module, and else at ``a``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, below = alias.name.partition(".")
                yield (node.lineno, "own", below) if top == PACKAGE else (node.lineno, "foreign", alias.name)
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ""
            top, _, below = name.partition(".")
            if node.level:
                kind, base = "relative", ".".join([*path.parts[: len(path.parts) - node.level], *filter(None, [name])])
            else:
                kind, base = ("own", below) if top == PACKAGE else ("foreign", name)
            for alias in node.names:
                deeper = f"{base}.{alias.name}".lstrip(".")
                yield node.lineno, kind, deeper if kind != "foreign" and deeper in modules else base


def fault(layer: str, kind: str, target: str) -> str | None:
    """Return what is wrong with an import by a module of ``layer``, or None."""
    top = target.split(".")[0]
    if kind == "own":
        return OWN_NAME
    if kind == "foreign":
        if top in SUBPACKAGES | SCRIPTS:
            return f"{target} is imported by its name in the checkout"
        return f"{layer} imports {target}" if layer == "envs.mdp" and top in FOREIGN_TO_MDP else None
    allowed = layer in FACES or layer_of(target) in {layer, *LAYERS[layer]}
    return None if allowed else f"{layer} imports {target or 'the root'}"


def violations(root: Path) -> list[str]:
    """Return one line for each import under ``root`` that breaks a rule."""
    package = sorted([*root.glob("*.py"), *(path for name in SUBPACKAGES for path in (root / name).rglob("*.py"))])
    scripts = sorted(path for name in SCRIPTS for path in (root / name).rglob("*.py"))
    modules = {module_name(path.relative_to(root)) for path in package}
    found: list[str] = []
    for path in (*package, *scripts):
        relative = path.relative_to(root)
        layer = layer_of(module_name(relative))
        if path in package and layer is None:
            found.append(f"{relative}: lies in no layer")
            continue
        for line, kind, target in imports(ast.parse(path.read_text(encoding="utf-8")), relative, modules):
            if layer is not None:
                wrong = fault(layer, kind, target)
            else:  # scripts and tests import the whole package, by its installed name
                wrong = fault("", kind, target) if kind == "foreign" and target.split(".")[0] in SUBPACKAGES else None
            if wrong:
                found.append(f"{relative}:{line}: {wrong}")
    return found


def test_the_package_keeps_its_arrows() -> None:
    assert violations(ROOT) == []


CLEAN = {
    "__init__.py": "from . import envs\ndef f():\n    from .agents import leaders, Name",
    "envs/__init__.py": "import gymnasium\nfrom .mdp import tabular",
    "envs/core.py": "from . import mdp\nfrom .mdp.tabular import P",
    "envs/mdp/__init__.py": "from .tabular import P",
    "envs/mdp/tabular.py": "import numpy as np, torch\nP = 1",
    "wrappers/__init__.py": "from ..envs.core import LeaderEnv",
    "agents/__init__.py": "from .leaders import PBRL\nfrom .baselines.random import Random",
    "agents/schedules.py": "from ..envs.mdp.tabular import P",
    "agents/estimators.py": "from ..envs.mdp import P",
    "agents/penalties/__init__.py": "from ..estimators import E\nfrom ...envs import mdp\nfrom ..schedules import Constant",
    "agents/oracles/__init__.py": "from .sb3 import SB3\nfrom ...envs.mdp import P",
    "agents/oracles/sb3.py": "from ... import wrappers\nfrom ...envs import core\nfrom stable_baselines3 import PPO",
    "agents/common/__init__.py": "from .. import oracles, penalties\nfrom ... import envs",
    "agents/leaders/__init__.py": "from ..common import run\nfrom .pbrl import PBRL",
    "agents/leaders/pbrl.py": "from ..penalties import ValuePenalty\nfrom ..oracles.sb3 import SB3",
    "agents/baselines/__init__.py": "",
    "agents/baselines/random.py": "from ...wrappers import Mix\nfrom ..common import run",
    "examples/demo.py": "from bilevel_gym.agents.leaders import PBRL",
    "benchmarks/__main__.py": "from .speed import main\nfrom bilevel_gym.agents import baselines",
    "tests/test_a.py": "from bilevel_gym.agents.leaders.pbrl import PBRL",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_tree_without_fault_passes(tmp_path: Path) -> None:
    assert violations(plant(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(
    ("path", "text", "wrong"),
    [
        ("envs/mdp/tabular.py", "import gymnasium as gym", "1: envs.mdp imports gymnasium"),
        ("envs/mdp/tabular.py", "from stable_baselines3 import PPO", "1: envs.mdp imports stable_baselines3"),
        ("envs/mdp/tabular.py", "def f():\n    import logging", "2: envs.mdp imports logging"),
        ("envs/mdp/tabular.py", "from ..core import LeaderEnv", "1: envs.mdp imports envs.core"),
        ("envs/mdp/tabular.py", "from .. import register", "1: envs.mdp imports envs"),
        ("envs/mdp/tabular.py", "from ... import __version__", "1: envs.mdp imports the root"),
        ("envs/core.py", "from ..wrappers import Mix", "1: envs imports wrappers"),
        ("envs/core.py", "from .. import agents", "1: envs imports agents"),
        ("wrappers/mix.py", "from ..agents.oracles import O", "1: wrappers imports agents.oracles"),
        ("agents/schedules.py", "from .penalties import V", "1: agents.schedules imports agents.penalties"),
        ("agents/estimators.py", "from .schedules import S", "1: agents.estimators imports agents.schedules"),
        ("agents/penalties/value.py", "from ..oracles import O", "1: agents.penalties imports agents.oracles"),
        ("agents/penalties/value.py", "from .. import oracles", "1: agents.penalties imports agents.oracles"),
        ("agents/penalties/value.py", "from ...envs import core", "1: agents.penalties imports envs.core"),
        ("agents/penalties/value.py", "from .. import PBRL", "1: agents.penalties imports agents"),
        ("agents/oracles/exact.py", "from ..penalties import V", "1: agents.oracles imports agents.penalties"),
        ("agents/oracles/exact.py", "from ... import wrappers", "1: agents.oracles imports wrappers"),
        ("agents/oracles/sb3.py", "from ..common import run", "1: agents.oracles.sb3 imports agents.common"),
        ("agents/common/run.py", "from ..leaders import PBRL", "1: agents.common imports agents.leaders"),
        ("agents/leaders/pbrl.py", "from ..baselines import B", "1: agents.leaders imports agents.baselines"),
        ("agents/leaders/pbrl.py", "from bilevel_gym import envs", f"1: {OWN_NAME}"),
        ("agents/baselines/b.py", "from ..leaders.pbrl import P", "1: agents.baselines imports agents.leaders.pbrl"),
        ("agents/baselines/b.py", "import benchmarks", "1: benchmarks is imported by its name in the checkout"),
        ("wrappers/mix.py", "import envs.core", "1: envs.core is imported by its name in the checkout"),
        ("examples/demo.py", "from envs import core", "1: envs is imported by its name in the checkout"),
        ("tests/test_a.py", "import agents", "1: agents is imported by its name in the checkout"),
        ("agents/stray.py", "", " lies in no layer"),
    ],
)  # fmt: skip
def test_a_fault_is_found(tmp_path: Path, path: str, text: str, wrong: str) -> None:
    assert violations(plant(tmp_path, {**CLEAN, path: text})) == [f"{path}:{wrong}"]
