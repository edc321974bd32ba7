"""Ask a person which of two segments of CartPole is better, and fit a reward to the answers.

python examples/label_cart_pole.py [FILE]

The first call records segments, asks and says how to open the page; the second one reads the answers.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv

from bilevel_gym.agents.preferences.files import FileLabeller, Signature
from bilevel_gym.agents.preferences.fragmenters import RandomFragmenter
from bilevel_gym.agents.preferences.labels import PreferenceBuffer, Query
from bilevel_gym.agents.preferences.reward_model import MLPReward, RewardModel
from bilevel_gym.agents.preferences.training import FitConfig, RewardTrainer
from bilevel_gym.wrappers import SegmentRecorder

LENGTH, QUERIES = 40, 20


class SmallPictures(gym.Wrapper[Any, Any, Any, Any]):
    """Renders pictures with half the height and width, which take a quarter of the file size."""

    def render(self) -> NDArray[np.uint8]:
        """The picture with each square of four pixels averaged."""
        picture: Any = self.env.render()
        height, width, colours = picture.shape
        return np.asarray(picture.reshape(height // 2, 2, width // 2, 2, colours).mean((1, 3)), np.uint8)


def play(venv: SegmentRecorder, steps: int, rng: np.random.Generator) -> None:
    """A follower that pushes at random in 70% of the steps, and otherwise towards where the pole falls."""
    obs: Any = venv.reset()
    for _ in range(steps):
        fair = rng.random(venv.num_envs) < 0.7
        obs, _, _, _ = venv.step(np.where(fair, rng.integers(0, 2, venv.num_envs), obs[:, 2] + 0.5 * obs[:, 3] > 0))


def main(path: Path) -> None:
    """Ask questions if none were asked yet; otherwise read the answers."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    env = DummyVecEnv([lambda: SmallPictures(gym.make("CartPole-v1", render_mode="rgb_array"))] * 2)
    env.seed(0)
    venv = SegmentRecorder(env, LENGTH, capacity=150, pictures=True)
    model = RewardModel([MLPReward(venv.observation_space, venv.action_space) for _ in range(3)], device="cpu")

    signature = Signature.of("CartPole-v1", venv.observation_space, venv.action_space, LENGTH)
    labeller = FileLabeller(path, signature)  # asks and reads in this file
    labelled, pending = labeller.earlier()
    if not labelled and not pending:
        play(venv, 150, rng)
        pairs = RandomFragmenter().pairs(venv, model, QUERIES, 0, rng)
        labeller.ask([Query(labeller.first_id + i, pair) for i, pair in enumerate(pairs)])
        print(
            f"{len(pairs)} questions are in {path}. Answer them on the page that this opens, then run this once more:"
        )
        print(f"    python -m bilevel_gym.agents.preferences.page {path}")
        return

    buffer = PreferenceBuffer()  # a trainer that runs on would add what labeller.answers() brings from time to time
    for pair, label in labelled:
        buffer.add(pair, label)
    print(f"{len(labelled)} answers, {buffer.skipped} of them skipped; {len(pending)} questions are open.")
    if len(buffer):
        model.fit_inputs(np.concatenate([s.obs[s.mask] for p in buffer for s in (p.pair.left, p.pair.right)]))
        fit = RewardTrainer(model, FitConfig()).fit(buffer, epochs=100)
        print(
            f"A reward fitted to them: cross entropy {fit.cross_entropy:.3f}, agrees with {fit.accuracy:.0%} of them."
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "cart_pole.prefs"))
