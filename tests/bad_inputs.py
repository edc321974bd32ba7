"""Bad inputs and what is said of them: each is made, what comes of it is caught, and what it must leave is looked for.

``python -m tests.bad_inputs`` writes the table into docs/failures.md; ``tests/test_failures.py`` holds the page to it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    PBRL,
    Checkpoint,
    FileLabeller,
    Hypergradient,
    OptunaSearch,
    PBRLConfig,
    PreferenceConfig,
    TabularPBRL,
    TabularPBRLConfig,
    TrueReturnLabeller,
    ValuePenalty,
)
from bilevel_gym.agents.leaders.tabular_pbrl import TabularPBRLMethod
from bilevel_gym.agents.model_card import load_follower, push_to_hub, write_model_card
from bilevel_gym.agents.preferences.files import PreferenceLog, Signature, load_preferences, save_preferences
from bilevel_gym.agents.preferences.labels import Answer, Labeller, Pair, PreferenceBuffer, ProgramLabeller, Query
from bilevel_gym.agents.preferences.page import main as page_main
from bilevel_gym.agents.preferences.training import RewardExplodedError
from bilevel_gym.cli.app import main
from bilevel_gym.envs.mdp import TabularMDP
from bilevel_gym.envs.two_state import TwoStateProblem
from bilevel_gym.wrappers import Segment
from tests.fuzz.hostile import packed, parts

PAGE = Path(__file__).resolve().parents[1] / "docs" / "failures.md"
BEGIN, END = "<!-- bad inputs: by python -m tests.bad_inputs -->", "<!-- end of bad inputs -->"
TWO, GRID = "bilevel_gym/TwoState-v0", "bilevel_gym/RewardGrid-v0"
LONGEST = 300


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        group: the table that it stands in.
        what: the input, for the reader.
        left: what it leaves, which ``make`` asserts.
        make: makes it and returns what is said.
    """

    group: str
    what: str
    left: str
    make: Callable[[], str]


CASES: list[Case] = []


