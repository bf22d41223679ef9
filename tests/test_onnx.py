"""The step as an ONNX file: parity with torch, the contract of the envs on it, and files that are not to be trusted."""

import collections
import json
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch

import lwm_env
from lwm_env import cli, worlds
from lwm_env.envs import LwmEnv, LwmVectorEnv
from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, MissingExtra, StorageError
from lwm_env.lattice import LINES
from lwm_env.noise import episode_key, gumbel
from lwm_env.world_model import Prompts, WorldModel

onnx = pytest.importorskip("onnx", reason='needs the extra: pip install "lwm-env[onnx]"')
pytest.importorskip("onnxscript", reason='needs the extra: pip install "lwm-env[onnx]"')
pytest.importorskip("onnxruntime", reason='needs the extra: pip install "lwm-env[onnx]"')

from lwm_env.export import graph, onnx_file, onnx_world, quantize  # noqa: E402
from lwm_env.export.onnx_file import Facts  # noqa: E402
from lwm_env.export.onnx_world import OnnxGroup, OnnxWorld, rows_together  # noqa: E402

PLAN = np.random.default_rng(7).integers(0, 3, (8, 3))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LWM_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def endless(tiny_world, tmp_path_factory) -> str:
    """The tiny world with weights that are never zero, so that pictures follow the actions; episodes without an end."""
    model = WorldModel.load(tiny_world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for weight in model.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.3)
    model.spec = model.spec.model_copy(update={"termination_threshold": 1.0})
    path = tmp_path_factory.mktemp("worlds") / "endless"
    model.save(path, provenance={})
    return str(path)


def file_of(model: WorldModel, folder, **changes):
    batch, sampled = changes.get("batch", 1), changes.pop("sampled", True)
    facts = Facts.of(model, **{"temperature": "noise" if sampled else "none", **changes})
    onnx_file.write(folder / "step.onnx", onnx_file.stamp(graph.export_step(model, batch, sampled), facts))
    return folder / "step.onnx"


@pytest.fixture(scope="module")
def tiny(endless) -> WorldModel:
    return WorldModel.load(endless)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """The tiny world's step for two worlds at a time."""
    return file_of(tiny, tmp_path_factory.mktemp("exported"), batch=2)


@pytest.fixture(scope="module")
def cached(tiny, cache):
    """The file that the envs of the tests run, for one world at a time."""
    return onnx_world.open_cached(tiny, 1).file


# -- parity ----------------------------------------------------------------------------------------------------------


def steps_apart(torch_world, onnx_world, batch: int, temperature: float, num_steps: int = 6):
    """What both make of the same state, action and noise; torch's state goes on."""
    bank, spec = torch_world.prompts, torch_world.spec
    state = torch_world.start(bank.frames[:batch], bank.actions[:batch])
    keys = torch.tensor([episode_key(seed, 0) for seed in range(batch)])
    for step in range(num_steps):
        players = (batch, len(spec.players))
        action = torch.full(players, (step + 1) % spec.actions.dim)
        if spec.actions.kind == "continuous":
            action = torch.full((*players, spec.actions.dim), 0.3 * (step % 3))
        noise = gumbel(keys, torch.full_like(keys, step), torch_world.noise_dim)
        inputs = (state, action, noise, temperature)
        (state, expected), (found_state, found) = torch_world.step(*inputs), onnx_world.step(*inputs)
        yield (state, expected), (found_state, found)


def differences(expected, found) -> list[str]:
    """What of a step is another than expected: shapes, dtypes and numbers by name."""
    (state, out), (found_state, found_out) = expected, found
    if unlike := sorted(state.keys() ^ found_state.keys()):
        return unlike
    pairs = {name: (value, found_state[name]) for name, value in state.items()}
    pairs |= {name: (getattr(out, name), getattr(found_out, name)) for name in out._fields}
    wrong = [name for name, (one, other) in pairs.items() if (one.dtype, one.shape) != (other.dtype, other.shape)]
    if wrong:
        return wrong
    for name, (one, other) in pairs.items():
        if name == "frame":  # a token that flips at a tie changes the pixels of a cell or two
            same = ((one.int() - other.int()).abs() > 1).float().mean() < 0.01
        else:
            apart = ~((one.double() - other.double()).abs() <= 1e-3)  # what a memory keeps may flip at a tie, too
            same = not one.is_floating_point() or apart.double().mean() < 1e-3
        wrong += [] if same else [name]
    return wrong


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_step_is_that_of_torch(tiny, exported, temperature):
    for expected, found in steps_apart(tiny, OnnxWorld(tiny, exported, 2), 2, temperature):
        assert not differences(expected, found)


def test_a_step_with_movers_and_two_players_is_that_of_torch(duel_world, tmp_path):
    model = WorldModel.load(duel_world)

    for expected, found in steps_apart(model, OnnxWorld(model, file_of(model, tmp_path, batch=2), 2), 2, 0.7):
        assert not differences(expected, found)


