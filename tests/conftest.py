"""What several tests share: a tiny world on disk, with random weights, that steps in a millisecond."""

from pathlib import Path

import pytest

TINY_SETTINGS = {
    "frame_size": (16, 16), "margin": 8,
    "tokenizer.encoder_dim": 8, "tokenizer.encoder_blocks": 1, "tokenizer.fine_dim": 8,
    "tokenizer.decoder_dim": 8, "tokenizer.decoder_blocks": 1,
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
