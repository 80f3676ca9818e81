"""Which array goes where: names, maps of names, layouts, and what is said when they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xpcnn as xc
from xpcnn import layers as la
from xpcnn.interop.weights import fitted

NET = la.Sequential(
    ("stem", la.Sequential(la.Conv2D(3, 3), la.BatchNorm())), la.ReLU(), la.Affine(4), input_shape=(2, 5, 6)
)
SHAPE = (2, 5, 6)


def pytorch(conv="stem.conv1", norm="stem.norm1", dense="affine1", seed=0):
    """Return the arrays of that network as PyTorch has them."""
    rng = np.random.default_rng(seed)
    shapes = {
        f"{conv}.weight": (3, 2, 3, 3), f"{conv}.bias": (3,),
        f"{norm}.weight": (3,), f"{norm}.bias": (3,), f"{norm}.running_mean": (3,), f"{norm}.running_var": (3,),
        f"{dense}.weight": (4, 36), f"{dense}.bias": (4,),
    }  # fmt: skip
    arrays = {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | {f"{norm}.num_batches_tracked": np.int64(7)}


def check(found, there, conv="stem.conv1", norm="stem.norm1", dense="affine1"):
    names = {
        "stem/conv1/weight": f"{conv}.weight", "stem/conv1/bias": f"{conv}.bias",
        "stem/norm1/gamma": f"{norm}.weight", "stem/norm1/beta": f"{norm}.bias",
        "stem/norm1/mean": f"{norm}.running_mean", "stem/norm1/var": f"{norm}.running_var",
        "affine1/weight": f"{dense}.weight", "affine1/bias": f"{dense}.bias",
    }  # fmt: skip
    assert found.keys() == names.keys()
    for path, name in names.items():
        expected = there[name].T if path == "affine1/weight" else there[name]
        np.testing.assert_array_equal(found[path], expected, err_msg=path)


OTHER = {"conv": "features.0", "norm": "features.1", "dense": "classifier"}
WAYS = {
    "names": ({}, None),
    "shapes": (OTHER, None),
    "one first part": ({key: f"module.{value}" for key, value in zip(OTHER, ("stem.conv1", "stem.norm1", "affine1"), strict=True)}, None),
    "layers": (OTHER, {"features.0": "stem/conv1", "features.1": "stem.norm1", "classifier": "affine1"}),
    "arrays": (
        OTHER,
        {"features.0.weight": "stem/conv1/weight", "features.0.bias": "stem/conv1/bias", "features.1": "stem/norm1",
         "classifier.weight": "affine1/weight", "classifier.bias": "affine1.bias"},
    ),
    "beginnings": ({"conv": "net.a.conv1", "norm": "net.a.norm1", "dense": "net.affine1"}, {"net": "", "net.a": "stem"}),
    "function": (OTHER, lambda name: {"0": "stem/conv1", "1": "stem/norm1"}.get(name.split(".")[1], "affine1")),
    "function of arrays": (
        OTHER,
        lambda name: name.replace("features.0", "stem/conv1").replace("features.1", "stem/norm1").replace("classifier", "affine1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_say_where_arrays_go(way, tmp_path):
    called, names = WAYS[way]
    there = pytorch(**called)
    save_file({name: np.asarray(array) for name, array in there.items()}, tmp_path / "m.safetensors")
    for given, layout in ((there, "pytorch"), (there, None), (tmp_path / "m.safetensors", None)):
        check(fitted(given, NET, SHAPE, layout=layout, names=names), there, **called)


def test_what_is_mapped_to_none_is_left_out():
    there = pytorch() | {"head.weight": np.zeros(3, np.float32), "head.steps": np.int64(3)}
    with pytest.raises(xc.XpcnnError, match="fits nothing"):
        fitted(there, NET, SHAPE)
    check(fitted(there, NET, SHAPE, names={"head": None}), there)
    check(fitted(there, NET, SHAPE, names=lambda name: None if name.startswith("head") else name), there)


def test_statistics_may_stay_as_they_are():
    there = {name: array for name, array in pytorch().items() if "running" not in name}
    model = xc.Model(NET, "cpu")
    model.load_parameters(there, layout="pytorch")
    np.testing.assert_array_equal(model.parameters()["stem/norm1/gamma"], there["stem.norm1.weight"])
    np.testing.assert_array_equal(model.state()["stem/norm1/var"], np.ones(3))


def test_one_error_lists_all_that_does_not_fit():
    there = pytorch() | {"extra.weight": np.zeros(2, np.float32), "stem.conv1.bias": np.zeros((1, 3), np.float32)}
    del there["affine1.bias"]
    before = xc.Model(NET, "cpu")
    model = xc.Model(NET, "cpu")
    with pytest.raises(xc.XpcnnError) as caught:
        model.load_parameters(there, names={"stem.norm1.weight": "stem/norm7/gamma", "nothing": "here"})
    assert str(caught.value) == (
        "the weights do not fit the network: stem/norm1/gamma is missing; affine1/bias is missing; "
        "names has 'nothing', which is not there; stem.norm1.weight is unknown, also as stem/norm7/gamma; "
        "extra.weight is unknown; stem/conv1/bias takes (3,), but stem.conv1.bias has shape (1, 3)."
    )
    for path, array in before.parameters().items():
        np.testing.assert_array_equal(model.parameters()[path], array)


def test_a_table_shows_both_sides():
    there = pytorch(**OTHER)
    there["classifier.weight"] = np.zeros((4, 35), np.float32)
    with pytest.raises(xc.XpcnnError) as caught:
        fitted(there, NET, SHAPE)
    assert str(caught.value) == (
        "the weights fit the network neither by their names nor by their shapes; say with names= what is what.\n"
        "layers of the network that nothing fits:\n"
        "  affine1: weight (4, 36), bias (4,)\n"
        "given, but fits nothing:\n"
        "  classifier: weight (4, 35), bias (4,)"
    )


def test_a_thousand_faults_are_not_all_listed():
    there = {f"layer{number}.weight": np.zeros(2, np.float32) for number in range(1000)}
    for names in (None, {"layer1": None}):
        with pytest.raises(xc.XpcnnError, match=r"and 9\d\d more") as caught:
            fitted(there, NET, SHAPE, names=names)
        assert len(str(caught.value)) < 5000


def equal(*names):
    """Return arrays of affine layers of one shape."""
    return {f"{name}.weight": np.full((3, 3), number, np.float32) for number, name in enumerate(names)}


THREE = la.Sequential(*(la.Affine(3, bias=False) for _ in range(3)), input_shape=(3,))


@pytest.mark.parametrize(
    "names",
    [("2", "9", "10"), ("fc1", "fc2", "fc10"), ("a.1.fc", "a.2.fc", "a.11.fc"), ("dense", "dense_1", "dense_10"), ("a1b1", "a1b2", "a2b1")],
)  # fmt: skip
def test_layers_of_one_shape_go_by_number(names):
    there = equal(*names)
    for given in (there, dict(reversed(there.items())), dict(sorted(there.items()))):
        found = fitted(given, THREE, (3,), layout="pytorch")
        assert [int(found[f"affine{number}/weight"][0, 0]) for number in (1, 2, 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "names", [("first", "second", "third"), ("fc1", "fc2", "head"), ("fc", "fc1.a", "fc1.b"), ("fc1", "fc01", "fc3"), ("x", "x1", "x2")]
)  # fmt: skip
def test_layers_of_one_shape_without_numbers_are_refused(names):
    with pytest.raises(xc.XpcnnError, match="do not say which of several layers it is"):
        fitted(equal(*names), THREE, (3,), layout="pytorch")


BRANCHES = {
    "parallel": la.Sequential(la.Parallel([la.Affine(3, bias=False), la.Affine(3, bias=False)])),
    "residual": la.Residual(la.Affine(3, bias=False), la.Affine(3, bias=False)),
    "graph": la.Graph(
        [("a", la.Affine(3, bias=False), "input"), ("b", la.Affine(3, bias=False), "input"), ("c", la.Join("add"), ("a", "b"))]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_layers_of_one_shape_side_by_side_are_refused(name):
    with pytest.raises(xc.XpcnnError, match="do not say which of several layers it is"):
        fitted(equal("fc1", "fc2"), BRANCHES[name], (3,), layout="pytorch")


def test_layers_of_a_graph_in_sequence_go_by_number():
    nodes = [
        ("a", la.Affine(3, bias=False), "input"),
        ("relu", la.ReLU(), "a"),
        ("b", la.Affine(3, bias=False), "relu"),
    ]
    nodes += [("sum", la.Join("add"), ("a", "b")), ("z", la.Affine(3, bias=False), "sum")]
    found = fitted(equal("fc1", "fc2", "fc3"), la.Graph(nodes), (3,), layout="pytorch")
    assert [int(found[f"{name}/weight"][0, 0]) for name in "abz"] == [0, 1, 2]


def test_arrays_as_they_lie_here_are_not_guessed_at():
    model = xc.Model(NET, "cpu", seed=4)
    there = model.parameters() | model.state()
    found = fitted(there, NET, SHAPE, layout="xpcnn")
    for path, array in there.items():
        np.testing.assert_array_equal(found[path], array)
    renamed = {path.replace("affine1", "dense"): array for path, array in there.items()}
    with pytest.raises(
        xc.XpcnnError, match="affine1/weight is missing; affine1/bias is missing; dense/weight is unknown"
    ):
        fitted(renamed, NET, SHAPE, layout="xpcnn")
    found = fitted(renamed, NET, SHAPE, names={"dense": "affine1"})
    np.testing.assert_array_equal(found["affine1/weight"], there["affine1/weight"])


def test_a_model_takes_the_weights_of_a_models_file(arrays, tmp_path, rng):
    x = rng.random((2, *SHAPE), np.float32)
    first = xc.Model(NET, arrays.backend, seed=4)
    first.save(tmp_path / "m.safetensors")
    second = xc.Model(NET, arrays.backend, seed=5)
    assert np.abs(first.predict(x) - second.predict(x)).max() > 0.1
    second.load_parameters(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(second.predict(x), first.predict(x))
    second.load_parameters(pytorch(), layout="pytorch")
    x64 = x.astype(np.float64)
    expected = xc.Model(NET, "cpu", values=fitted(pytorch(), NET, SHAPE)).predict(x64)
    np.testing.assert_allclose(second.predict(x), expected, rtol=0, atol=1e-4)


def test_what_safetensors_itself_reads_is_taken(tmp_path):
    model = xc.Model(NET, "cpu", seed=4)
    model.save(tmp_path / "m.safetensors")
    other = xc.Model(NET, "cpu", seed=5)
    other.load_parameters(load_file(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(other.parameters()["affine1/weight"], model.parameters()["affine1/weight"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layout": "tensorflow"}, "layout must be one of xpcnn, pytorch, keras, not 'tensorflow'"),
        ({"names": 3}, "names must be a mapping or a function, not 3"),
        ({"names": {"stem": 5}}, "names must give a path or None, but gives 5 for stem.conv1.weight"),
        ({"names": lambda name: 5}, "names must give a path or None, but gives 5"),
        ({"names": {"stem.norm1": "stem/conv1"}}, "stem/conv1/weight is given twice, by stem.conv1.weight and stem.norm1.weight"),
    ],
)  # fmt: skip
def test_arguments_that_are_wrong(options, says):
    with pytest.raises(xc.XpcnnError, match=says):
        fitted(pytorch(), NET, SHAPE, **options)


def test_keras_order_of_rows_is_the_weights_alone(rng):
    """An affine layer with as many outputs as rows: its bias is one of outputs. The oracle is Keras' arithmetic."""
    net = la.Sequential(la.Flatten(), la.Affine(12), la.Affine(3), input_shape=(3, 2, 2))
    kernels, biases = [rng.random((12, 12)), rng.random((12, 3))], [rng.random(12), rng.random(3)]
    model = xc.Model(net, "cpu", dtype="float64")
    names = {
        f"affine{i + 1}/{what}": values[i] for i in (0, 1) for what, values in (("kernel", kernels), ("bias", biases))
    }
    model.load_parameters(names, layout="keras")
    x = rng.random((5, 3, 2, 2))
    y = x.transpose(0, 2, 3, 1).reshape(5, 12)
    for kernel, bias in zip(kernels, biases, strict=True):
        y = y @ kernel + bias
    np.testing.assert_allclose(model.predict(x), y, rtol=0, atol=1e-12)


