"""World folders: what is written is read back; what is damaged is refused in time; a kill loses nothing."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, LwmError, StorageError, UnknownWorld
from lwm_env.spec import DiscreteActions, RealSource, WorldSpec

SPEC = WorldSpec(
    id="LWM-Files-v0",
    description="a world of the tests",
    frame_size=(8, 8),
    actions=DiscreteActions(meanings=("NOOP", "LEFT"), source_actions=(4, 1), keys={"LEFT": ("a",)}),
    reward_values=(0.0, 10.0),
    real=RealSource(source="gymnasium:CartPole-v1", options={"difficulty": 0.5, "easy": True}),
)
TENSORS = {"weight": np.arange(6, dtype=np.float16).reshape(2, 3), "bias": np.ones(4, np.int64)}
EXPECTED = {"weight": ((2, 3), "float16"), "bias": ((None,), "int64")}
MODEL = {"preset": "nano"}


def write(path: Path, **changes) -> worlds.Manifest:
    parts = {"spec": SPEC, "model": MODEL, "provenance": {"data": "none"}}
    return worlds.write_world(path, **parts, files={"model.safetensors": save(TENSORS), **changes})


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write(tmp_path / "world")
    return tmp_path / "world"


def test_what_is_written_is_read_back(world):
    manifest = worlds.verify(world)
    tensors = worlds.read_tensors(world / "model.safetensors", EXPECTED)

    assert manifest.spec == SPEC and manifest.model == MODEL
    assert all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensor.flags.writeable for tensor in tensors.values())


def test_scalar_and_empty_tensors_are_read(tmp_path):
    tensors = {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 3), np.uint8)}
    (tmp_path / "file").write_bytes(save(tensors))

    read = worlds.read_tensors(tmp_path / "file", {"scalar": ((), "float32"), "empty": ((None, 3), "uint8")})

    assert read["scalar"] == 3.5 and read["empty"].shape == (0, 3)


def test_files_beside_the_world_survive_a_rewrite_and_its_own_old_files_do_not(world):
    (world / "report").mkdir()
    (world / "report" / "clip.mp4").write_bytes(b"clip")
    (world / "README.md").write_text("a model card")
    write(world, **{"old.bin": b"old"})
    write(world)

    assert sorted(path.name for path in world.iterdir()) == ["README.md", "model.safetensors", "report", "world.json"]
    assert (world / "report" / "clip.mp4").read_bytes() == b"clip"
    assert [path.name for path in world.parent.iterdir()] == ["world"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"")

    with pytest.raises(InvalidInput, match="not a world"):
        write(tmp_path / "photos")
    assert (tmp_path / "photos" / "one.png").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "", ".hidden", "world.json", "a\0b", "x" * 200])
def test_file_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(InvalidInput, match="plain file name"):
        write(tmp_path / "world", **{name: b""})
    assert not list(tmp_path.iterdir())


# -- finding -----------------------------------------------------------------------------------------------------------


def test_a_world_is_found_by_path(world):
    assert worlds.find(world) == world and worlds.find(str(world)) == world


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "no such world", "LWM-Platformer-v99", "/", "/dev/null"])
def test_an_unknown_name_is_told(name):
    with pytest.raises(UnknownWorld, match="No world"):
        worlds.find(name)


def test_a_name_of_another_type_is_told():
    with pytest.raises(InvalidInput, match="NoneType"):
        worlds.find(None)


def test_the_platformer_is_the_first_of_the_shipped_worlds():
    names = ["Platformer", "Doom", "PlatformerPico", "Pong", "Racing"]
    assert [*worlds.shipped()] == [f"LWM-{name}-v0" for name in names]


@pytest.mark.parametrize("world_id", worlds.shipped())
def test_every_shipped_world_is_whole_and_found_by_its_names(world_id):
    folder = worlds.find(world_id)

    assert worlds.find(folder.name) == folder
    assert worlds.verify(folder).spec.id == world_id
    with pytest.raises(UnknownWorld, match=f"Did you mean.*{world_id}"):
        worlds.find(world_id.lower().replace("form", "from"))


# -- damage ------------------------------------------------------------------------------------------------------------


def header(fields: object, data: bytes = b"") -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F16", shape=(2, 3), offsets=(0, 12)) -> dict:
    return {"weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


BIAS = {"bias": {"dtype": "I64", "shape": [1], "data_offsets": [12, 20]}}
GOOD = save(TENSORS)
MALFORMED_TENSORS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "length alone": struct.pack("<Q", 100),
    "length past the end": struct.pack("<Q", 1 << 40) + b"{}",
    "length of all bits": b"\xff" * 8 + b"{}",
    "header over a mebibyte": header(b'{"a":"' + b"x" * (1 << 20) + b'"}'),
    "zero length": struct.pack("<Q", 0) + b"{}",
    "not JSON": header(b"not json"),
    "not UTF-8": header(b"\xff\xfe{}"),
    "a list": header([1, 2]),
    "nested 100,000 deep": header(b"[" * 100_000),
    "a name twice": header(b'{"weight":{},"weight":{}}'),
    "entry is a number": header({"weight": 3}),
    "entry without offsets": header({"weight": {"dtype": "F16", "shape": [2, 3]}}),
    "unknown field": header({"weight": {**entry()["weight"], "code": "import os"}}),
    "unknown dtype": header(entry(dtype="OBJECT"), bytes(12)),
    "dtype is a list": header(entry(dtype=["F16"]), bytes(12)),
    "negative side": header(entry(shape=[-2, -3]), bytes(12)),
    "huge side": header(entry(shape=[1 << 62, 3]), bytes(12)),
    "sides beyond all memory": header(entry(shape=[1 << 40, 1 << 40]), bytes(12)),
    "side of 4,000 digits": header(b'{"weight":{"dtype":"F16","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,12]}}'),
    "fractional side": header(entry(shape=[2.0, 3]), bytes(12)),
    "boolean side": header(entry(shape=[True, 6]), bytes(12)),
    "too many sides": header(entry(shape=[1] * 100_000), bytes(2)),
    "negative offset": header(entry(offsets=[-12, 0]), bytes(12)),
    "offsets backwards": header(entry(offsets=[12, 0]), bytes(12)),
    "offsets past the end": header(entry(offsets=[100, 112]), bytes(12)),
    "three offsets": header(entry(offsets=[0, 6, 12]), bytes(12)),
    "shape and offsets differ": header(entry(shape=[2, 4]), bytes(12)),
    "overlap": header({**entry(), "bias": {**BIAS["bias"], "data_offsets": [4, 12]}}, bytes(12)),
    "gap": header({**entry(), "bias": {**BIAS["bias"], "data_offsets": [16, 24]}}, bytes(24)),
    "data cut": GOOD[:-1],
    "data too long": GOOD + b"\0",
    "header cut": GOOD[:40],
    "another dtype": save({**TENSORS, "weight": TENSORS["weight"].astype(np.float32)}),
    "another shape": save({**TENSORS, "weight": TENSORS["weight"].T.copy()}),
    "a tensor missing": save({"weight": TENSORS["weight"]}),
    "a tensor too many": save({**TENSORS, "extra": np.zeros(1)}),
    "bool instead of numbers": save({**TENSORS, "bias": np.ones(4, bool)}),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a zip": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("kind", MALFORMED_TENSORS)
def test_malformed_tensors_are_refused_in_200_ms(tmp_path, kind):
    (tmp_path / "file").write_bytes(MALFORMED_TENSORS[kind])

    begin = time.perf_counter()
    with pytest.raises((CorruptFile, ConfigMismatch), match="file"):
        worlds.read_tensors(tmp_path / "file", EXPECTED)
    assert time.perf_counter() - begin < 0.2


def test_refusing_malformed_tensors_takes_little_memory(tmp_path):
    tracemalloc.start()
    for content in MALFORMED_TENSORS.values():
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(LwmError):
            worlds.read_tensors(tmp_path / "file", EXPECTED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 64 << 20


def changed(**changes) -> bytes:
    manifest = {
        "format": 1,
        "spec": SPEC.model_dump(mode="json"),
        "model": MODEL,
        "provenance": {},
        "files": {"model.safetensors": {"sha256": "0" * 64, "size": 1}},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = manifest
        for parent in parents:
            place = place[parent]
        place[last] = value
    return json.dumps(manifest).encode()


MALFORMED_MANIFESTS = {
    "empty": b"",
    "not JSON": b"world",
    "cut": changed()[:-20],
    "not UTF-8": b"\xff" + changed(),
    "a list": b"[]",
    "nested 100,000 deep": b"[" * 100_000,
    "deep inside the model": changed().replace(b'{"preset": "nano"}', b"[" * 100_000),
    "two mebibytes": changed(model={"a": "x" * (2 << 20)}),
    "newer format": changed(format=2),
    "format as text": changed(format="1"),
    "unknown field": changed(code="import os"),
    "no frame": changed(spec__frame_size=[0, 64]),
    "frame beyond all memory": changed(spec__frame_size=[1 << 40, 1 << 40]),
    "frame as text": changed(spec__frame_size=["64", "64"]),
    "three sides": changed(spec__frame_size=[64, 64, 3]),
    "no player": changed(spec__players=[]),
    "no reward": changed(spec__reward_values=[]),
    "infinite reward": changed(spec__reward_values=[0, 1]).replace(b"[0, 1]", b"[0, 1e999]"),
    "reward not a number": changed(spec__reward_values=[float("nan")]),
    "unknown kind of action": changed(spec__actions__kind="telepathic"),
    "action without a source": changed(spec__actions__source_actions=[4]),
    "key of no action": changed(spec__actions__keys={"FLY": ["f"]}),
    "threshold over 1": changed(spec__termination_threshold=1.5),
    "endless episode": changed(spec__max_episode_steps=0),
    "size as text": changed(files={"model.safetensors": {"sha256": "0" * 64, "size": "1"}}),
    "negative size": changed(files={"model.safetensors": {"sha256": "0" * 64, "size": -1}}),
    "short hash": changed(files={"model.safetensors": {"sha256": "0", "size": 1}}),
    "file outside": changed(files={"../../etc/passwd": {"sha256": "0" * 64, "size": 1}}),
}


@pytest.mark.parametrize("kind", MALFORMED_MANIFESTS)
def test_malformed_manifests_are_refused_in_200_ms(world, kind):
    (world / "world.json").write_bytes(MALFORMED_MANIFESTS[kind])

    begin = time.perf_counter()
    with pytest.raises((CorruptFile, ConfigMismatch), match=r"world\.json"):
        worlds.verify(world)
    assert time.perf_counter() - begin < 0.2


def test_the_manifest_of_the_malformed_ones_is_fine_without_its_change(world):
    (world / "world.json").write_bytes(changed())

    assert worlds.read_spec(world) == SPEC


def test_a_missing_file_is_told(world):
    (world / "model.safetensors").unlink()

    with pytest.raises(CorruptFile, match="missing"):
        worlds.verify(world)
    with pytest.raises(CorruptFile, match="missing"):
        worlds.read_tensors(world / "model.safetensors", EXPECTED)


def test_a_folder_without_a_manifest_is_no_world(tmp_path):
    with pytest.raises(UnknownWorld, match="no world"):
        worlds.verify(tmp_path)


def test_every_flipped_bit_of_the_weights_is_found(world):
    file, rng = world / "model.safetensors", random.Random(0)
    for _ in range(300):
        damaged = bytearray(GOOD)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)

        with pytest.raises(CorruptFile, match="sha256"):
            worlds.verify(world)


def test_random_damage_of_the_tensors_never_escapes_the_typed_errors(tmp_path):
    file, rng = tmp_path / "file", random.Random(1)
    for _ in range(500):
        damaged = bytearray(GOOD)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.randrange(len(damaged) + 1)] if rng.random() < 0.3 else damaged)
        try:
            read = worlds.read_tensors(file, EXPECTED)
        except LwmError:
            continue
        assert read["weight"].shape == (2, 3)


# -- interrupted saves -------------------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_world_files import write
from pathlib import Path
number = 0
while True:
    number += 1
    write(Path({path!r}), **{{"payload.bin": bytes([number % 256]) * {size}}})
    print(number, flush=True)
"""