def case(group: str, what: str, left: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def kept(make: Callable[[], str]) -> Callable[[], str]:
        CASES.append(Case(group, what, left, make))
        return make

    return kept


# --- catching ---------------------------------------------------------------------------------------------------------


def error(call: Callable[[], Any]) -> str:
    """The error of a call; none fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as caught:
            return f"{type(caught).__name__}: {caught}"
    raise AssertionError("nothing was refused")


def warned(call: Callable[[], Any], about: str) -> str:
    """The first warning of a call that speaks of something."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return next(f"{w.category.__name__}: {w.message}" for w in caught if about in str(w.message))


def command(*words: str, run: Callable[[Sequence[str]], Any] = main, code: int = 2) -> str:
    """What a command says on stderr, on one line; nothing on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = run(words)
        except SystemExit as ended:
            found = ended.code
    assert (found, out.getvalue()) == (code, "")
    return err.getvalue().splitlines()[-1]


def exit_code(words: Sequence[str]) -> Any:
    try:
        return main(words)
    except SystemExit as ended:
        return ended.code


def refused(*words: str) -> str:
    """A command that is refused with code 2 before anything is made."""
    said = command(*words)
    assert not Path("runs").exists()
    return said


@contextlib.contextmanager
def full_disk(bytes_: int = 2048) -> Iterator[None]:
    """No file may grow beyond so many bytes, which stands for a full disk."""
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, held[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)


class _Missing:
    """What finds no module of this name, though it may be installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {self.name!r}", name=self.name)


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Without a library."""
    kept = {key: module for key, module in sys.modules.items() if key.partition(".")[0] != name}
    find = importlib.util.find_spec
    with (
        mock.patch.dict(sys.modules, kept, clear=True),
        mock.patch.object(sys, "meta_path", [_Missing(name), *sys.meta_path]),
        mock.patch.object(importlib.util, "find_spec", lambda one, *rest: None if one == name else find(one, *rest)),
    ):
        yield


# --- preferences ------------------------------------------------------------------------------------------------------

PREFERENCES = "Preferences"
OBS, ACTIONS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32), gym.spaces.Discrete(3)
WORLD = Signature.of("World-v0", OBS, ACTIONS, 4)
ASKED = PreferenceConfig(
    labels=12, first_labels=6, length=5, first_steps=64, follower_steps=64, first_epochs=10, epochs=2, n_envs=4
)


def segment(H: int = 4, size: int = 2) -> Segment:
    return Segment(np.zeros((H, size), np.float32), np.zeros(H, np.int64), np.ones(H, bool), np.zeros(H))


def file_of(n: int, path: str = "asked.prefs") -> Path:
    buffer = PreferenceBuffer()
    for _ in range(n):
        buffer.add(Pair(segment(), segment()), "left")
    return save_preferences(Path(path), buffer, WORLD)


class Silent(Labeller):
    """Answers nothing."""

    def ask(self, queries: Sequence[Query]) -> None: ...

    def answers(self) -> list[Answer]:
        return []


class Confused(Silent):
    """Answers what nobody asked."""

    def answers(self) -> list[Answer]:
        return [Answer(99, "left")]


@case(PREFERENCES, "segments of unequal length", "no pair is made")
def _() -> str:
    return error(lambda: Pair(segment(4), segment(3)))


@case(PREFERENCES, "segments whose observations have unequal shapes", "no pair is made")
def _() -> str:
    return error(lambda: Pair(segment(), segment(size=3)))


@case(PREFERENCES, "a pair of another length than those in the buffer", "the buffer as it was")
def _() -> str:
    buffer = PreferenceBuffer()
    buffer.add(Pair(segment(), segment()), "left")
    said = error(lambda: buffer.add(Pair(segment(3), segment(3)), "left"))
    assert len(buffer) == 1
    return said


@case(PREFERENCES, "a label that is none of left, right, equal, skip", "the buffer as it was")
def _() -> str:
    buffer = PreferenceBuffer()
    said = error(lambda: buffer.add(Pair(segment(), segment()), "both"))  # type: ignore[arg-type]
    assert len(buffer) == 0
    return said


@case(PREFERENCES, "an empty buffer", "")
def _() -> str:
    return error(lambda: list(PreferenceBuffer().batches(1, np.random.default_rng(0))))


@case(PREFERENCES, "a preference file that is cut short", "what was whole is read: four answers of five")
def _() -> str:
    path = file_of(5)
    path.write_bytes(path.read_bytes()[:-40])
    said = warned(lambda: load_preferences(path, WORLD), "cut short")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(load_preferences(path, WORLD)) == 4
    return said


@case(
    PREFERENCES, "the same, opened to be gone on with", "the torn end lies in `asked.prefs.cut`; new answers are read"
)
def _() -> str:
    path = file_of(5)
    path.write_bytes(path.read_bytes()[:-40])
    held: list[PreferenceLog] = []
    said = warned(lambda: held.append(PreferenceLog(path)), "cut short")
    held[0].ask(9, Pair(segment(), segment()))
    held[0].answer(9, "right")
    assert [preference.label for preference in load_preferences(path)] == ["left"] * 4 + ["right"]
    assert Path("asked.prefs.cut").is_file()
    return said


@case(PREFERENCES, "a preference file of another environment", "the file as it was")
def _() -> str:
    path = file_of(1)
    before = path.read_bytes()
    said = error(lambda: FileLabeller(path, Signature.of("Other-v0", OBS, gym.spaces.Discrete(4), 4)))
    assert path.read_bytes() == before
    return said


@case(PREFERENCES, "a file that holds no preferences", "the file as it was")
def _() -> str:
    Path("notes.txt").write_text("something else")
    said = error(lambda: load_preferences(Path("notes.txt")))
    assert Path("notes.txt").read_text() == "something else"
    return said


@case(PREFERENCES, "a disk that is full when a question is written", "the file as it was; later questions fit")
def _() -> str:
    log = PreferenceLog(file_of(1))
    before = log.path.read_bytes()
    with full_disk(len(before) + 100):
        said = error(lambda: log.ask(7, Pair(segment(), segment())))
    assert log.path.read_bytes() == before
    log.ask(7, Pair(segment(), segment()))
    return said


@case(PREFERENCES, "an answer to a question that is not in the file", "the file as it was")
def _() -> str:
    log = PreferenceLog(file_of(1))
    before = log.path.read_bytes()
    said = error(lambda: log.answer(99, "left"))
    assert log.path.read_bytes() == before
    return said


@case(PREFERENCES, "a reward model whose output explodes", "the last good state, saved; it can be gone on from")
def _() -> str:
    learner = DRLHF(GRID, A2C, config=replace(ASKED, checkpoint="good.zip"))

    def spoil(found: Any) -> None:
        found.trainer.optimizer.param_groups[0]["lr"] = 1e9

    said = error(lambda: learner.learn(600, callback=spoil))
    assert said.startswith(RewardExplodedError.__name__)
    good = DRLHF.load("good.zip")
    assert np.abs(good.x).max() < 10.0
    good.trainer.optimizer.param_groups[0]["lr"] = 1e-3
    good.learn(100, reset_num_timesteps=False)
    return said


@case(PREFERENCES, "a labeller that never answers", "the learner as it was, its questions still open")
def _() -> str:
    learner = DRLHF(GRID, A2C, config=replace(ASKED, patience=0.1), labeller=Silent())
    said = error(lambda: learner.learn(500))
    assert len(learner.pending) == 6
    return said


@case(PREFERENCES, "a labeller that answers what nobody asked", "")
def _() -> str:
    return error(lambda: DRLHF(GRID, A2C, config=ASKED, labeller=Confused()).learn(500))


@case(PREFERENCES, "a program that answers with another word", "")
def _() -> str:
    labeller = ProgramLabeller(lambda _: "both")  # type: ignore[arg-type, return-value]

    def ask() -> None:
        labeller.ask([Query(0, Pair(segment(), segment()))])
        labeller.answers()

    return error(ask)


@case(PREFERENCES, "more questions than the labelling budget has left", "none of them is asked")
def _() -> str:
    labeller = TrueReturnLabeller(budget=1)
    said = error(lambda: labeller.ask([Query(i, Pair(segment(), segment())) for i in range(2)]))
    assert (labeller.remaining, labeller.answers()) == (1, [])
    return said


@case(PREFERENCES, "a page for a file that is not there", "no file")
def _() -> str:
    said = command("nowhere.prefs", "--no-browser", run=page_main)
    assert not Path("nowhere.prefs").exists()
    return said


# --- files ------------------------------------------------------------------------------------------------------------

FILES = "Files and disks"


def leader_file() -> tuple[TabularPBRL, Path]:
    leader = TabularPBRL(TWO).learn(3)
    return leader, leader.save("leader.zip")


@case(FILES, "a disk that is full when a leader is saved", "the file that was there, whole; no half-written one")
def _() -> str:
    leader, path = leader_file()
    before = path.read_bytes()
    with full_disk():
        said = error(lambda: leader.learn(5).save(path))
    assert path.read_bytes() == before
    assert [entry.name for entry in Path().iterdir()] == ["leader.zip"]
    return said


@case(FILES, "a disk that is full at a checkpoint on the way", "the checkpoint before; learning goes on")
def _() -> str:
    def fill(leader: Any) -> None:
        limit = 2048 if leader.iteration >= 6 else held[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, held[1]))

    leader, held = TabularPBRL(TWO), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        said = warned(lambda: leader.learn(10, [fill, Checkpoint("leader.zip", every=4)]), "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)
    assert leader.iteration == 10
    assert TabularPBRL.load("leader.zip").iteration == 4
    return said


@case(FILES, "a folder that is read-only", "refused before learning begins")
def _() -> str:
    return error(lambda: Checkpoint("/proc/leader.zip"))


@case(FILES, "a folder for runs that is read-only", "refused before learning begins")
def _() -> str:
    return refused("train", "--env", "TwoState-v0", "--leader", "TabularPBRL", "-n", "9", "-f", "/proc/runs")


@case(FILES, "a leader file that was half written or cut short", "the file as it was")
def _() -> str:
    _, path = leader_file()
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    said = error(lambda: TabularPBRL.load(path))
    assert path.read_bytes() == half
    return said


@case(FILES, "a leader file with a changed byte", "")
def _() -> str:
    _, path = leader_file()
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("leader.json").header_offset + 60
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    return error(lambda: TabularPBRL.load(path))


def renamed(source: dict[str, Any]) -> Path:
    """A leader file with another source of its environment."""
    _, path = leader_file()
    entries = parts(path.read_bytes())
    header = json.loads(entries["leader.json"]) | {"source": source}
    path.write_bytes(packed(entries | {"leader.json": json.dumps(header).encode()}))
    return path


@case(FILES, "a stranger's leader file, whose environment would import a module", "the module is not imported")
def _() -> str:
    Path("helpers.py").write_text("raise SystemExit('it ran')")
    path = renamed({"env_id": "bilevel_gym/UnderLeader-v0", "env_kwargs": {"dict": {"env_id": "helpers:TwoState-v0"}}})
    with mock.patch.object(sys, "path", [str(Path().resolve()), *sys.path]):
        return error(lambda: TabularPBRL.load(path))


@case(FILES, "a small leader file that unfolds into a large one", "nothing is read")
def _() -> str:
    _, path = leader_file()
    entries = parts(path.read_bytes())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("leader.json", entries["leader.json"] + b" " * 10**8)
    assert path.stat().st_size < 2 * 10**5
    return error(lambda: TabularPBRL.load(path))


@case(FILES, "a leader file of version 0.1", "")
def _() -> str:
    path = shutil.copy(Path(__file__).parent / "data" / "tabular_pbrl_0.1.zip", "leader.zip")
    return error(lambda: TabularPBRL.load(path))


@case(FILES, "no file", "")
def _() -> str:
    return error(lambda: TabularPBRL.load("nowhere.zip"))


@case(FILES, "the file of another kind of leader", "")
def _() -> str:
    return error(lambda: Hypergradient.load(leader_file()[1]))


@case(FILES, "the file of a leader of another problem", "")
def _() -> str:
    return error(lambda: TabularPBRL.load(leader_file()[1], TwoStateProblem(gamma=0.8)))


def sampled_file(follower: Any = A2C) -> Path:
    config = PBRLConfig(n_envs=2, follower_steps=8, warmup_steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PBRL(TWO, follower, config=config).save("leader.zip")


@case(FILES, "a leader whose follower was a callable, read without it", "")
def _() -> str:
    path = sampled_file(lambda venv: A2C("MlpPolicy", venv, gamma=0.9, device="cpu"))
    return error(lambda: PBRL.load(path))


@case(FILES, "a leader read with another follower than it had", "")
def _() -> str:
    return error(lambda: PBRL.load(sampled_file(), follower=DQN))


@case(FILES, "a follower's file, which holds pickles, without the word that it is trusted", "nothing is read")
def _() -> str:
    folder = write_model_card(PBRL.load(sampled_file()), "card")
    return error(lambda: load_follower(folder / "followers" / "best_response.zip", A2C))


@case(FILES, "a file in the place of a folder", "the file as it was")
def _() -> str:
    Path("card").write_text("mine")
    said = error(lambda: write_model_card(TabularPBRL(TWO), "card"))
    assert Path("card").read_text() == "mine"
    return said


# --- the command line -------------------------------------------------------------------------------------------------

SHELL = "The command line"
TRAIN = ("train", "--env", "TwoState-v0", "--leader", "TabularPBRL", "-n", "9")
LEARNED = ("train", "--env", "TwoState-v0", "--follower", "A2C", "-n", "9")
NOTHING = "nothing was run"
WORDS: list[tuple[str, tuple[str, ...]]] = [
    ("no environment", ("train",)),
    ("an unknown environment", ("train", "--env", "TowState-v0")),
    ("a module that is not there", ("train", "--env", "nothing_here:world")),
    ("an unknown leader", ("train", "--env", "TwoState-v0", "--leader", "PBLR", "-n", "9")),
    ("an unknown follower", ("train", "--env", "TwoState-v0", "--follower", "PPP", "-n", "9")),
    ("a follower for a leader that solves its own", (*TRAIN, "--follower", "PPO")),
    ("an argument that the environment does not have", (*TRAIN, "--env-kwargs", "price:1")),
    ("an argument that the leader does not have", (*TRAIN, "--leader-kwargs", "lr:1")),
    ("a value that the leader refuses", (*TRAIN, "--leader-kwargs", "learning_rate:-1")),
    ("an argument that the follower does not have", (*LEARNED, "--follower-kwargs", "n_step:3")),
    ("a follower that cannot act in the environment", ("train", "--env", "LQStackelberg-v0", "--follower", "DQN", "-n", "9")),
    ("an option without its words", (*TRAIN, "--env-kwargs")),
    ("a word without a value", (*TRAIN, "--env-kwargs", "price")),
    ("a number of steps that is none", (*TRAIN[:-1], "many")),
    ("an unknown option", (*TRAIN, "--lr", "0.1")),
    ("an unknown command", ("trian",)),
    ("a file of settings that is not there", ("train", "--conf-file", "none.yml")),
    ("a run that is not there, to be resumed", ("train", "--resume", "nowhere")),
    ("other settings for a run that is resumed", ("train", "--resume", "nowhere", "--seed", "1")),
    ("a run that is not there, to be evaluated", ("evaluate", "nowhere")),
    ("a run that is not there, to be drawn", ("plot", "nowhere")),
    ("a picture in an unknown format", ("record", "nowhere", "-o", "follower.avi")),
    ("a sweep of nothing", ("sweep",)),
    ("a grid of another form", ("sweep", *TRAIN[1:], "--grid", "learning_rate:1,2")),
]  # fmt: skip
for what, words in WORDS:
    CASES.append(Case(SHELL, what, NOTHING, lambda words=words: refused(*words)))  # type: ignore[misc]


@case(SHELL, "a file of settings that is no YAML", NOTHING)
def _() -> str:
    Path("mine.yml").write_text("env: [")
    return refused("train", "--conf-file", "mine.yml")


@case(SHELL, "a run without a checkpoint", "its settings")
def _() -> str:
    assert command_of_a_run() == "runs/TabularPBRL/TwoState-v0_1"
    run = Path("runs/TabularPBRL/TwoState-v0_1")
    (run / "leader.zip").unlink()
    said = command("evaluate", str(run))
    assert (run / "settings.yml").is_file()
    return said


def command_of_a_run() -> str:
    """Train a leader; its folder."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        main(TRAIN)
    return next(word for word in err.getvalue().split() if word.startswith("runs/"))


@case(SHELL, "a sweep in which one run of two cannot be built", "exit code 1; the other run's result")
def _() -> str:
    words = ("sweep", *TRAIN[1:], "--grid", "leader.learning_rate:0.1,-1", "--backend", "serial")
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        ended = exit_code(words)
    assert ended == 1
    assert len(list(Path("runs").rglob("result.json"))) == 1
    (line,) = (line for line in err.getvalue().splitlines() if " failed: " in line)
    return re.sub(r"\b[0-9a-f]{10,}\b", "HASH", line)


@case(SHELL, "a run that breaks off", "exit code 1")
def _() -> str:
    with mock.patch.object(TabularPBRLMethod, "descend", side_effect=ZeroDivisionError("division by zero")):
        return command(*TRAIN, code=1)


# --- libraries that are not there -------------------------------------------------------------------------------------

LIBRARIES = "Libraries that are not installed"


@case(LIBRARIES, "`--track` without wandb", NOTHING)
def _() -> str:
    with without("wandb"):
        return refused(*TRAIN, "--track")


@case(LIBRARIES, "`--tensorboard-log` without TensorBoard", NOTHING)
def _() -> str:
    with without("tensorboard"):
        return refused(*TRAIN, "--tensorboard-log", "tb")


@case(LIBRARIES, "`plot` without matplotlib", "no picture")
def _() -> str:
    command_of_a_run()
    with without("matplotlib"):
        said = command("plot", "runs")
    assert not Path("curves.png").exists()
    return said


@case(LIBRARIES, "`record` without Pillow", "no picture")
def _() -> str:
    run = command_of_a_run()
    with without("PIL"):
        said = command("record", run)
    assert not Path(run, "follower.gif").exists()
    return said


@case(LIBRARIES, "`sweep --search` without Optuna", NOTHING)
def _() -> str:
    with without("optuna"):
        return refused("sweep", *TRAIN[1:], "--search", "2", "--space", "leader.learning_rate:log(0.01, 1)")


@case(LIBRARIES, "`sweep --backend ray` without Ray", NOTHING)
def _() -> str:
    with without("ray"):
        return refused("sweep", *TRAIN[1:], "--backend", "ray")


@case(LIBRARIES, "pushing a card without huggingface_hub", "nothing is sent")
def _() -> str:
    write_model_card(TabularPBRL(TWO), "card")
    with without("huggingface_hub"):
        return error(lambda: push_to_hub("card", "user/name"))


@case(LIBRARIES, "CMA-ES without pycma", "")
def _() -> str:
    with without("cma"):
        return error(lambda: CMAES(TWO, A2C))


@case(LIBRARIES, "Optuna's search without Optuna", "")
def _() -> str:
    with without("optuna"):
        return error(lambda: OptunaSearch(TWO, A2C))


# --- arguments --------------------------------------------------------------------------------------------------------

ARGUMENTS = "Arguments in Python"
HALF = torch.full((2, 2, 2), 0.5)


@case(ARGUMENTS, "an unknown environment", "")
def _() -> str:
    return error(lambda: PBRL("bilevel_gym/TowState-v0", PPO))


@case(ARGUMENTS, "an environment without a leader", "")
def _() -> str:
    return error(lambda: PBRL("CartPole-v1", PPO))


@case(ARGUMENTS, "probabilities that do not sum to one", "")
def _() -> str:
    return error(lambda: TabularMDP(P=HALF * 1.1, r=torch.eye(2), rho=torch.tensor([0.5, 0.5]), gamma=0.9))


@case(ARGUMENTS, "a discount of one", "")
def _() -> str:
    return error(lambda: TabularMDP(P=HALF, r=torch.eye(2), rho=torch.tensor([0.5, 0.5]), gamma=1.0))


@case(ARGUMENTS, "rewards of another shape than the transitions", "")
def _() -> str:
    return error(lambda: TabularMDP(P=HALF, r=torch.ones(2, 3), rho=torch.tensor([0.5, 0.5]), gamma=0.9))


@case(ARGUMENTS, "an x outside the leader's set", "the environment as it was")
def _() -> str:
    env: Any = gym.make(TWO).unwrapped
    before = env.leader_x.copy()
    said = error(lambda: env.set_leader([99.0]))
    assert (env.leader_x == before).all()
    return said


@case(ARGUMENTS, "an x that is not a number", "the environment as it was")
def _() -> str:
    env: Any = gym.make(TWO).unwrapped
    before = env.leader_x.copy()
    said = error(lambda: env.set_leader([np.nan]))
    assert (env.leader_x == before).all()
    return said


@case(ARGUMENTS, "a negative learning rate", "")
def _() -> str:
    return error(lambda: TabularPBRLConfig(learning_rate=-0.1))


@case(ARGUMENTS, "a penalty's coefficient of zero", "")
def _() -> str:
    return error(lambda: ValuePenalty(lam=0.0))


@case(ARGUMENTS, "a follower with another discount than the environment's", "")
def _() -> str:
    return error(lambda: PBRL(TWO, lambda venv: A2C("MlpPolicy", venv, gamma=0.5, device="cpu")))


@case(ARGUMENTS, "a follower that is no SB3 model", "")
def _() -> str:
    return error(lambda: PBRL(TWO, lambda venv: None))  # type: ignore[arg-type, return-value]


@case(ARGUMENTS, "a follower that cannot act in the environment", "")
def _() -> str:
    return error(lambda: PBRL("bilevel_gym/LQStackelberg-v0", DQN))


@case(ARGUMENTS, "a callback that is none", "")
def _() -> str:
    return error(lambda: TabularPBRL(TWO).learn(3, "leader.zip"))


# --- the tables -------------------------------------------------------------------------------------------------------


def said(one: Case) -> str:
    """What is said of an input that is made in an empty folder; the middle of what is long left out."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # contextlib.chdir is not in Python 3.10
        try:
            text = " ".join(one.make().split())
        finally:
            os.chdir(here)
    if "expected one of " in text and one.group == SHELL:  # what there is depends on what is installed
        text = re.sub(r"expected one of ([^,]+), .*?(, got |$)", r"expected one of \1, ...\2", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ..."


def tables() -> str:
    """A table a group."""
    parts = []
    for group in dict.fromkeys(one.group for one in CASES):
        rows = ["| input | what is said | what is left |", "|---|---|---|"]
        for one in CASES:
            if one.group == group:
                text = said(one).replace("|", "¦").replace("`", "'")
                rows.append(f"| {one.what} | `{text}` | {one.left or 'all as it was'} |")
        parts.append("\n".join([f"### {group}", "", *rows]))
    return "\n\n".join(parts)


def on_the_page() -> str:
    """The tables as the page has them."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
