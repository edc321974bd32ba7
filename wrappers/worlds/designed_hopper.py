"""MuJoCo's Hopper, with a leader that designs its body."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import Attribute, DrawnAttribute

_TORSO = 1  # body 0 is the world


def set_torso_mass(env: Any, kilograms: float) -> None:
    """Set the torso's mass, and MuJoCo's constants that depend on it."""
    import mujoco

    env.model.body_mass[_TORSO] = kilograms
    mujoco.mj_setConst(env.model, env.data)


def set_gear(env: Any, newton_metres: float) -> None:
    """Set the torque that the three motors have at action 1."""
    env.model.actuator_gear[:, 0] = newton_metres


class DesignedHopperEnv(DrawnAttribute):
    """A leader designs the body (torso mass and motor torque) with which a follower learns to hop.

    ## Description
    At the start of each episode both are drawn from Gaussians whose means the leader chooses; the follower hops with this body.
    The simulator is not differentiated: x's gradient comes from log p_x of the drawn body, once per episode.

    ## Action Space
    ``Box(-1, 1, (3,), float32)``: torques of thigh, leg and foot, as shares of the motors' torque.

    ## Observation Space
    ``Box(-inf, inf, (11,), float64)``: Hopper's.

    ## Leader Space
    ``Box([1, 100], [6, 300], (2,), float64)``: means of the torso's mass (kg, initially 3.5; Hopper's own is 3.67) and of the
    torque (N m, 200). ``commitment(s)`` is x, followed by the drawn body if ``show_draw`` is True;
    ``info["leader_draw"]`` is (r, r_l, 1 in an episode's first step, the body before it is clipped).

    ## Rewards
    The follower's and the leader's: Hopper's: for speed and for standing, minus a cost of torque.

    ## Starting State
    Hopper's: upright, with small noise that does not depend on the body.

    ## Episode End
    Terminates where Hopper falls; the registered environment truncates after 1000 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players, in [0, 1) (0.99).
    - ``relative_std``: standard deviations as shares of the initial means, positive (0.05).
    - ``show_draw``: whether the follower sees the drawn body (False).
    - ``render_mode``: Hopper's own (extra ``mujoco``).

    ## Version History
    - v0: first version.

    ## References
    ``gymnasium`` (``Hopper-v5``), MuJoCo (Todorov, Erez and Tassa, 2012); the leader is this library's own. Needs the extra
    ``mujoco``: ``pip install 'bilevel-gym[mujoco]'``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # type: ignore[misc]

    def __init__(
        self, gamma: float = 0.99, relative_std: float = 0.05, show_draw: bool = False, render_mode: str | None = None
    ) -> None:
        try:
            import mujoco  # noqa: F401
        except ImportError as error:
            raise ImportError("DesignedHopper needs MuJoCo: pip install 'bilevel-gym[mujoco]'") from error
        from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

        body = [
            Attribute("torso_mass", 1.0, 6.0, 3.5 * relative_std, limits=(0.5, 10.0), setter=set_torso_mass),
            Attribute("gear", 100.0, 300.0, 200.0 * relative_std, limits=(1.0, 1000.0), setter=set_gear),
        ]
        super().__init__(HopperEnv(render_mode=render_mode), body, gamma, show_draw)
