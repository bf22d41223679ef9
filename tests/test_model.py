"""The networks: shapes of every preset, invariants of the tokens, and the functional core."""

import pytest
import torch

from lwm_env.errors import ConfigMismatch
from lwm_env.presets import PRESETS, ModelConfig, preset
from lwm_env.spec import ContinuousActions, DiscreteActions, RealSource, WorldSpec
from lwm_env.tokenizer import Tokenizer, TokenizerConfig, to_frames, to_pixels
from lwm_env.world_model import WorldModel


def make_spec(frame_size=(16, 16), players=("player_0",), continuous=False) -> WorldSpec:
    discrete = DiscreteActions(meanings=("NOOP", "LEFT", "RIGHT"), source_actions=(0, 1, 2))
    box = ContinuousActions(meanings=("STEER", "GAS"), low=(-1, 0), high=(1, 1))
    return WorldSpec(
        id="LWM-Tiny-v0", description="a test world", frame_size=frame_size, players=players,
        actions=box if continuous else discrete, reward_values=(0, 1), real=RealSource(source="gymnasium:CartPole-v1"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_config) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(tiny_config, make_spec()).eval()


def prompt(batch: int, length: int = 3, size=(16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (batch, length, *size, 3), generator=generator, dtype=torch.uint8)
    return frames, torch.randint(0, 3, (batch, length - 1, 1), generator=generator)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_steps_on_the_meta_device(name):
    config = PRESETS[name]
    with torch.device("meta"):
        model = WorldModel(config, make_spec(config.frame_size))
        state = model.start(
            torch.empty(2, 3, *config.frame_size, 3, dtype=torch.uint8), torch.zeros(2, 2, 1, dtype=torch.long)
        )
        state, out = model.step(state, torch.zeros(2, 1, dtype=torch.long))

    assert out.frame.shape == (2, *config.frame_size, 3)
    assert out.reward.shape == (2, 1) and out.terminated_prob.shape == (2,)


def test_nano_has_between_one_and_a_half_and_three_million_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in WorldModel(PRESETS["nano"], make_spec((64, 64))).parameters())

    assert 1.5e6 <= count <= 3e6


def test_quantising_a_quantised_latent_changes_nothing():
    tokenizer = Tokenizer(TokenizerConfig(latent_dim=3, levels=5))
    latent = torch.rand(2, 3, 4, 4) * 2 - 1

    once = tokenizer.quantize(latent)

    assert torch.allclose(tokenizer.quantize(once), once)
    assert set(once.unique().mul(2).round().tolist()) <= {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert (once - latent).abs().max() <= 0.25 + 1e-6


def test_with_exact_copies_a_pixel_is_that_of_the_reference_or_drawn():
    torch.manual_seed(0)
    latent, reference = torch.rand(2, 4, 4, 4) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1
    mixing, exact = Tokenizer(TokenizerConfig()), Tokenizer(TokenizerConfig(exact_copies=1))
    exact.load_state_dict(mixing.state_dict())
    with torch.no_grad():
        for tokenizer in (mixing, exact):
            tokenizer.draw.bias.zero_().view(4, 4)[:3] = 5.0  # gates about a half, and drawn is what no picture has

    mixed, either = mixing.decode(latent, reference), exact.decode(latent, reference)

    copied = (either - reference).abs().amax(1) < 1e-5
    assert 0 < copied.float().mean() < 1 and either.amin(1)[~copied].min() > 2
    assert (((mixed - reference).abs().amax(1) > 1e-5) & (mixed.amin(1) < 2)).any()
    exact.decode(latent, reference).sum().backward()
    assert exact.draw.weight.grad.abs().sum() > 0


def test_frames_survive_the_way_to_pixels_and_back():
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)

    assert torch.equal(to_frames(to_pixels(frames)), frames)


def test_the_state_has_one_shape_whatever_the_prompt_length(model):
    long, short = model.start(*prompt(2, 9)), model.start(*prompt(2, 1))

    assert {k: (v.shape, v.dtype) for k, v in long.items()} == {k: (v.shape, v.dtype) for k, v in short.items()}
    assert torch.equal(long["frames"][:, -1], prompt(2, 9)[0][:, -1])


def test_a_step_leaves_the_state_it_was_given_alone(model):
    state = model.start(*prompt(2))
    before = {name: value.clone() for name, value in state.items()}

    after, out = model.step(state, torch.tensor([[1], [2]]))

    assert all(torch.equal(state[name], before[name]) for name in state)
    assert torch.equal(after["frames"][:, -1], out.frame)


def test_untrained_tokens_follow_the_moved_picture(model):
    """With the network's last layer at zero the likeliest token is the moved picture's own."""
    belief = model._unpack(model.start(*prompt(2)))

    proposal = model.propose(belief, torch.zeros(2, 1, dtype=torch.long))

    assert torch.equal(model.sample(proposal.logits, None, 0.0), model.tokenizer.indices(proposal.moved_latent))


def test_noise_changes_nothing_at_temperature_zero_and_something_at_one(model):
    state, action = model.start(*prompt(2)), torch.zeros(2, 1, dtype=torch.long)
    uniform = torch.rand(2, model.noise_dim, generator=torch.Generator().manual_seed(0))
    noise = -torch.log(-torch.log(uniform))

    plain, cold, warm = (model.step(state, action, *a)[0]["frames"] for a in ((None, 0.0), (noise, 0.0), (noise, 4.0)))

    assert torch.equal(plain, cold) and not torch.equal(plain, warm)


def test_joint_and_continuous_actions_reach_the_model(tiny_config):
    for spec, action in (
        (make_spec(players=("a", "b")), torch.tensor([[0, 2]])),
        (make_spec(continuous=True), torch.tensor([[[0.5, 0.1]]])),
    ):
        model = WorldModel(tiny_config, spec).eval()
        frames = prompt(1, 1)[0]
        _, out = model.step(model.start(frames, action[:, None][:, :0]), action)

        assert out.reward.shape == (1, len(spec.players))


def test_configuration_errors_name_the_setting():
    with pytest.raises(ConfigMismatch, match="multiples of 8"):
        preset("nano", frame_size=(60, 64))
    with pytest.raises(ConfigMismatch, match="motion.dimm"):
        ModelConfig().override({"motion.dimm": 3})
    with pytest.raises(ConfigMismatch, match="huge"):
        preset("huge")
    with pytest.raises(ConfigMismatch, match="frame_size"):
        WorldModel(PRESETS["nano"], make_spec((16, 16)))


def test_a_configuration_survives_json():
    config = ModelConfig().override({"motion.dim": 96, "margin": 16})

    assert ModelConfig.from_json(config.to_json()) == config


def test_the_memory_is_carried_from_step_to_step_and_changes_what_comes(tiny_config):
    torch.manual_seed(0)
    model = WorldModel(tiny_config.override({"motion.memory_dim": 5}), make_spec()).eval()
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    frames, actions = prompt(1)
    state = model.start(frames, actions)
    forgetful = state | {"carry": state["carry"].clone()}
    forgetful["carry"][:, -5:] = 0
    pictures = [
        model.propose(model._unpack(kept), torch.ones(1, 1, dtype=torch.long)).moved for kept in (state, forgetful)
    ]

    assert state["carry"].shape == (1, tiny_config.camera.carry_dim + 5) and state["carry"][:, -5:].abs().min() > 0
    assert not torch.allclose(*pictures)


def test_a_camera_that_stands_still_has_no_weights_and_sees_no_motion(tiny_config):
    model = WorldModel(tiny_config.override({"camera.max_motion": 0}), make_spec()).eval()
    frames, actions = prompt(2)
    pixels = to_pixels(frames)

    state = model.start(frames, actions)
    seen = model.sight(pixels[:, 0], pixels[:, 1])

    assert not list(model.camera.parameters()) and not state["motion"].any() and not state["offset"].any()
    assert seen.sure.all() and not seen.motion.any()
    for _ in range(3):
        state, _ = model.step(state, torch.ones(2, 1, dtype=torch.long))
    assert not state["motion"].any() and not state["carry"].any()