def test_a_step_with_a_lattice_is_that_of_torch(tiny, tmp_path):
    changes = {"camera.lattice": 3.7, "camera.edges": 0.5, "camera.tile_dim": 2, "motion.lines": LINES}
    config = tiny.config.override(changes)
    model, generator = WorldModel(config, tiny.spec).eval().requires_grad_(False), torch.Generator().manual_seed(0)
    random = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
        if name.startswith(("camera.tiles.", "camera.nearby.", "motion.lines."))
    }
    model.load_state_dict({**tiny.state_dict(), **random})
    model.prompts, model.weights_hash = tiny.prompts, "0" * 64

    for expected, found in steps_apart(model, OnnxWorld(model, file_of(model, tmp_path, batch=2), 2), 2, 0.7):
        assert not differences(expected, found)


@pytest.mark.slow
@pytest.mark.parametrize("world_id", worlds.shipped())
def test_a_step_of_a_shipped_world_is_that_of_torch(world_id):
    model = WorldModel.load(world_id)

    for expected, found in steps_apart(model, onnx_world.open_cached(model, 1), 1, 0.7):
        assert not differences(expected, found)


@pytest.mark.parametrize("num_envs", [4, 9, 33])
def test_rows_computed_together_have_the_bytes_that_each_has_alone(endless, cache, num_envs):
    plan = np.random.default_rng(0).integers(0, 3, (8, num_envs))
    envs = LwmVectorEnv(endless, num_envs=num_envs, backend="onnx", temperature=0.7)
    envs.reset(seed=3)
    together = [envs.step(actions) for actions in plan]

    assert envs._engine.model.together == rows_together(num_envs) > 1
    for slot in range(0, num_envs, 1 + num_envs // 8):  # one of each group at least
        env = LwmEnv(endless, backend="onnx", temperature=0.7)
        env.reset(seed=3 + slot)
        for actions, (frames, rewards, _, _, infos) in zip(plan, together, strict=True):
            observation, reward, _, _, info = env.step(int(actions[slot]))
            assert (observation == frames[slot]).all()
            assert (reward, info["surprise"]) == (rewards[slot], infos["surprise"][slot])


@pytest.mark.slow
@pytest.mark.parametrize("world_id", worlds.shipped())
def test_rows_of_a_shipped_world_are_computed_together(world_id):
    model = WorldModel.load(world_id)

    assert OnnxGroup(onnx_world.open_cached(model, 1), onnx_world.open_cached(model, 8)).together == 8


def test_a_group_whose_bytes_differ_is_not_used(tiny, tiny_world, cached, tmp_path):
    other = WorldModel.load(tiny_world)
    single, group = onnx_world.open_cached(tiny, 1), OnnxWorld(other, file_of(other, tmp_path, batch=2), 2)

    assert OnnxGroup(single, group).together == 1


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_file_is_one_of_standard_operators_with_no_scatter_and_no_grid_sample(exported):
    proto = onnx.load(exported)
    used = collections.Counter(node.op_type for node in proto.graph.node)

    onnx.checker.check_model(proto)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", graph.OPSET)]
    assert not proto.functions and not any(tensor.external_data for tensor in proto.graph.initializer)
    assert not [name for name in used if name.startswith(("Scatter", "GridSample", "TopK", "GatherND"))]


def test_the_file_says_what_it_is_and_what_goes_in_and_out(tiny, exported):
    proto = onnx.load(exported)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    state = graph.example_state(tiny, 2)

    assert facts["lwm.weights"] == tiny.weights_hash and facts["lwm.model"] == onnx_file.model_hash(tiny)
    assert (facts["lwm.batch"], facts["lwm.temperature"], facts["lwm.precision"]) == ("2", "noise", "float32")
    assert [value.name for value in proto.graph.input] == [*state, "action", "noise"]
    outputs = [value.name for value in proto.graph.output]
    assert outputs[: len(state)] == [f"new_{name}" for name in state]
    assert outputs[len(state) :] == ["frame", "reward", "reward_probs", "terminated_prob", "surprise"]


def test_without_sampling_there_is_no_noise_to_give_and_a_temperature_is_refused(tiny, tmp_path):
    greedy = OnnxWorld(tiny, file_of(tiny, tmp_path, sampled=False), 1)
    state, action = graph.example_state(tiny, 1), graph.example_action(tiny, 1)

    assert not differences(tiny.step(state, action), greedy.step(state, action))
    with pytest.raises(ConfigMismatch, match="likeliest"):
        greedy.step(state, action, torch.zeros(1, tiny.noise_dim), 0.5)


@pytest.mark.parametrize("damage", [
    lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: data + b"x", lambda data: b"",
    lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], lambda data: b"not an ONNX file",
    lambda data: data.replace(b"lwm-sha256:", b"lwm-sha512:"), lambda data: data + data,
])  # fmt: skip
def test_a_damaged_or_foreign_file_is_refused_before_it_is_parsed(tiny, exported, tmp_path, damage):
    file = tmp_path / "step.onnx"
    file.write_bytes(damage(exported.read_bytes()))

    with pytest.raises(CorruptFile, match="export the world again"):
        OnnxWorld(tiny, file, 2)


