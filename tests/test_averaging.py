"""The mean of the weights by hand, blocks that are computed twice, and both in a run that is killed."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("accelerate", reason="needs the extra `train`")
pytest.importorskip("h5py", reason="needs the extra `data`")

from lwm_env.world_model import WorldModel
from lwm_training.averaging import Averaged, recompute_blocks
from lwm_training.checkpoint import load_latest
from lwm_training.episode import Layout, pack_episode
from lwm_training.episode_writer import EpisodeWriter
from lwm_training.recipe import check_document
from lwm_training.train import Run, make_accelerator, train_world
from lwm_training.train_log import TrainLog


def test_the_mean_forgets_the_first_weights_and_then_moves_by_the_decay():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    averaged = Averaged(model, decay=0.2)
    nn.init.ones_(model.weight)

    averaged.update(model)  # the share of the new is 1 - min(0.2, 2 / 11)
    first = averaged.weights["weight"].item()
    averaged.update(model)  # 1 - min(0.2, 3 / 12)
    second = averaged.weights["weight"].item()

    assert first == pytest.approx(9 / 11) and second == pytest.approx(1 - (1 - 9 / 11) * 0.2)
    assert model.weight.item() == 1


def test_blocks_that_are_computed_twice_give_the_same_gradients(tiny_config, tiny_spec, enliven):
    config = tiny_config.override({"motion.attention_blocks": 1})
    gradients = []
    for twice in (False, True):
        torch.manual_seed(0)
        model = WorldModel(config, tiny_spec)
        for weight in model.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
        if twice:
            recompute_blocks(model)
        picture = torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16)
        proposal = model.propose(model.believe(picture), torch.tensor([[1], [2]]))
        (proposal.logits.square().mean() + proposal.moved.square().mean()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])

    assert len(gradients[0]) > 20
    assert all(torch.equal(once, again) for once, again in zip(*gradients, strict=True))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_config, tiny_spec):
    """Three steps on recorded noise, averaged and with blocks computed twice."""
    folder = tmp_path_factory.mktemp("data") / "noise"
    random = np.random.default_rng(0)
    with EpisodeWriter(folder, Layout((16, 16), ("player_0",), num_actions=3), {"source": "tests"}) as writer:
        steps = {"actions": random.integers(0, 3, 12), "rewards": np.zeros(12), "terminations": np.zeros(12)}
        frames = random.integers(0, 256, (13, 16, 16, 3), np.uint8)
        writer.append(pack_episode(writer._manifest.layout, frames, {**steps, "truncations": np.arange(12) == 11}, 0))
    ours = tiny_config.to_json()
    overrides = {name: ours[name] for name in ("margin", "tokenizer", "camera", "motion", "dynamics")}
    stage = {"name": "all", "trains": "joint", "steps": 3, "learning_rate": 1e-2, "context": 2, "decay": False}
    train = {"batch_size": 2, "stages": [stage], "average": 0.5, "recompute": True, "checkpoint_minutes": 1e-7}
    data = {"kind": "store", "path": str(folder)}
    spec = tiny_spec.model_dump(mode="json", exclude_none=True)
    return check_document({"world": spec, "model": {"overrides": overrides}, "data": data, "train": train}, "the tests")


class Stop(Exception):
    """Stands for a kill."""


class StoppingLog(TrainLog):
    def step(self, bar, place, losses, frames, share):
        if place["total_steps"] == 3:
            raise Stop


def test_a_run_saves_the_mean_and_goes_on_with_it_after_a_kill(recipe, tmp_path):
    train_world(recipe, tmp_path / "whole", "cpu")
    with StoppingLog(tmp_path / "killed", enabled=True, log_every=1) as log_book, pytest.raises(Stop):
        Run(recipe, tmp_path / "killed", make_accelerator("cpu")).train(log_book)
    assert load_latest(tmp_path / "killed" / "checkpoints").step == 2
    train_world(recipe, tmp_path / "killed", "cpu")

    whole, killed = (load_latest(tmp_path / name / "checkpoints") for name in ("whole", "killed"))
    assert whole.facts["averaged"] == killed.facts["averaged"] == 3
    assert all(torch.equal(whole.tensors[name], tensor) for name, tensor in killed.tensors.items())
    saved = WorldModel.load(tmp_path / "killed" / "world").state_dict()
    mean, last = (whole.tensors[f"{kind}.motion.merge.weight"] for kind in ("averaged", "model"))
    assert torch.equal(saved["motion.merge.weight"], mean.half().float()) and not torch.equal(mean, last)
