"""A page for every registered environment, made from its docstring, its registration and its tuned settings."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pettingzoo
import yaml

import bilevel_gym

DOCS = Path(__file__).parent
PREFIX = "bilevel_gym/"
TUNED: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
    (DOCS.parent / "cli" / "tuned.yml").read_text(encoding="utf-8")
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
    def tuned(self) -> dict[str, dict[str, Any]]:
        return TUNED.get(re.sub(r"_v(\d+)$", r"-v\1", self.env_id), {})


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


def picture(name: str) -> Path | None:
    """Its picture, a moving one or a still one."""
    folder = DOCS / "images" / "environments"
    return next((folder / f"{name}.{kind}" for kind in ("gif", "png") if (folder / f"{name}.{kind}").is_file()), None)


def page(environment: Environment) -> str:
    """The page in Markdown."""
    title, _, body = environment.doc.partition("\n\n")
    lines = [f"# {environment.name}", "", " ".join(title.split()), ""]
    shown = picture(environment.name)
    if shown is not None:
        alt = f"{environment.name}, drawn by itself"
        lines += [f"```{{image}} ../images/environments/{shown.name}", f":alt: {alt}", ":class: environment", "```", ""]
    lines += [
        "```python",
        *_code(environment),
        "```",
        "",
        _markdown(body),
        "",
        *_tuned(environment),
        *_class(environment),
    ]
    return "\n".join(lines) + "\n"


def _code(environment: Environment) -> Iterator[str]:
    if environment.is_game:
        yield f"from bilevel_gym.envs import {environment.name}"
        yield ""
        yield f"env = {environment.name}.parallel_env()"
    else:
        yield "import gymnasium as gym"
        yield "import bilevel_gym"
        yield ""
        yield f'env = gym.make("{environment.env_id}")'


def _markdown(body: str) -> str:
    """The docstring's Markdown, with Sphinx's roles as code."""
    return re.sub(r":\w+:`~?\.*([^`]*)`", r"`\1`", body)


def _tuned(environment: Environment) -> Iterator[str]:
    rows = [(leader, follower, entry) for leader, by in environment.tuned.items() for follower, entry in by.items()]
    if not rows:
        return
    yield "## Tuned settings"
    yield ""
    yield f"`bilevel-gym train --env {environment.name} --leader ... --follower ...` takes these by itself;"
    yield "*exact* leaders know the model and count iterations, the others the steps of all followers."
    yield ""
    yield "| leader | follower | budget | leader's return | over |"
    yield "| --- | --- | ---: | ---: | --- |"
    for leader, follower, entry in rows:
        evidence = entry["evidence"]
        shown = f"{evidence['value']:g}" if "|" in evidence["shown"] else evidence["shown"].replace("*", "")
        shown = shown.replace(" ", "&nbsp;")
        if evidence["measure"] != "leader_return":
            shown = f"{evidence['measure'].replace('_', ' ')}: {shown}"
        source = Path(evidence["page"]).name
        runs = f"[{evidence['runs']}](../results/{source})"
        yield f"| {leader} | {follower} | {entry['n_timesteps']:,} | {shown} | {runs} |"
    yield ""


def _class(environment: Environment) -> Iterator[str]:
    cls = environment.cls
    yield "## Class"
    yield ""
    yield "```{eval-rst}"
    yield f".. autoclass:: {cls.__module__}.{cls.__name__}"
    yield "   :no-members:"
    yield "   :class-doc-from: init"
    yield "```"


def table() -> str:
    """All environments, a row each, with a small picture."""
    rows = ["::::{grid} 1 2 2 3", ":gutter: 3", ""]
    for environment in environments():
        shown = picture(environment.name)
        title = " ".join(environment.doc.partition("\n\n")[0].split())
        rows += [f":::{{grid-item-card}} {environment.name}", f":link: {environment.name}", ":link-type: doc"]
        rows += [] if shown is None else [f":img-top: ../images/environments/{shown.name}"]
        rows += ["", title, ":::", ""]
    return "\n".join([*rows, "::::", ""])


def write(app: Any = None) -> None:
    """Write the pages to ``docs/environments``; a page that is the same is left alone."""
    names = [environment.name for environment in environments()]
    toctree = ["```{toctree}", ":hidden:", "", *names, "```", ""]
    intro = (DOCS / "environments" / "intro.txt").read_text(encoding="utf-8")
    pages = {environment.name: page(environment) for environment in environments()}
    pages["index"] = "\n".join([intro, table(), *toctree])
    for name, text in pages.items():
        path = DOCS / "environments" / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
