"""What several tests share: tiny worlds on disk, with random weights, that step in a millisecond."""

import os
from pathlib import Path

import pytest

os.environ["LWM_HOME"] = str(Path(__file__).parent / "nobody")  # no world that a developer installed is seen

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
        model = WorldModel(
            tiny_config.override({"motion.memory_dim": 8, "motion.flow": 1, "motion.movers": 2}),
            tiny_spec.model_copy(update=changes),
        )
        frames = torch.randint(0, 256, (4, 3, 16, 16, 3), dtype=torch.uint8)
        model.prompts = Prompts(frames, torch.randint(0, 3, (4, 2, 2)))
        enliven(model)
    path = tmp_path_factory.mktemp("worlds") / "duel"
    model.save(path, provenance={"data": "random weights of the tests"})
    return path


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """Starts `lwm serve` with settings, in processes of its own, and waits until it can be played on; all are stopped
    at the end. Gives the process and the API."""
    import contextlib
    import json
    import subprocess
    import sys

    from lwm_env.web.client import Api
    from lwm_env.web.loadtest import wait_until_ready

    def start(**settings):
        config = tmp_path_factory.mktemp("server") / "server.toml"
        lines = {"port": 0, "max_load": 1000.0, "requests_per_minute": 100_000, "rooms_per_minute": 100_000, **settings}
        config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items()))
        command = [sys.executable, "-m", "lwm_env.cli", "serve", str(config)]
        process = servers.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        servers.callback(process.terminate)
        url = process.stdout.readline().strip()
        wait_until_ready(url)
        return process, Api(url, settings.get("access_token"))

    with contextlib.ExitStack() as servers:
        yield start


@pytest.fixture(scope="session")
def play_server(start_server, tiny_world, duel_world):
    """The API of a server of the two tiny worlds, whose timers are short."""
    timers = {"reserve_seconds": 2.0, "drop_seconds": 3.0, "pause_seconds": 1.0, "snapshot_seconds": 2.5}
    return start_server(worlds=[str(tiny_world), str(duel_world)], **timers)[1]


@pytest.fixture
def enter(play_server):
    """Opens a WebSocket into a room, in the seat of a token or as a spectator, and reads its first message."""
    import contextlib
    import json

    from websockets.sync.client import connect

    def attach(room, token=None, api=play_server, **more):
        socket = sockets.enter_context(connect(api.websocket_url, compression=None, max_size=1 << 24, close_timeout=1))
        socket.send(json.dumps({"type": "attach", "room": room, "token": token, **more}))
        return socket, json.loads(socket.recv(timeout=30))

    with contextlib.ExitStack() as sockets:
        yield attach
