"""What only a CUDA device shows: stepping, masked resets, the same bytes twice, and training in bfloat16."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lwm_env import snapshot
from lwm_env.engine import Engine
from lwm_env.world_model import WorldModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch"),
]
GAME = "LwmTest/Noise-v0"
NUM_ENVS = 3
ACTIONS = torch.tensor([[1], [2], [0]])


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


# -- the graph -------------------------------------------------------------------------------------------------------


def outcome(model: WorldModel, temperature: float, graph: bool) -> tuple[bytes, Engine]:
    engine = Engine(model, NUM_ENVS, temperature=temperature, graph=graph)
    seen = everything(engine, 12)
    engine.reset(np.array([False, True, False]), [None, 77, None])
    engine.fork(0, [2])
    for active in ([True, False, True], [True, True, True]):
        seen += b"".join(t.cpu().numpy().tobytes() for t in engine.step(ACTIONS, np.array(active)))
    return seen + b"".join(engine.get_state(slot) for slot in range(NUM_ENVS)), engine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_replayed_graph_gives_the_bytes_of_eager_steps(model, temperature):
    eager, engine = outcome(model, temperature, graph=False)
    replayed, graphed = outcome(model, temperature, graph=True)

    assert engine.batch.graphed is None and graphed.batch.graphed == temperature
    assert eager == replayed


def test_the_graph_is_captured_once_and_again_for_another_temperature(model):
    engine = Engine(model, NUM_ENVS, temperature=0.0, graph=True)
    everything(engine, 1)
    first = engine.batch._graph

    everything(engine, 3)
    assert engine.batch._graph is first
    engine.temperature = 1.0
    everything(engine, 1)
    assert engine.batch._graph is not first and engine.batch.graphed == 1.0


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_does_not_wait_for_the_device(model, graph, temperature):
    engine = Engine(model, NUM_ENVS, temperature=temperature, graph=graph)
    everything(engine, 2)  # captures, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(ACTIONS)
        engine.step(ACTIONS.cuda(non_blocking=True), np.array([True, False, True]))
        engine.reset(np.array([False, True, False]), [None, 0, None])  # from a prompt that was used before
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graph", [False, True])
def test_what_a_step_on_the_device_handed_out_never_changes(model, graph):
    engine = Engine(model, NUM_ENVS, graph=graph)
    everything(engine, 1)
    handed = [engine.frames, *engine.step(ACTIONS)]
    copies = [tensor.cpu() for tensor in handed]

    everything(engine, 5)

    assert all(torch.equal(tensor.cpu(), copy) for tensor, copy in zip(handed, copies, strict=True))


def test_a_failed_world_keeps_its_frame_and_the_others_go_on(model):
    engine, control = Engine(model, NUM_ENVS), Engine(model, NUM_ENVS)
    everything(engine, 1), everything(control, 1)
    facts, tensors = snapshot.decode(engine.get_state(1))
    broken = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    engine.set_state(snapshot.encode(facts, {**tensors, broken: torch.full_like(tensors[broken], torch.nan)}), 1)
    last = engine.frames[1]

    result, expected = engine.step(ACTIONS), control.step(ACTIONS)

    assert result.failed.tolist() == [False, True, False]
    assert torch.equal(result.frames[1], last)
    assert torch.equal(result.frames[[0, 2]], expected.frames[[0, 2]])


def test_a_step_computed_in_bfloat16_gives_finite_numbers(model):
    engine = Engine(model, NUM_ENVS, dtype=torch.bfloat16)
    everything(engine, 3)

    result = engine.step(ACTIONS)

    assert engine.batch.graphed is not None and not result.failed.any()
    assert result.rewards.dtype == torch.float32


def test_training_in_bfloat16_stays_finite_and_ends_in_a_world(tiny_spec, tiny_config, tmp_path):
    pytest.importorskip("accelerate", reason="needs the extra `train`")
    pytest.importorskip("tensorboard", reason="needs the extra `train`")
    from lwm_training.checkpoint import load_latest
    from lwm_training.recipe import Data, Model, Recipe, Stage, Train
    from lwm_training.train import train_world

    gym.register(GAME, Noise)
    parts = ("tokenizer", "camera", "motion", "dynamics")
    numbers = {f"{part}.{key}": value for part in parts for key, value in vars(getattr(tiny_config, part)).items()}
    stages = tuple(
        Stage(name=name, trains=name, steps=4, learning_rate=1e-3, context=3, unroll=1 + 3 * (name == "joint"))
        for name in ("tokenizer", "camera", "dynamics", "joint")
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


def test_a_model_that_no_graph_can_hold_is_stepped_without_one(model, monkeypatch, caplog):
    """The last of this file, since torch may not tidy up wholly after a capture that failed."""
    step = WorldModel.step

    def waiting(self, state, action, noise=None, temperature=0.0):
        action.sum().item()
        return step(self, state, action, noise, temperature)

    expected = everything(Engine(model, NUM_ENVS, graph=False), 3)
    monkeypatch.setattr(WorldModel, "step", waiting)
    engine = Engine(model, NUM_ENVS, graph=True)

    assert everything(engine, 3) == expected
    assert not engine.batch.graph and "CUDA graph" in caplog.text
