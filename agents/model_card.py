"""Write a leader as a model folder for the Hugging Face Hub; nothing is uploaded unless you ask.

The folder holds

    README.md              the model card: metadata in YAML, the record, and how to load the files
    leader.zip             for ``PBRL.load``
    followers/NAME.zip     plain SB3 models; with a VecNormalize also NAME/vecnormalize.pkl
    followers/world.json   their environment, for ``UnderLeader-v0``
    evaluation.json        the record of x at the best response
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import yaml

from ..envs.mdp.checks import require
from .files import write_whole
from .followers.sb3 import statistics_beside

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

ZOO_NAME = "bilevel_gym-UnderLeader-v0"
"""Id of the environment ``UnderLeader-v0`` as rl_zoo3 writes it in paths."""
_SOURCE = "https://arxiv.org/abs/2402.06886"
_CODE = "```python\n{}\n```"
_WARNING = """\
The followers are plain Stable-Baselines3 models. Like all of its files they hold pickled settings, and loading one can run code:
load them only if you trust the source. `leader.zip` runs no code."""


def followers_of(leader: Any) -> dict[str, Any]:
    """Return a leader's trained followers by name; empty where it solves for its follower or trains a new one."""
    held = getattr(leader.state, "followers", None)
    return {name: getattr(one, "follower", one) for name, one in held.items()} if isinstance(held, dict) else {}


def _one_follower(leader: Any) -> bool:
    """Whether the followers' environment can be described by a single one."""
    return hasattr(leader, "follower_env") and hasattr(leader.worlds, "alone")


def _world(leader: Any) -> dict[str, Any] | None:
    """Return the followers' environment under x, for ``UnderLeader-v0``; None for a game, a learned reward or no id."""
    if not _one_follower(leader) or leader.worlds.source.env_id is None:
        return None
    worlds, source = leader.worlds, leader.worlds.source
    return {
        "env_id": source.env_id,
        "env_kwargs": source.env_kwargs,
        "x": leader.x.tolist(),
        "observe_commitment": worlds.observe_commitment,
    }


def write_model_card(leader: Any, folder: str | Path, name: str | None = None) -> Path:
    """Write a folder with a leader, its followers and a model card.

    Args:
        leader: any leader of this library.
        folder: the folder, created if needed; its files of these names are replaced, each atomically.
        name: name of the model; None joins those of the leader, the follower and the environment.

    Returns:
        The folder.

    Raises:
        ValueError: ``leader`` is no leader, or ``folder`` is a file.
        OSError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> from bilevel_gym.agents import TabularPBRL
        >>> from bilevel_gym.agents.model_card import write_model_card
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = write_model_card(TabularPBRL("bilevel_gym/TwoState-v0").learn(10), folder)
        ...     sorted(path.name for path in made.iterdir())
        ['README.md', 'evaluation.json', 'leader.zip']
    """
    require(hasattr(leader, "evaluate") and hasattr(leader, "save"), "leader", "a leader of this library", repr(leader))
    folder = Path(folder)
    require(not folder.is_file(), "folder", "a folder", f"the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    record = leader.evaluate().as_dict()
    leader.save(folder / "leader.zip")
    followers = followers_of(leader)
    for role, follower in followers.items():
        (folder / "followers").mkdir(exist_ok=True)
        follower.save(folder / "followers" / f"{role}.zip")
    world = _world(leader)
    if followers and world is not None:
        _write(folder / "followers" / "world.json", json.dumps(world) + "\n")
    _write(folder / "evaluation.json", json.dumps(record, indent=1) + "\n")
    _write(folder / "README.md", _card(leader, record, followers, name))
    return folder


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))  # type: ignore[arg-type]


def _card(leader: Any, record: dict[str, Any], followers: dict[str, Any], name: str | None) -> str:
    method, worlds = type(leader).__name__, getattr(leader, "worlds", leader)
    env = str(getattr(leader, "source", worlds.source).env_id or "an environment that was given as an object")
    algorithms = list(dict.fromkeys(type(f.model).__name__ for f in followers.values()))
    title = name or "-".join([method, *algorithms, env.removeprefix("bilevel_gym/").replace(" ", "-")])
    # The leader's headline figure: its kind, value and standard error.
    kind, measure = "leader_return", "leader's return at the follower's best response"
    if kind not in record:
        kind, measure = "true_return", "true return of the follower of the learned reward"
    value, stderr = record[kind], record[f"{kind}_stderr"]
    solver = ["stable-baselines3"] if followers else []
    metric = {"type": "mean_reward", "name": measure, "value": f"{value:.4g} +/- {stderr:.2g}", "verified": False}
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"type": env, "name": env},
        "metrics": [metric],
    }
    metadata = {
        "library_name": "bilevel-gym",
        "tags": ["reinforcement-learning", "bilevel-optimization", *solver, method, *algorithms, env],
        "model-index": [{"name": title, "results": [result]}],
    }
    by = f", with {' and '.join(algorithms)} of Stable-Baselines3 as the follower" if algorithms else ""
    shown = {key: f"{item:.6g}" if isinstance(item, float) else item for key, item in record.items()}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        f"A leader trained by `{method}` on `{env}`{by}.",
        f"The {measure}: **{value:.4g}**.",
        "\n".join(["| record | |", "| --- | ---: |", *(f"| {k} | {v} |" for k, v in shown.items() if v is not None)]),
        "## Use",
        _CODE.format(
            f'from bilevel_gym.agents import {method}\n\nleader = {method}.load("leader.zip")\nprint(leader.evaluate())'
        ),
    ]
    if followers:
        role, algorithm = next((role, type(follower.model)) for role, follower in followers.items())
        package, own = algorithm.__module__.split(".")[0], algorithm.__name__
        file, one, load = f"followers/{role}.zip", _one_follower(leader), f"from {package} import {own}\n"
        if followers[role].model.get_vec_normalize_env() is None:
            world = "leader.follower_env()" if one else "None"
            load += f'\nmodel = {own}.load("{file}", env={world})'
        else:  # its statistics are in a separate pickle
            world = "leader.follower_env()" if one else "leader.get_env()"
            load += "from bilevel_gym.agents.model_card import load_follower\n\n"
            load += f'model = load_follower("{file}", {own}, env={world}, trust_pickle=True)'
        parts += [_WARNING, _CODE.format(load)]
    source = f"The penalty method is that of Shen, Yang and Chen, {_SOURCE}"
    return "\n\n".join([*parts, f"{source}; for the other methods see the library's documentation."]) + "\n"


