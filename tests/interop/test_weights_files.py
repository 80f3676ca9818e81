"""Files of weights that lie: refused with one sentence, before anything is allocated from what they claim."""

from __future__ import annotations

import json
import resource
import struct

import numpy as np
import pytest
from safetensors.numpy import save, save_file

import xpcnn as xc
from xpcnn import layers as la
from xpcnn.interop import keras_file
from xpcnn.interop.weight_files import opened
from xpcnn.interop.weights import fitted

h5py = pytest.importorskip("h5py")

NET = la.Sequential(la.Conv2D(3, 3), la.BatchNorm(), la.Affine(4), input_shape=(2, 5, 6))
SHAPE = (2, 5, 6)
HUGE = 25_000_000_000  # numbers: 100 GB
NUMBERS = (0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1)


def values(seed=0):
    rng = np.random.default_rng(seed)
    model = xc.Model(NET, "cpu")
    there = model.parameters() | model.state()
    return {path: rng.standard_normal(array.shape).astype(np.float32) for path, array in there.items()}


def keras_arrays():
    """Return what Keras would write of the network, by layer."""
    found = values()
    kernel = found["conv1/weight"].transpose(2, 3, 1, 0)
    norm = [found[f"norm1/{part}"] for part in ("gamma", "beta", "mean", "var")]
    rows = found["affine1/weight"].reshape(3, 3, 4, 4).transpose(1, 2, 0, 3).reshape(36, 4)  # C, H, W -> H, W, C
    return {
        "conv2d": [kernel, found["conv1/bias"]],
        "batch_normalization": norm,
        "dense": [rows, found["affine1/bias"]],
    }


def write(path, change=None):
    """Write a file as Keras does, and change it."""
    with h5py.File(path, "w") as file:
        for name, arrays in keras_arrays().items():
            group = file.create_group(f"layers/{name}/vars")
            group.attrs["name"] = name
            for number, array in enumerate(arrays):
                group[str(number)] = array
        file.create_group("vars")
        if change is not None:
            change(file)
    return path


def load(path):
    return fitted(path, NET, SHAPE)


def test_the_file_that_all_others_differ_from_is_read(tmp_path):
    found = load(write(tmp_path / "m.weights.h5"))
    for path, array in values().items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def replaced(kind=None, **options):
    """Return a change that puts another dataset in the place of the first kernel."""

    def change(file):
        group = file["layers/conv2d/vars"]
        del group["0"]
        if kind is not None:
            group["0"] = kind(file)
        else:
            group.create_dataset("0", **options)

    return change


def looped(file):
    file["layers/conv2d/again"] = file["layers"]


def virtual(file):
    layout = h5py.VirtualLayout((3, 3, 2, 3), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3, 3, 2, 3))
    file["layers/conv2d/vars"].create_virtual_dataset("0", layout)


def keras_2(file):
    file.move("layers/conv2d/vars/0", "conv2d/conv2d/kernel:0")
    del file["layers"]
    file.attrs["layer_names"] = [b"conv2d"]


