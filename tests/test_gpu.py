"""What only a CUDA device shows: stepping, masked resets, the same bytes twice, and training in bfloat16."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lwm_env.engine import Engine
from lwm_env.world_model import WorldModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch"),
]
GAME = "LwmTest/Noise-v0"
NUM_ENVS = 3


class Noise(gym.Env):
    """Coloured noise that moves to the left."""

    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wall, self.x = self.np_random.integers(0, 256, (16, 64, 3), np.uint8), 0
        return self.wall[:, :16].copy(), {}

    def step(self, action):
        self.x += action
        return self.wall[:, self.x : self.x + 16].copy(), 0.0, self.x > 40, False, {}


@pytest.fixture(scope="module")
def model(tiny_world) -> WorldModel:
    return WorldModel.load(tiny_world, "cuda")


def everything(engine: Engine, num_steps: int) -> bytes:
    """All bytes that some steps give."""
    seen = [engine.reset(np.ones(NUM_ENVS, bool), list(range(NUM_ENVS))).cpu().numpy().tobytes()]
    for step in range(num_steps):
        actions = (torch.arange(NUM_ENVS)[:, None] + step) % 3
        seen += [tensor.cpu().numpy().tobytes() for tensor in engine.step(actions)]
    return b"".join(seen)


def test_a_world_steps_on_the_device(model):
    engine = Engine(model, NUM_ENVS)
    engine.reset(np.ones(NUM_ENVS, bool), [0, 1, 2])

    result = engine.step(torch.ones(NUM_ENVS, 1, dtype=torch.int64))

    assert {tensor.device.type for tensor in result} == {"cuda"}
    assert result.frames.shape == (NUM_ENVS, 16, 16, 3) and not result.failed.any()


def test_it_dreams_what_the_cpu_dreams_but_for_rounding(model, tiny_world):
    """One step: later ones differ, since a token that is almost a tie may fall to the other side."""
    cpu = WorldModel.load(tiny_world)
    prompt, action = (cpu.prompts.frames, cpu.prompts.actions), torch.tensor([[0], [1], [2], [0]])

    _, expected = cpu.step(cpu.start(*prompt), action)
    _, found = model.step(model.start(*(part.cuda() for part in prompt)), action.cuda())

    assert torch.allclose(found.reward_probs.cpu(), expected.reward_probs, atol=0.05)
    assert (found.frame.cpu().int() - expected.frame.int()).abs().float().mean() < 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seeds_and_actions_give_the_same_bytes_twice(model, temperature):
    first, second = (Engine(model, NUM_ENVS, temperature=temperature) for _ in range(2))

    assert everything(first, 30) == everything(second, 30)


def test_a_masked_reset_leaves_the_other_worlds_alone(model):
    engine, control = Engine(model, NUM_ENVS), Engine(model, NUM_ENVS)
    everything(engine, 3), everything(control, 3)

    engine.reset(np.array([False, True, False]), [None, 77, None])

    actions = torch.ones(NUM_ENVS, 1, dtype=torch.int64)
    frames, expected = engine.step(actions).frames, control.step(actions).frames
    assert torch.equal(frames[[0, 2]], expected[[0, 2]])
    assert not torch.equal(frames[1], expected[1])


def test_training_in_bfloat16_stays_finite_and_ends_in_a_world(tiny_spec, tiny_config, tmp_path):
    pytest.importorskip("accelerate", reason="needs the extra `train`")
    pytest.importorskip("tensorboard", reason="needs the extra `train`")
    from lwm_training.checkpoint import load_latest
    from lwm_training.recipe import Data, Model, Recipe, Stage, Train
    from lwm_training.train import train_world

    gym.register(GAME, Noise)
    parts = ("tokenizer", "motion", "dynamics")
    numbers = {f"{part}.{key}": value for part in parts for key, value in vars(getattr(tiny_config, part)).items()}
    stages = tuple(
        Stage(name=name, trains=name, steps=4, learning_rate=1e-3, context=3, unroll=1 + 3 * (name == "joint"))
        for name in (*parts, "joint")
    )
    recipe = Recipe(
        world=tiny_spec.model_copy(update={"real": tiny_spec.real.model_copy(update={"source": f"gymnasium:{GAME}"})}),
        model=Model(overrides={"margin": tiny_config.margin, **numbers}),
        data=Data(num_envs=4, shard_steps=40),
        train=Train(batch_size=4, stages=stages, log_every=1),
    )

    try:
        world = train_world(recipe, tmp_path / "run", "cuda")
    finally:
        gym.registry.pop(GAME)

    assert load_latest(tmp_path / "run" / "checkpoints").facts["guard"]["skipped"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in WorldModel.load(world).state_dict().values())