def write_zoo_folder(leader: Any, folder: str | Path) -> Path:
    """Write a leader's follower as a trained agent of rl-baselines3-zoo; its ``enjoy`` script plays it under x.

        python -m rl_zoo3.enjoy --algo a2c --env bilevel_gym/UnderLeader-v0 -f FOLDER --gym-packages bilevel_gym

    Args:
        leader: a leader whose environment was given as an id.
        folder: the folder, created if needed; the agent is written below it, under its algorithm's name.

    Returns:
        The agent's folder.

    Raises:
        ValueError: the leader has no such follower, or rl_zoo3 does not have its algorithm.
    """
    world, expected = _world(leader), "one with a follower and an environment given as an id"
    require(world is not None, "leader", expected, type(leader).__name__)
    algorithm = type(leader.follower.model).__name__
    known = algorithm == "RecurrentPPO" or algorithm.isupper() or algorithm == "CrossQ"
    require(known, "leader", "a follower of an algorithm that rl_zoo3 has", algorithm)
    name = "ppo_lstm" if algorithm == "RecurrentPPO" else algorithm.lower()
    agent = Path(folder) / name / f"{ZOO_NAME}_1"
    (agent / ZOO_NAME).mkdir(parents=True, exist_ok=True)
    leader.follower.save(agent / f"{ZOO_NAME}.zip")
    scaled = leader.follower.model.get_vec_normalize_env() is not None
    config = [["normalize", True]] if scaled else []
    for file, pairs in (("config.yml", config), ("args.yml", [["env_kwargs", world]])):
        # what rl_zoo3 reads with yaml.UnsafeLoader: an OrderedDict
        text = yaml.safe_dump([pairs], default_flow_style=True, width=10**9)
        _write(agent / ZOO_NAME / file, f"!!python/object/apply:collections.OrderedDict {text}")
    return agent


def load_follower(path: str | Path, algorithm: type[BaseAlgorithm], env: Any = None, trust_pickle: bool = False) -> Any:
    """Load a follower from a file by :func:`write_model_card` or by SB3, if you trust it.

    Args:
        path: the file.
        algorithm: SB3's class, e.g. ``PPO``.
        env: an environment or a VecEnv for the model. None takes the environment that ``world.json`` beside the file describes,
            if any. A follower trained with a VecNormalize gets it wrapped in one with the saved statistics, as
            ``model.get_env()``; pass the model that one's observations. It does not update statistics or scale rewards.
        trust_pickle: must be True. SB3 stores a model's settings as pickles, and loading one runs any code that its author put
            there. (A leader file holds no pickles and needs no such flag.)

    Returns:
        The SB3 model.

    Raises:
        ValueError: ``trust_pickle`` is not True (nothing is read then); or there is no ``env`` for a follower whose
            observations were scaled.
        FileNotFoundError: the file does not exist.
    """
    why = "True if you trust the file, since SB3's files hold pickles, and loading one runs the code in it"
    require(trust_pickle is True, "trust_pickle", why, repr(trust_pickle))
    path = Path(path)
    world = path.parent / "world.json"
    if env is None and world.is_file():
        env = gym.make("bilevel_gym/UnderLeader-v0", world=str(world))
    statistics = statistics_beside(path)
    if statistics.is_file():
        from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

        require(env is not None, "env", f"the follower's environment, since {statistics} scales its observations", None)
        made = env
        env = VecNormalize.load(str(statistics), made if isinstance(made, VecEnv) else DummyVecEnv([lambda: made]))
        env.training = env.norm_reward = False
    return algorithm.load(path, env=env, device="cpu")


def push_to_hub(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload a folder that :func:`write_model_card` wrote to the Hugging Face Hub.

    Args:
        folder: the folder.
        repo_id: ``user/name``; created if it does not exist.
        private: whether a new repository is private. Default: False.
        token: access token; None uses that of ``hf auth login``.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: the folder has no card.
        ImportError: huggingface_hub is not installed.
    """
    folder = Path(folder)
    require((folder / "README.md").is_file(), "folder", "one that write_model_card wrote", repr(str(folder)))
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError('uploading to the Hub needs huggingface_hub: pip install "bilevel-gym[hub]"') from error
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(folder_path=str(folder), repo_id=repo_id, commit_message="A leader of bilevel-gym"))
