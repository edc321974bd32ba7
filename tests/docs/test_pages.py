"""The documentation: its code runs, its links lead somewhere, and nothing that is registered or public is left out."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")  # of the extra dev, as Sphinx needs it: the environments' pages are templates

from bilevel_gym import agents, wrappers
from bilevel_gym.agents import Rollouts
from bilevel_gym.agents.plan import Plan
from bilevel_gym.cli.catalogue import leaders
from bilevel_gym.envs import mdp
from docs import environment_pages
from docs.docstrings import to_rst

DOCS = Path(environment_pages.__file__).parent
ROOT = DOCS.parent
GENERATED = {"environments/index.md", *(f"environments/{one.name}.md" for one in environment_pages.environments())}
PAGES = {
    str(path.relative_to(DOCS)): path.read_text(encoding="utf-8")
    for path in sorted(DOCS.rglob("*.md"))
    if "_build" not in path.parts and str(path.relative_to(DOCS)) not in GENERATED
}
TESTED_ELSEWHERE = {"command_line.md"}  # tests/cli/test_page.py
NEEDS = {"methods/cma_es.md": "cma", "methods/trials.md": "optuna", "tutorial.md": "matplotlib"}
SHORT = 500
WITH_PICTURES = any((DOCS / "results").glob("*.png"))  # an sdist has none of the results'


def code(page: str) -> str:
    """The page's Python, with budgets of 1,000 steps and of 100 iterations and more cut to token ones, but for the tutorial's."""
    text = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE))
    iterations = text if page == "tutorial.md" else re.sub(r"learn\(\d{3}\)", "learn(20)", text)
    return re.sub(r"\b\d+(?:_\d{3})+\b", str(SHORT), iterations)


@pytest.mark.parametrize("page", [page for page in PAGES if code(page) and page not in TESTED_ELSEWHERE])
@pytest.mark.filterwarnings("ignore")
def test_its_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
        if NEEDS[page] == "matplotlib":
            monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "require_iteration", lambda plan: None)  # the budgets are cut
    monkeypatch.setattr(
        Rollouts.__init__, "__defaults__", (8, *(Rollouts.__init__.__defaults__ or ())[1:])
    )  # episodes too
    held: dict[str, Any] = {"__name__": "__page__"}
    exec(compile(code(page), page, "exec"), held)
    if page == "tutorial.md":
        found = [held[name].evaluate().leader_return for name in ("naive", "leader_exact", "strict")]
        assert found == pytest.approx([4.84, 5.22, 5.64], abs=0.005)


def test_every_environment_has_a_page_with_a_picture() -> None:
    for environment in environment_pages.environments():
        page = environment_pages.page(environment)
        for heading in ("Description", "Arguments", "Version History"):
            assert f"\n## {heading}\n" in page, environment.name
        assert environment.picture is not None, environment.name
        assert ":class:" not in page.replace(":class: environment", "")


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(PAGES[page] for page in PAGES if page.startswith("api/"))
    listed = set(re.findall(r"\w+", " ".join(re.findall(r":members:(.*)", text))))
    public = {*agents.__all__, *mdp.__all__, *wrappers.__all__}
    assert public - listed == set()
    for module, names in re.findall(r"automodule:: (\S+)\n   :members: (.*)", text):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_every_leader_has_a_method_page() -> None:
    text = "\n".join(PAGES[page] for page in PAGES if page.startswith("methods/"))
    assert [name for name in leaders() if f"`{name}" not in text] == []


def anchors(text: str) -> set[str]:
    """What a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    lost = []
    for page, text in PAGES.items():
        plain = re.sub(r"^```.*?^```|`[^`\n]*`(?!\])", "", text, flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", plain):
            if re.match(r"https?:", target) or (target.endswith(".png") and not WITH_PICTURES):
                continue
            file, _, anchor = target.partition("#")
            if not file and anchor.startswith("bilevel_gym."):
                module, _, name = anchor.rpartition(".")
                found = importlib.util.find_spec(module) is not None and hasattr(importlib.import_module(module), name)
            else:
                path = (DOCS / page).parent / file if file else DOCS / page
                generated = any(path.resolve() == (DOCS / name).resolve() for name in GENERATED)
                found = generated or (path.is_file() and (not anchor or anchor in anchors(path.read_text("utf-8"))))
            if not found:
                lost.append(f"{page}: {target}")
    assert lost == []


def test_formulas_in_docstrings_are_shown_as_typed() -> None:
    lines = [
        "First, |x| small.",
        "",
        "    a = b",
        "    c",
        "",
        "Then ``|y|``.",
        "",
        "Args:",
        "    x: it",
        "",
        "        more",
    ]
    to_rst(None, "module", "", None, None, lines)
    assert lines[:6] == [r"First, \|x\| small.", "", ".. code-block:: none", "", "    a = b", "    c"]
    assert lines[7] == "Then ``|y|``."
    assert lines[9:11] == ["Args:", "    x: it"]


def test_sphinx_finds_links_that_lead_nowhere(tmp_path: Path) -> None:
    """With the settings of ``docs/conf.py``: `make docs` makes errors of these warnings."""
    pytest.importorskip("myst_parser")
    from sphinx.cmd.build import main

    from docs import conf

    wrong = {
        "[a](nowhere.md)": "target not found: 'nowhere.md'",
        "[b](other.md#nowhere)": "local id not found in doc 'other': 'nowhere'",
        "[c](nowhere.txt)": "target not found: 'nowhere.txt'",
        "[d](#json.nothing)": "target not found: 'json.nothing'",
        "![e](nowhere.png)": "image file not readable: nowhere.png",
    }
    right = "[f](other.md#a-heading), [g](other.md), [h](#json.loads)"
    (tmp_path / "index.md").write_text(f"# Page\n\n{' '.join(wrong)}, {right}\n\n```{{toctree}}\nother\n```\n")
    (tmp_path / "other.md").write_text(
        "# Other\n\n## A heading\n\n```{eval-rst}\n.. automodule:: json\n   :members: loads\n```\n"
    )
    names = ("myst_enable_extensions", "myst_heading_anchors", "nitpicky")
    settings = "\n".join(f"{name} = {getattr(conf, name)!r}" for name in names)
    (tmp_path / "conf.py").write_text(f"extensions = ['myst_parser', 'sphinx.ext.autodoc']\n{settings}\n")
    log = tmp_path / "warnings.txt"
    main(["-q", "-w", str(log), "-b", "html", str(tmp_path), str(tmp_path / "_build")])
    found = log.read_text()
    assert [text for text in wrong.values() if text not in found] == []
    assert found.count("WARNING") == len(wrong)