def start_writer(path: Path, size: int, before: str = "") -> subprocess.Popen:
    code = before + WRITER.format(tests=str(Path(__file__).parent), path=str(path), size=size)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_a_whole_world(tmp_path):
    rng, path = random.Random(2), tmp_path / "world"
    write(path, **{"payload.bin": b"first"})
    (path / "README.md").write_text("a model card")
    for _ in range(10):
        writer = start_writer(path, size=1 << 20)
        writer.stdout.readline()  # the first save is through, the next ones are under way
        time.sleep(rng.random() * 0.05)
        writer.kill()
        writer.communicate()

        manifest = worlds.verify(worlds.find(path))
        assert manifest.files["payload.bin"].size == 1 << 20
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["world"]
    assert (path / "README.md").read_text() == "a model card"


def test_a_kill_between_the_two_renames_leaves_the_old_world_readable_and_writable(world):
    world.rename(world.with_name(".world.previous"))

    assert worlds.verify(worlds.find(world)).spec == SPEC
    write(world)
    assert worlds.verify(world).spec == SPEC
    assert [entry.name for entry in world.parent.iterdir()] == ["world"]


@pytest.mark.skipif(os.name == "nt", reason="no file size limits on Windows")
def test_a_full_disk_is_told_and_the_old_world_stays(world):
    before = worlds.verify(world)
    limited = f"import resource, signal; signal.signal({int(signal.SIGXFSZ)}, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"

    writer = start_writer(world, size=100_000, before=limited)
    _, told = writer.communicate(timeout=60)

    assert b"lwm_env.errors.StorageError" in told and b"intact" in told
    assert worlds.verify(world) == before
    assert [entry.name for entry in world.parent.iterdir()] == ["world"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="could not be written"):
        write(tmp_path / "file" / "world")