def test_groups_of_flattened_features_are_refused_for_keras(rng):
    net = la.Sequential(la.Flatten(), la.GroupNorm(4), la.Affine(3), input_shape=(3, 2, 2))
    shapes = {"norm1/gamma": (12,), "norm1/beta": (12,), "affine1/kernel": (12, 3), "affine1/bias": (3,)}
    with pytest.raises(xc.XpcnnError, match="cannot be taken over"):
        xc.Model(net, "cpu").load_parameters({path: rng.random(s) for path, s in shapes.items()}, layout="keras")


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 4, 5), (3, 4, 4)])
def test_keras_has_norms_of_places_alone_as_they_are_here(rng, shape):
    net = la.Sequential(la.LayerNorm(axes=(2, 3)), input_shape=shape)
    arrays = {"norm1/gamma": rng.random(shape[1:]), "norm1/beta": rng.random(shape[1:])}
    found = fitted(arrays, net, shape, layout="keras")
    for path, array in arrays.items():
        np.testing.assert_array_equal(found[path], array)


def test_half_of_the_running_statistics_is_refused(rng):
    net = la.Sequential(la.Conv2D(4, 1), la.BatchNorm(), input_shape=(2, 3, 3))
    model = xc.Model(net, "cpu")
    state = {"conv1.weight": rng.random((4, 2, 1, 1)), "conv1.bias": rng.random(4)}
    state |= {f"norm1.{name}": rng.random(4) for name in ("weight", "bias", "running_var")}
    with pytest.raises(xc.XpcnnError, match="norm1/mean is missing"):
        model.load_parameters(state, layout="pytorch")
    model.load_parameters(state | {"norm1.running_mean": rng.random(4)}, layout="pytorch")


def test_dotted_names_without_a_layout_get_a_hint(rng):
    model = xc.Model(la.Sequential(la.Affine(3), input_shape=(2,)), "cpu")
    with pytest.raises(xc.XpcnnError, match="layout='pytorch'"):
        model.load_parameters({"affine1.weight": rng.random((3, 2)), "affine1.bias": rng.random(3)})
