"""What several tests share: tiny worlds on disk, with random weights, that step in a millisecond."""

from pathlib import Path

import pytest

TINY_SETTINGS = {
    "frame_size": (16, 16), "margin": 8,
    "tokenizer.encoder_dim": 8, "tokenizer.encoder_blocks": 1, "tokenizer.fine_dim": 8,
    "tokenizer.decoder_dim": 8, "tokenizer.decoder_blocks": 1,
    "camera.middle_dim": 8, "camera.whole_dim": 4, "camera.hidden_dim": 16, "camera.carry_dim": 8,
    "motion.dim": 8, "motion.bottleneck_dim": 16, "motion.bottleneck_blocks": 1,
    "dynamics.dim": 8, "dynamics.blocks": 1, "dynamics.event_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_config():
    """A ModelConfig of a few thousand parameters."""
    from lwm_env.presets import ModelConfig

    return ModelConfig().override(TINY_SETTINGS)


@pytest.fixture(scope="session")
def tiny_spec():
    """A WorldSpec with three actions, 16x16 frames and episodes of at most 20 steps."""
    from lwm_env.spec import DiscreteActions, RealSource, WorldSpec

    return WorldSpec(
        id="LWM-Tiny-v0",
        description="A world of the tests.",
        frame_size=(16, 16),
        actions=DiscreteActions(
            meanings=("NOOP", "LEFT", "RIGHT"), source_actions=(0, 1, 2), keys={"LEFT": ("a",), "RIGHT": ("d",)}
        ),
        reward_values=(0.0, 10.0),
        max_episode_steps=20,
        real=RealSource(source="gymnasium:CartPole-v1"),
    )


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory, tiny_config, tiny_spec) -> Path:
    """The folder of a whole world with random weights and four prompts of three frames; not to be changed."""
    import torch

    from lwm_env.world_model import Prompts, WorldModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(tiny_config, tiny_spec)
    generator = torch.Generator().manual_seed(1)
    model.prompts = Prompts(
        frames=torch.randint(0, 256, (4, 3, 16, 16, 3), generator=generator, dtype=torch.uint8),
        actions=torch.randint(0, tiny_spec.actions.dim, (4, 2, 1), generator=generator),
    )
    path = tmp_path_factory.mktemp("worlds") / "tiny"
    model.save(path, provenance={"data": "random weights of the tests"})
    return path


@pytest.fixture(scope="session")
def enliven():
    """Changes the weights of a model so that pictures follow the actions and half of the rewards are the higher one."""
    import torch

    def change(model) -> None:
        model.eval().requires_grad_(False)
        for weight in model.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.3)
        last, odds = model.events.out[-1], []
        last.weight.mul_(30)
        state = model.start(model.prompts.frames, model.prompts.actions)
        for step in range(6):
            state, output = model.step(state, model.prompts.actions[:, step % 2])
            odds.append(output.reward_probs.clamp(min=1e-30).log().diff().squeeze(-1))
        players, values = output.reward_probs.shape[1:]
        last.bias[: players * values].view(players, values)[:, 1] -= torch.cat(odds).median(0).values

    return change


@pytest.fixture(scope="session")
def duel_world(tmp_path_factory, tiny_config, tiny_spec, enliven) -> Path:
    """A tiny world of two players, each with rewards of its own, whose episodes end by time alone."""
    import torch

    from lwm_env.world_model import Prompts, WorldModel

    changes = {"id": "LWM-Duel-v0", "players": ("left", "right"), "termination_threshold": 1.0, "temperature": 1.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(tiny_config, tiny_spec.model_copy(update=changes))
        frames = torch.randint(0, 256, (4, 3, 16, 16, 3), dtype=torch.uint8)
        model.prompts = Prompts(frames, torch.randint(0, 3, (4, 2, 2)))
        enliven(model)
    path = tmp_path_factory.mktemp("worlds") / "duel"
    model.save(path, provenance={"data": "random weights of the tests"})
    return path
