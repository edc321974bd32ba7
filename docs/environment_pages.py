"""A page for every registered environment, made from its docstring, its registration and its tuned settings."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pettingzoo
import yaml
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader

import bilevel_gym

DOCS = Path(__file__).parent
PREFIX = "bilevel_gym/"
TUNED: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
    (DOCS.parent / "cli" / "tuned.yml").read_text(encoding="utf-8")
)

TEMPLATES = Templates(
    loader=FileSystemLoader(DOCS / "environments"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)


@dataclass(frozen=True)
class Environment:
    """One registered environment.

    Attributes:
        env_id: as it is registered.
        cls: what its docstring stands on.
        is_game: whether it is PettingZoo's.
    """

    env_id: str
    cls: type
    is_game: bool

    @property
    def name(self) -> str:
        return self.env_id.removeprefix(PREFIX)

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.cls) or ""

    @property
    def title(self) -> str:
        return " ".join(self.doc.partition("\n\n")[0].split())

    @property
    def body(self) -> str:
        """The docstring's Markdown, with Sphinx's roles as code."""
        return re.sub(r":\w+:`~?\.*([^`]*)`", r"`\1`", self.doc.partition("\n\n")[2])

    @property
    def tuned(self) -> dict[str, dict[str, Any]]:
        return TUNED.get(re.sub(r"_v(\d+)$", r"-v\1", self.env_id), {})

    @property
    def picture(self) -> Path | None:
        """Its picture, a moving one or a still one."""
        return next((DOCS / "images" / "environments").glob(f"{self.name}.*"), None)


def environments() -> list[Environment]:
    """All of this package's, in the order of registration, games last."""
    assert bilevel_gym.envs
    found = []
    for env_id, spec in gym.registry.items():
        if env_id.startswith(PREFIX):
            module, name = str(spec.entry_point).split(":")
            found.append(Environment(env_id, getattr(importlib.import_module(module), name), False))
    for env_id in pettingzoo.parallel_registry:
        if env_id.startswith(PREFIX):
            loaded = importlib.import_module(str(pettingzoo.spec("parallel", env_id).entry_point).split(":")[0])
            name = PREFIX + loaded.__name__.rpartition(".")[2]
            found.append(Environment(name, loaded.IncentiveDesignEnv, True))
    return found


def shown(evidence: dict[str, Any]) -> str:
    """A leader's return, as the page that it was taken from shows it."""
    text = f"{evidence['value']:g}" if "|" in evidence["shown"] else evidence["shown"].replace("*", "")
    measure = "" if evidence["measure"] == "leader_return" else f"{evidence['measure'].replace('_', ' ')}: "
    return measure + text.replace(" ", "&nbsp;")


def page(environment: Environment) -> str:
    """The page in Markdown."""
    return TEMPLATES.get_template("page.jinja").render(environment=environment, shown=shown)


def write(app: Any = None) -> None:
    """Write the pages to ``docs/environments``; a page that is the same is left alone."""
    pages = {environment.name: page(environment) for environment in environments()}
    pages["index"] = TEMPLATES.get_template("index.jinja").render(environments=environments())
    for name, text in pages.items():
        path = DOCS / "environments" / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