CHUNKS = {"chunks": (1_000_000,), "compression": "gzip"}
LIES = {
    "inflates": (replaced(shape=(HUGE,), dtype="f4", **CHUNKS), "in pieces, compressed or in another file"),
    "chunked": (replaced(shape=(3, 3, 2, 3), dtype="f4", chunks=(1, 1, 1, 1)), "in pieces, compressed"),
    "claims": (replaced(shape=(HUGE,), dtype="f4"), "larger than the file"),
    "absurd": (replaced(shape=(2**30, 2**30), dtype="f4"), "larger than the file"),
    "elsewhere": (
        replaced(shape=(3, 3, 2, 3), dtype="f4", external=[("/etc/passwd", 0, 216)]),
        "in pieces, compressed or in another file",
    ),
    "virtual": (lambda file: (replaced(lambda _: np.zeros(1))(file), file["layers/conv2d/vars"].pop("0"), virtual(file)),
                "in pieces, compressed or in another file"),
    "external link": (replaced(lambda file: h5py.ExternalLink("/etc/passwd", "/")), "newer format or has links"),
    "soft link": (replaced(lambda file: h5py.SoftLink("/layers/dense/vars/0")), "newer format or has links"),
    "one twice": (replaced(lambda file: file["layers/dense/vars/0"]), r"has shape|fits nothing"),
    "cyclic": (looped, "more groups, or deeper ones"),
    "text": (replaced(data="text"), r"has shape \(\)|fits nothing"),
    "vlen": (replaced(shape=(3, 3, 2, 3), dtype=h5py.vlen_dtype(np.float32)), "larger than the file, or than what is stored"),
    "objects": (replaced(shape=(3, 3, 2, 3), dtype=h5py.ref_dtype), "larger than the file, or than what is stored"),
    "compound": (replaced(data=np.zeros((3, 3, 2, 3), [("a", "f4"), ("b", "f4")])), "must hold floats"),
    "integers": (replaced(data=np.zeros((3, 3, 2, 3), np.int32)), "must hold floats, but conv2d/kernel is integers"),
    "nothing": (replaced(data=h5py.Empty("f4")), "an array has no shape"),
    "a group": (replaced(lambda file: file["layers/dense"]), "an array is in pieces"),
    "no weights": (lambda file: file.pop("layers"), "has no weights as Keras 3 writes them"),
    "Keras 2": (keras_2, "a model of Keras 2 can be loaded there and written with"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_an_hdf5_file_that_keras_would_not_write(name, tmp_path):
    change, says = LIES[name]
    path = write(tmp_path / "m.weights.h5", change)
    before = peak()
    with pytest.raises(xc.XpcnnError, match=says) as caught:
        load(path)
    assert peak() - before < 50_000_000
    assert len(str(caught.value)) < 1000


def test_groups_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_file, "MOST_LAYERS", 3)
    many = write(tmp_path / "m.weights.h5", lambda file: [file.create_group(f"layers/{n}") for n in range(20)])
    with pytest.raises(xc.DataError, match="more groups"):
        load(many)


@pytest.mark.parametrize("name", [np.arange(3), 5.0, "", h5py.Empty("S5"), ["a", "b"]])
def test_a_name_that_is_none_leaves_the_layers_class(name, tmp_path):
    def change(file):
        file["layers/conv2d/vars"].attrs["name"] = name

    np.testing.assert_array_equal(load(write(tmp_path / "m.weights.h5", change))["conv1/bias"], values()["conv1/bias"])


def test_a_name_in_bytes_that_are_no_text_is_refused(tmp_path):
    def change(file):
        file["layers/conv2d/vars"].attrs["name"] = b"\xff\xfe"

    with pytest.raises(xc.DataError, match=r"is not a whole file of Keras weights: .*invalid start byte"):
        load(write(tmp_path / "m.weights.h5", change))


def test_hdf5s_newer_format_is_refused_with_what_writes_the_older(tmp_path):
    with h5py.File(tmp_path / "m.weights.h5", "w", libver="latest") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2))
    with pytest.raises(xc.DataError, match="libver='earliest'"):
        load(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
def test_floats_of_every_width_and_byte_order_are_what_hdf5_wrote(kind, tmp_path, rng):
    expected = rng.standard_normal((3, 3, 2, 3)).astype(kind)
    found = load(write(tmp_path / "m.weights.h5", replaced(data=expected)))["conv1/weight"]
    np.testing.assert_array_equal(found, expected.transpose(3, 2, 0, 1))


def test_hundreds_of_layers_are_all_found(tmp_path):
    """So many that groups have trees of several levels, and texts several heaps."""
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for number in range(700):
            group = file.create_group(f"layers/dense_{number}/vars" if number else "layers/dense/vars")
            group["0"] = np.full((1, 1), number, np.float32)
            group.attrs["name"] = f"layer{number}-{'x' * (number % 50)}"
    net = la.Sequential(*(la.Affine(1, bias=False) for _ in range(700)), input_shape=(1,))
    found = fitted(tmp_path / "m.weights.h5", net, (1,))
    assert [int(found[f"affine{number}/weight"][0, 0]) for number in range(1, 701)] == list(range(700))
    with opened(tmp_path / "m.weights.h5") as (there, _):
        assert f"layer699-{'x' * 49}/kernel" in there


def test_a_text_that_claims_gigabytes_is_refused(tmp_path):
    """HDF5's own library allocates them; h5py took minutes over such a file."""
    path = write(tmp_path / "m.weights.h5")
    content = path.read_bytes()
    claimed = struct.pack("<IQ", len("conv2d"), content.index(b"GCOL"))
    assert claimed in content
    before = peak()
    for length in (7, 2**31, 2**32 - 1):
        path.write_bytes(content.replace(claimed, struct.pack("<I", length) + claimed[4:]))
        with pytest.raises(xc.DataError, match="a text is not there"):
            load(path)
    assert peak() - before < 50_000_000


@pytest.mark.parametrize("level", [0, 3, 255])
def test_a_tree_that_goes_round_in_circles_is_refused(level, tmp_path):
    path = write(tmp_path / "m.weights.h5")
    content = bytearray(path.read_bytes())
    at = content.index(b"TREE")
    content[at + 5] = level
    content[at + 6 : at + 8] = struct.pack("<H", 60)
    content[at + 24 : at + 24 + 16 * 60] = struct.pack("<2Q", 0, at) * 60
    path.write_bytes(content)
    with pytest.raises(xc.DataError, match="is not a whole file of Keras weights"):
        load(path)


def peak():
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mutated(content, rng, most):
    """Return bytes with some changed, some of them numbers of 8 bytes, or cut off."""
    if rng.random() < 0.1:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    for _ in range(rng.integers(1, most + 1)):
        place = int(rng.integers(len(content) - 8))
        kind = rng.integers(3)
        if kind == 0:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[place] = int(rng.integers(256))
        else:
            changed[place : place + 8] = struct.pack("<Q", NUMBERS[rng.integers(len(NUMBERS))])
    return bytes(changed)


def outcomes(content, path, count, most, rng):
    """Load mutations of a file; return what came of them. Anything but arrays or the package's errors fails here."""
    before, found, refused = peak(), [], 0
    for _ in range(count):
        path.write_bytes(mutated(content, rng, most))
        try:
            found.append(load(path))
        except xc.XpcnnError as error:
            assert "\n" not in str(error) or "say with names=" in str(error)  # noqa: PT017
            refused += 1
    assert peak() - before < 200_000_000
    return found, refused


def test_mutations_of_a_keras_file_are_refused_or_read(tmp_path, rng):
    content = write(tmp_path / "m.weights.h5").read_bytes()
    found, refused = outcomes(content, tmp_path / "n.weights.h5", 1500, 4, rng)
    assert refused > 300
    assert len(found) > 100  # what was changed were numbers, or bytes that nobody uses
    for arrays in found:
        assert {path: array.shape for path, array in arrays.items()} == {p: a.shape for p, a in values().items()}


def test_mutations_of_another_librarys_safetensors_are_refused_or_read(tmp_path, rng):
    found, refused = outcomes(save(values()), tmp_path / "n.safetensors", 1000, 3, rng)
    assert refused > 150
    assert len(found) > 50
    for arrays in found:
        assert all(arrays[path].shape == array.shape for path, array in values().items() if path in arrays)


def test_mutations_of_a_model_are_refused_or_change_nothing(tmp_path, rng):
    """A model of xpcnn has digests; a changed byte is never read as a weight."""
    model = xc.Model(NET, "cpu", seed=2)
    model.save(tmp_path / "m.safetensors")
    expected = model.parameters() | model.state()
    found, refused = outcomes((tmp_path / "m.safetensors").read_bytes(), tmp_path / "n.safetensors", 1000, 1, rng)
    assert refused > 900
    for arrays in found:
        for path, array in arrays.items():
            np.testing.assert_array_equal(array, expected[path])


def framed(header, data=b""):
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**8) + b"{" + b" " * 100,
        framed(b"[" * 100_000),
        framed({"conv1/weight": entry([HUGE], 0, 4 * HUGE)}, bytes(40)),
        framed({"conv1/weight": entry([2**33, 2**33], 0, 0)}),
        framed({"conv1/weight": entry([-1, 2], 0, 8)}, bytes(8)),
        framed({"conv1/weight": entry([2], 8, 0)}, bytes(8)),
        framed({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        framed({"a": entry([2], 0, 8)}, bytes(80)),
        framed({"a": entry([2], 0, 8, "F999")}, bytes(8)),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_file_made_by_hand_is_refused(content, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(content)
    before = peak()
    with pytest.raises(xc.DataError, match=r"m\.safetensors is"):
        load(tmp_path / "m.safetensors")
    assert peak() - before < 50_000_000


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    with pytest.raises(xc.DataError, match="does not exist"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(xc.DataError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(xc.XpcnnError, match="must be a mapping from name to array or a file's path, not 7"):
        load(7)


def test_a_checkpoint_is_no_model(tmp_path):
    trainer = xc.Trainer(xc.Model(NET, "cpu"), xc.optim.sgd(0.1))
    trainer.save(tmp_path / "c.safetensors")
    with pytest.raises(xc.DataError, match="is no model but a checkpoint"):
        load(tmp_path / "c.safetensors")


def test_no_array_is_read_before_all_shapes_fit(tmp_path, monkeypatch):
    there = values() | {"affine1/bias": np.zeros(5, np.float32)}
    save_file(there, tmp_path / "m.safetensors")
    monkeypatch.setattr("xpcnn.interop.weight_files._tensor", lambda *_: pytest.fail("an array was read"))
    with pytest.raises(xc.XpcnnError, match=r"affine1/bias takes \(4,\), but affine1/bias has shape \(5,\)"):
        load(tmp_path / "m.safetensors")