def test_a_file_of_another_world_or_batch_is_refused(tiny, tiny_world, exported, tmp_path):
    with pytest.raises(ConfigMismatch, match="batch"):
        OnnxWorld(tiny, exported, 1)
    with pytest.raises(ConfigMismatch, match="weights"):
        OnnxWorld(WorldModel.load(tiny_world), exported, 2)
    with pytest.raises(StorageError, match="cannot be read"):
        OnnxWorld(tiny, tmp_path / "none.onnx", 2)


def test_a_stamped_file_that_is_no_model_is_refused_by_type(tiny, tmp_path):
    file = tmp_path / "step.onnx"
    file.write_bytes(onnx_file.stamp(onnx.ModelProto(), Facts.of(tiny)))

    with pytest.raises(CorruptFile, match="refused by onnxruntime"):
        OnnxWorld(tiny, file, 1)


# -- the cache -------------------------------------------------------------------------------------------------------


def test_the_export_is_made_once_even_by_several_threads(tiny, cached, tmp_path, monkeypatch):
    monkeypatch.setenv("LWM_CACHE_DIR", str(tmp_path / "new"))
    made = []
    monkeypatch.setattr(onnx_world, "export_step", lambda *_: made.append(1) or onnx.load(cached))
    threads = [threading.Thread(target=onnx_world.open_cached, args=(tiny, 1)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 1
    assert len(list((tmp_path / "new" / "onnx").iterdir())) == 1  # and nothing partial is left


def test_a_damaged_file_in_the_cache_is_named(tiny, cached, tmp_path, monkeypatch):
    monkeypatch.setenv("LWM_CACHE_DIR", str(tmp_path))
    file = tmp_path / "onnx" / cached.name
    file.parent.mkdir()
    file.write_bytes(cached.read_bytes()[:-100])

    with pytest.raises(CorruptFile, match=file.name):
        onnx_world.open_cached(tiny, 1)


def test_a_cache_that_cannot_be_written_is_told(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LWM_CACHE_DIR", str(tmp_path / "file"))

    with pytest.raises(StorageError, match="cannot be made"):
        onnx_world.cached_file(tiny, 1)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_the_extra(tiny, tmp_path, monkeypatch, package):
    monkeypatch.setenv("LWM_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtra, match=f"{package} is not installed.*lwm-env.onnx"):
        onnx_world.open_cached(tiny, 1)


# -- the envs on it --------------------------------------------------------------------------------------------------


def follow(envs, actions) -> list[bytes]:
    """Everything that each slot got, as bytes."""
    slots = [b""] * envs.num_envs
    for row in actions:
        columns = envs.step(row)[:4]
        slots = [seen + b"".join(column[i].tobytes() for column in columns) for i, seen in enumerate(slots)]
    return slots


def start(endless, num_envs: int, seed: int = 5, **options):
    envs = LwmVectorEnv(endless, num_envs, backend="onnx", temperature=1.0, **options)
    envs.reset(seed=seed)
    return envs


def test_a_slot_equals_the_world_alone_and_repeats(endless):
    together = follow(start(endless, 3), PLAN)

    assert together == follow(start(endless, 3), PLAN)
    assert together == [follow(start(endless, 1, 5 + i), PLAN[:, i : i + 1])[0] for i in range(3)]
    assert len(set(together)) == 3


def test_snapshots_and_forks_continue_bit_for_bit(endless):
    envs = start(endless, 3)
    envs.step(PLAN[0])
    state = envs.get_state(1)
    expected = follow(envs, PLAN)[1]

    other = start(endless, 2)
    other.set_state(state, 0)
    other.fork(source=0, targets=[1])

    assert follow(other, PLAN[:, [1, 1]]) == [expected, expected]


def test_a_snapshot_of_the_torch_backend_goes_on_in_onnx(endless):
    env, other = LwmEnv(endless), LwmEnv(endless, backend="onnx")
    env.reset(seed=3)
    other.set_state(env.get_state())

    one, two = env.step(1)[0].astype(int), other.step(1)[0].astype(int)

    assert (abs(one - two) > 1).mean() < 0.01


@pytest.mark.slow
def test_forked_workers_give_the_bytes_of_the_batch(endless):
    native = start(endless, 2, autoreset_mode="NextStep")
    workers = gym.vector.AsyncVectorEnv([lambda: LwmEnv(endless, backend="onnx", temperature=1.0)] * 2)
    try:
        workers.reset(seed=5)
        assert follow(workers, PLAN[:, :2]) == follow(native, PLAN[:, :2])
    finally:
        workers.close()


def test_every_kind_of_env_takes_the_backend(endless):
    parallel = lwm_env.parallel_env(endless, backend="onnx")
    single = LwmEnv(endless, backend="onnx")
    frames, _ = parallel.reset(seed=1)

    assert np.array_equal(frames["player_0"], single.reset(seed=1)[0])
    assert np.array_equal(parallel.step({"player_0": 2})[0]["player_0"], single.step(2)[0])
    with pytest.raises(InvalidInput, match="onnx"):
        LwmEnv(endless, backend="onxn")


# -- int8 and the command --------------------------------------------------------------------------------------------


def as_clips(folder, frames, actions):
    np.savez(folder / "clips.npz", frames=frames, actions=actions)
    return folder / "clips.npz"


@pytest.mark.slow
def test_int8_dreams_are_judged_against_real_frames(tiny, cached, tmp_path):
    float32 = OnnxWorld(tiny, cached, 1)
    file = tmp_path / "int8.onnx"
    onnx_file.write(file, onnx_file.stamp(quantize.quantize(float32, tiny.prompts), Facts.of(tiny, precision="int8")))
    int8 = OnnxWorld(tiny, file, 1)

    check = quantize.compare(float32, int8, tiny.prompts)

    used = {node.op_type for node in onnx.load(file).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= used
    assert int8.session.metadata["lwm.precision"] == "int8"
    assert (check.clips, check.steps) == (4, 2) and np.isfinite(check.drop)


def test_pooled_psnr_is_of_the_mean_squared_error(tiny, cached):
    world, bank = OnnxWorld(tiny, cached, 1), tiny.prompts
    state = world.start(bank.frames[:1, :2], bank.actions[:1, :1])
    frame = world.step(state, bank.actions[:1, 1])[1].frame

    clips = Prompts(torch.cat([bank.frames[:1, :2], frame[:, None] ^ 1], 1), bank.actions[:1])

    assert quantize.squared_error(world, clips, 2) == 1.0  # every number is off by one


def test_int8_that_loses_too_much_is_refused_with_the_figures():
    quantize.accept(quantize.Check(20.0, 19.71, 8, 60))
    quantize.accept(quantize.Check(20.0, 21.0, 8, 60))
    for int8 in (19.7, float("nan")):
        with pytest.raises(ConfigMismatch, match="int8 is refused.*8 clips over 60 steps"):
            quantize.accept(quantize.Check(20.0, int8, 8, 60))


def test_clips_of_other_shapes_are_refused(tiny, tmp_path):
    frames, actions = np.zeros((2, 5, 16, 16, 3), np.uint8), np.zeros((2, 4, 1), int)

    assert quantize.read_clips(as_clips(tmp_path, frames, actions), tiny.spec).frames.shape == frames.shape
    for bad in (
        (frames[:, :, :8], actions),
        (frames / 255, actions),
        (frames, actions[..., 0]),
        (frames[:, :1], actions),
    ):
        with pytest.raises(InvalidInput, match="expected uint8"):
            quantize.read_clips(as_clips(tmp_path, *bad), tiny.spec)
    (tmp_path / "clips.npz").write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match="not an .npz"):
        quantize.read_clips(tmp_path / "clips.npz", tiny.spec)


def test_the_command_writes_a_file_that_the_world_accepts(tiny, endless, tmp_path, capsys):
    out = tmp_path / "two.onnx"

    assert cli.main(["export", endless, "--to", "onnx", "--batch", "2", "--greedy", "--out", str(out), "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["bytes"], told["weights"]) == (out.stat().st_size, tiny.weights_hash)
    assert not OnnxWorld(tiny, out, 2).sampled


def test_the_command_tells_what_it_cannot_do(endless, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")

    assert cli.main(["export", endless, "--clips", "x.npz"]) == 2
    assert cli.main(["export", endless, "--to", "tflite"]) == 2
    assert cli.main(["export", endless, "--int8"]) == 2
    short = str(as_clips(tmp_path, np.zeros((2, 5, 16, 16, 3), np.uint8), np.zeros((2, 4, 1), int)))
    int8 = ["export", endless, "--int8", "--clips", short, "--out", str(tmp_path / "x.onnx")]
    assert cli.main([*int8, "--batch", "2"]) == cli.main(int8) == 1
    assert cli.main(["export", endless, "--out", str(tmp_path / "file" / "x.onnx")]) == 1
    told = capsys.readouterr().err
    assert (
        "one world at a time" in told
        and "61 at least" in told
        and "cannot be made" in told
        and not (tmp_path / "x.onnx").exists()
    )
