"""The record of a world: its spaces, its rewards, its real twin. Saved in world.json."""

from typing import Annotated, Literal

import numpy as np
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field, model_validator

Side = Annotated[int, Field(ge=1, le=4096)]  # pixels
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DiscreteActions(_Strict):
    """A finite set of named actions; index 0 is NOOP."""

    kind: Literal["discrete"] = "discrete"
    meanings: tuple[str, ...] = Field(min_length=1)
    source_actions: tuple[int, ...]  # what each index is called in the real game
    keys: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # meaning -> keys held together
    sticky_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()  # how often a script picks each; empty: uniform

    @model_validator(mode="after")
    def _lists_agree(self) -> "DiscreteActions":
        num = len(self.meanings)
        if len(self.source_actions) != num or len(self.sticky_weights) not in (0, num):
            raise ValueError(
                f"{num} meanings need as many source_actions (got {len(self.source_actions)})"
                f" and as many sticky_weights or none (got {len(self.sticky_weights)})"
            )
        if self.sticky_weights and not sum(self.sticky_weights):
            raise ValueError("sticky_weights are all 0; leave them out for a uniform choice")
        if unknown := set(self.keys) - set(self.meanings):
            raise ValueError(f"keys for actions that do not exist: {sorted(unknown)}")
        return self

    @property
    def dim(self) -> int:
        return len(self.meanings)

    def space(self) -> spaces.Space:
        return spaces.Discrete(len(self.meanings))


class ContinuousActions(_Strict):
    """A box of real-valued actions."""

    kind: Literal["continuous"] = "continuous"
    meanings: tuple[str, ...] = Field(min_length=1)
    low: tuple[float, ...]
    high: tuple[float, ...]
    sticky_rest: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()  # share of a random player's draws that leave
    # each value at rest, which is the one nearest to 0; empty: none

    @model_validator(mode="after")
    def _bounds_agree(self) -> "ContinuousActions":
        if not len(self.meanings) == len(self.low) == len(self.high):
            raise ValueError(f"{len(self.meanings)} meanings, {len(self.low)} low and {len(self.high)} high bounds")
        if len(self.sticky_rest) not in (0, self.dim):
            raise ValueError(f"{self.dim} values need as many of sticky_rest or none, got {len(self.sticky_rest)}")
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("every low bound must be below its high bound")
        return self

    @property
    def dim(self) -> int:
        return len(self.low)

    def space(self) -> spaces.Space:
        return spaces.Box(np.array(self.low, np.float32), np.array(self.high, np.float32), dtype=np.float32)


class RealSource(_Strict):
    """Where the real game comes from: `library:ID`, its options, and the levels of each split."""

    source: str  # "envpool:CoinrunEasy-v0", "gymnasium:CarRacing-v3", "pettingzoo:atari/pong_v3"
    options: dict[str, float | int | str | bool] = Field(default_factory=dict)
    shrink: Literal["mean", "brightest"] = "mean"  # what a pixel of a smaller frame shows of the area that it covers
    splits: dict[str, dict[str, int]] = Field(default_factory=dict)  # "train" / "validation" / "test" -> more options


class WorldSpec(_Strict):
    """Everything about a world but its weights.

    `reward_values` are the values the game gives (the reward head is categorical over them); where the game gives more,
    each is taken for the nearest of these, and the one nearest to 0 counts as no event.
    `termination_threshold` turns the model's end probability into a decision, set on validation levels. With
    `draw_ends` an episode ends with that probability instead, as long as dreams have a temperature: what may kill a
    player does so as often as it should, also where the picture does not tell. For a head of ends that was taught on
    play as it comes (`event_share = 0`).
    `points_to_win` ends an episode too, once a player has earned so many rewards above 0 in it: in a game to 21 points
    no picture needs to tell the score.
    """

    id: str
    description: str
    frame_size: tuple[Side, Side] = (64, 64)  # height, width
    players: tuple[str, ...] = Field(default=("player_0",), min_length=1, max_length=64)
    actions: DiscreteActions | ContinuousActions = Field(discriminator="kind")
    reward_values: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    max_episode_steps: Count = 1000
    points_to_win: Count | None = None
    render_fps: Count = 15
    real: RealSource
    termination_threshold: float = Field(default=0.5, ge=0, le=1)
    draw_ends: bool = False
    temperature: float = Field(default=0.0, ge=0)  # of the tokens, or of what is drawn ahead; 0 takes the likeliest
    script: Literal["pong_paddles", "racing_road"] | None = None  # a rule that plays by the picture: `lwm_env.scripts`

    def draws_ends(self, temperature: float) -> bool:
        """Whether dreams at this temperature end by chance, or where the end probability reaches the threshold."""
        return self.draw_ends and temperature > 0

    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, 255, (*self.frame_size, 3), np.uint8)

    def action_space(self) -> spaces.Space:
        return self.actions.space()
