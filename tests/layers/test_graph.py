"""Graphs: the same numbers as the containers they stand for, no more kept or computed than needed, and what is refused."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, field
from math import prod

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models, optim
from xpcnn.layers import watched
from xpcnn.layers.fold import FoldedStep
from xpcnn.layers.fused import ConvReLUPool, NormReLU
from xpcnn.random import Key
from xpcnn.report.profile import profiling
from xpcnn.verify.gradients import check_layers

C, ID = la.Conv2D, la.Identity()
NETS = {
    "resnet20": models.resnet20((3, 8, 8), 4, blocks=1),
    "resnet8": models.resnet8((1, 12, 12), 4, width=4),
    "mobilenet_v2": models.mobilenet_v2((3, 16, 16), 4, width=0.25, dropout=0.0),
    "densenet_bc": models.densenet_bc((3, 8, 8), 4, depth=16, growth=4),
    "lenet5": models.lenet5((1, 12, 12), 4),
}


def as_graph(net):
    """Return a graph of a network's innermost layers, named by their paths with dots, and its joins."""
    nodes = []

    def lay(layer, path, source):
        if isinstance(layer, la.Sequential):
            for name, child in layer.layers:
                source = lay(child, f"{path}.{name}" if path else name, source)
            return source
        if hasattr(layer, "named_branches"):
            ends = tuple(lay(child, f"{path}.{name}", source) for name, child in layer.named_branches())
            nodes.append((path, la.Join("concat" if layer.joins() else "add"), ends))
        else:
            nodes.append((path, layer, source))
        return path

    lay(net, "", "input")
    return la.Graph(nodes, input_shape=net.input_shape)


def dotted(arrays):
    """Return arrays by the graph's paths."""
    return {
        "/".join((path.rpartition("/")[0].replace("/", "."), path.rpartition("/")[2])): a for path, a in arrays.items()
    }


def drawn(net, shape, dtype="float64", seed=0):
    """Return parameters and state whose biases, scales and statistics are no zeros and ones."""
    rng = np.random.default_rng(seed)
    params, state = net.initial_parameters(Key(0), shape), net.initial_state(Key(0), shape)
    made = [{path: value + 0.1 * rng.random(value.shape) for path, value in part.items()} for part in (params, state)]
    return [{path: np.asarray(value, dtype) for path, value in part.items()} for part in made]


def near(found, expected, limit=1e-12):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit * max(1.0, np.abs(expected).max(initial=0.0)))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETS)
def test_a_graph_computes_what_its_containers_do(name, train, rng):
    net, shape = NETS[name], NETS[name].input_shape
    graph = as_graph(net)
    params, state = drawn(net, shape)
    x, dy = rng.standard_normal((3, *shape)), rng.standard_normal((3, *net.output_shape(shape)))
    assert graph.output_shape(shape) == net.output_shape(shape)
    assert {p: d.shape for p, d in graph.parameters(shape).items()} == {
        p: d.shape for p, d in dotted(net.parameters(shape)).items()
    }
    y, saved, new = net.forward(params, state, x, train=train)
    found, kept, changed = graph.forward(dotted(params), dotted(state), x, train=train)
    near(found, y)
    assert list(changed) == list(graph.state(shape))
    for path, value in dotted(new).items():
        near(changed[path], value)
    dx, grads = net.backward(params, dy, saved)
    for need_dx in (True, False):
        given, own = graph.backward(dotted(params), dy, kept, need_dx=need_dx)
        assert list(own) == list(dotted(params))
        for path, gradient in dotted(grads).items():
            near(own[path], gradient, 1e-10)
        assert given is None if not need_dx else near(given, dx, 1e-10) is None
    near(graph.predict(dotted(params), dotted(state), x), net.predict(params, state, x))


def test_a_graph_costs_what_its_containers_do():
    for net in NETS.values():
        ours, theirs = as_graph(net).cost(net.input_shape), net.cost(net.input_shape)
        assert ours == theirs
        graph = xc.Model(as_graph(net), "cpu").footprint()
        whole = xc.Model(net, "cpu").footprint()
        assert (graph.parameters, graph.gradients, graph.kept) == (whole.parameters, whole.gradients, whole.kept)
        assert 0.8 < graph.temporaries / whole.temporaries < 1.6
        assert graph.whole.split()[1:] == [word.replace("/", ".") for word in whole.whole.split()[1:]]


def test_chains_are_computed_together_where_nobody_looks_between():
    """conv-norm-relu and conv-relu-pool are one; where relu's input is used twice, or the conv's, they are not."""
    graph = la.Graph([
        ("c1", C(4, 3, padding=1), "input"), ("n1", la.BatchNorm(), "c1"), ("r1", la.ReLU(), "n1"),
        ("c2", C(4, 3, padding=1), "r1"), ("n2", la.BatchNorm(), "c2"), ("r2", la.ReLU(), "n2"), ("a2", la.Join("add"), ("n2", "r2")),
        ("c3", C(4, 3, padding=1), "a2"), ("n3", la.BatchNorm(), "c3"), ("a3", la.Join("add"), ("c3", "n3")), ("r3", la.ReLU(), "a3"),
        ("c4", C(4, 3, padding=1), "r3"), ("r4", la.ReLU(), "c4"), ("p4", la.MaxPool2D(2), "r4"),
    ])  # fmt: skip
    together = {step[0]: type(step[1]) for step, _, _ in graph._steps}
    assert together["n1"] is NormReLU
    assert together["c4"] is ConvReLUPool
    assert {"n2", "r2", "n3", "r3"} <= set(together)
    assert {"r1", "r4", "p4"}.isdisjoint(together)
    folded = [place.step.name for place in graph._prediction if isinstance(place.step, FoldedStep)]
    assert folded == ["c1", "c2"]
    assert [[name for name, _, _ in chain] for chain in graph.chains] == [
        ["c1", "n1", "r1", "c2", "n2"], ["r2"], ["a2", "c3"], ["n3"], ["a3", "r3", "c4", "r4", "p4"],
    ]  # fmt: skip


def test_gradients_are_numerical_ones():
    gate = [
        ("m", la.GlobalAvgPool(), "x"),
        ("t", la.Reshape((3, 1, 1)), "m"),
        ("s", la.Scale((3, 1, 1), shift=True), "t"),
        ("g", la.Sigmoid(), "s"),
    ]
    graph = la.Graph([
        ("x", C(3, 3, padding=1), "input"), *gate, ("gated", la.Join("multiply"), ("g", "x")),
        ("row", C(3, (4, 1)), "x"), ("less", la.Join("subtract"), ("gated", "row")), ("square", la.Join("multiply"), ("less", "less")),
        ("all", la.Join("concat"), ("square", "input", "less")), ("up", la.Upsample2D((1, 2)), "all"), ("pad", la.Pad2D(1, 0.5), "up"),
        ("norm", la.BatchNorm(), "pad"), ("tanh", la.Tanh(), "norm"), ("sum", la.Join("add"), ("tanh", "norm", "pad")),
    ])  # fmt: skip
    for shape in ((2, 4, 3), (1, 4, 1)):
        report = xc.gradcheck(graph, shape)
        assert report, report
        assert len(report.checks) == len(graph.parameters(shape)) + 1


def test_a_value_used_several_times_is_given_the_sum_of_its_gradients(arrays):
    """y = (x·x - x) joined to x, by whole numbers: dy/dx = g1·(2x - 1) + g2."""
    graph = la.Graph([
        ("again", ID, "input"), ("square", la.Join("multiply"), ("input", "again")), ("less", la.Join("subtract"), ("square", "again")),
        ("both", la.Join("concat"), ("less", "input")),
    ])  # fmt: skip
    x = arrays(np.array([[1.0, -2.0], [3.0, 5.0]]))
    y, saved, state = graph.forward({}, {}, x)
    arrays.check(y, np.array([[0, 6, 1, -2], [6, 20, 3, 5]]), x, 0.0)
    dx, grads = graph.backward({}, arrays(np.array([[1.0, 10.0, 100.0, 1000.0]] * 2)), saved)
    arrays.check(dx, np.array([[1 + 100, -50 + 1000], [5 + 100, 90 + 1000]]), x, 0.0)
    assert grads == state == {}
    arrays.check(graph.predict({}, {}, x), np.array([[0, 6, 1, -2], [6, 20, 3, 5]]), x, 0.0)
    arrays.check(x, np.array([[1, -2], [3, 5]]), x, 0.0)


@pytest.mark.parametrize("how", ["add", "subtract", "multiply"])
def test_stretched_axes_are_added_up_backward(arrays, how):
    """Shapes (2, 1, 3) and (1, 4, 1) make (2, 4, 3), of examples; the numbers are NumPy's in float64."""
    rng = np.random.default_rng(3)
    a, b, dy = (rng.integers(-4, 5, shape).astype(float) for shape in ((5, 2, 1, 3), (5, 1, 4, 1), (5, 2, 4, 3)))
    join = la.Join(how)
    assert join.output_shape(((2, 1, 3), (1, 4, 1))) == (2, 4, 3)
    y, saved, _ = join.forward({}, {}, (arrays(a), arrays(b)))
    (da, db), _ = join.backward({}, arrays(dy), saved)
    ga, gb = (dy * b, dy * a) if how == "multiply" else (dy, -dy if how == "subtract" else dy)
    arrays.check(y, {"add": a + b, "subtract": a - b, "multiply": a * b}[how], y, 0.0)
    arrays.check(da, ga.sum(2, keepdims=True), y, 0.0)
    arrays.check(db, gb.sum((1, 3), keepdims=True), y, 0.0)
    assert join.backward({}, arrays(dy), saved, need_dx=False) == (None, {})


def test_an_empty_batch_passes_all_joins(arrays):
    graph = la.Graph([
        ("a", la.GlobalAvgPool(), "input"), ("b", la.Reshape((2, 1, 1)), "a"), ("c", la.Join("multiply"), ("input", "b")),
        ("s", la.Scale((2, 1, 1), shift=True), "c"), ("u", la.Upsample2D(2), "s"), ("p", la.Pad2D(1), "u"), ("d", la.Join("add"), ("p", "p", "b")),
        ("e", la.Join("subtract"), ("d", "b")), ("f", la.Join("concat"), ("e", "d")),
    ])  # fmt: skip
    params = {path: arrays(p) for path, p in graph.initial_parameters(Key(0), (2, 3, 3)).items()}
    y, saved, _ = graph.forward(params, {}, arrays(np.zeros((0, 2, 3, 3))))
    assert tuple(y.shape) == (0, 4, 8, 8) == tuple(graph.predict(params, {}, arrays(np.zeros((0, 2, 3, 3)))).shape)
    dx, grads = graph.backward(params, y, saved)
    assert tuple(dx.shape) == (0, 2, 3, 3)
    for gradient in grads.values():
        arrays.check(gradient, np.zeros((2, 1, 1)), y, 0.0)


@dataclass(frozen=True)
class Traced(la.Identity):
    """Copies its input; counts its backward calls and the outputs that are still alive."""

    name: str
    alive: dict = field(default_factory=dict, hash=False, compare=False)
    most: list = field(default_factory=list, hash=False, compare=False)
    backwards: list = field(default_factory=list, hash=False, compare=False)

    def forward(self, params, state, x, *, train=False, key=None):
        y = x.copy()
        self.alive[self.name] = weakref.ref(y)
        self.most.append(sorted(name for name, ref in self.alive.items() if ref() is not None))
        return y, None, state

    def backward(self, params, dy, saved, *, need_dx=True):
        self.backwards.append((self.name, need_dx))
        return dy if need_dx else None, {}


def traced(links):
    """Return a graph of traced layers, and joins where a node has several inputs."""
    seen = {"alive": {}, "most": [], "backwards": []}
    nodes = [
        (name, Traced(name, **seen) if isinstance(inputs, str) else la.Join("add"), inputs)
        for name, inputs in links.items()
    ]
    return nodes, seen


LINKS = {
    "a": "input", "b": "a", "c": "b", "d": "b", "j": ("c", "d"), "e": "j", "f": "a", "g": "e", "k": ("g", "f"), "h": "k",
}  # fmt: skip


@pytest.mark.parametrize("way", ["predict", "forward"])
def test_values_live_until_their_last_use(way):
    """Worked out by hand; b goes with d, which is the last to take it; a waits for f."""
    nodes, seen = traced(LINKS)
    getattr(la.Graph(nodes), way)({}, {}, np.ones((2, 3)))
    expected = ["a", "ab", "abc", "abcd", "ae", "aeg", "afg", "h"]
    assert ["".join(alive) for alive in seen["most"]] == expected


def test_without_dx_nothing_runs_that_no_parameter_needs(monkeypatch):
    asked, own = [], la.Affine.backward

    def backward(self, params, dy, saved, *, need_dx=True):
        asked.append(need_dx)
        return own(self, params, dy, saved, need_dx=need_dx)

    monkeypatch.setattr(la.Affine, "backward", backward)
    nodes, seen = traced(LINKS)
    graph = la.Graph([*nodes[:7], ("w", la.Affine(3), "f"), *nodes[7:8], ("k", la.Join("add"), ("g", "w")), nodes[9]])
    params = graph.initial_parameters(Key(0), (3,))
    y, saved, _ = graph.forward(params, {}, np.ones((2, 3)))
    dx, grads = graph.backward(params, y, saved, need_dx=False)
    assert dx is None
    assert list(grads) == ["w/weight", "w/bias"]
    assert seen["backwards"] == [("h", True)]
    assert asked == [False]
    seen["backwards"].clear()
    dx, _ = graph.backward(params, y, saved)
    assert dx.shape == (2, 3)
    assert asked == [False, True]
    assert sorted(name for name, _ in seen["backwards"]) == list("abcdefgh")
    assert la.Graph(nodes).backward({}, y, la.Graph(nodes).forward({}, {}, y)[1], need_dx=False) == (None, {})


def test_random_numbers_are_those_of_the_nodes_names(rng):
    x, layer = rng.standard_normal((4, 50)), la.Dropout(0.5)
    graph = la.Graph([("one", layer, "input"), ("two", layer, "input"), ("j", la.Join("concat"), ("one", "two"))])
    y, saved, _ = graph.forward({}, {}, x, train=True, key=Key(7))
    one, two = (la.Sequential((name, layer)).forward({}, {}, x, train=True, key=Key(7))[0] for name in ("one", "two"))
    np.testing.assert_array_equal(y, np.concatenate([one, two], axis=1))
    assert (one != two).any()
    np.testing.assert_array_equal(graph.backward({}, np.ones_like(y), saved)[0], 2.0 * ((one != 0) + 0.0 + (two != 0)))


def test_a_complaint_names_the_node():
    graph = la.Graph([("first", ID, "input"), ("squeeze", C(2, 3), "first")])
    with pytest.raises(xc.XpcnnError, match=r"^layer squeeze: x must have the axes \(N, C, H, W\)"):
        graph.forward(graph.initial_parameters(Key(0), (1, 4, 4)), {}, np.ones((2, 4)))
    with pytest.raises(xc.XpcnnError, match=r"^layer squeeze does not fit its input \(1, 2, 4\): .*kernel"):
        graph.output_shape((1, 2, 4))
    join = la.Graph([("a", C(2, 1), "input"), ("b", C(3, 1), "input"), ("sum", la.Join("add"), ("a", "b"))])
    with pytest.raises(xc.XpcnnError, match=r"^layer sum does not fit .*\(2, 4, 4\) and \(3, 4, 4\) must agree"):
        join.output_shape((1, 4, 4))
    with pytest.raises(xc.XpcnnError, match=r"^backward gave no gradient of b/extra"):
        graph.backward({"b/extra": np.ones(1)}, np.ones((1, 2, 2, 2)), [None, None], need_dx=False)


TWO = (("a", ID, "input"), ("b", ID, "input"))
WRONG = {
    "nothing": ((), ["at least one node"]),
    "no sequence": (ID, ["sequence", "Identity"]),
    "a layer alone": ([ID], ["(name, layer, inputs)", "Identity"]),
    "no inputs": ([("a", ID)], ["(name, layer, inputs)"]),
    "no layer": ([("a", "relu", "input")], ["'relu'"]),
    "empty inputs": ([("a", ID, ())], ["inputs of node a", "()"]),
    "numbers": ([("a", ID, (0,))], ["inputs of node a", "(0,)"]),
    "a slash": ([("a/b", ID, "input")], ["without '/'", "'a/b'"]),
    "the input's name": ([("input", ID, "input")], ["'input'"]),
    "an unknown one": ([("a", ID, "input"), ("b", ID, "c")], ["node b takes c", "no earlier node"]),
    "a later one": ([("a", ID, "b"), ("b", ID, "a")], ["node a takes b", "no earlier node"]),
    "itself": ([("a", ID, "a")], ["node a takes a"]),
    "twice": ([*TWO, ("a", la.Join("add"), ("a", "b"))], ["a occurs more than once"]),
    "unused": ([*TWO, ("c", ID, "b")], ["c does not need a:"]),
    "several unused": ([*TWO, ("c", ID, "a"), ("d", ID, "input")], ["d does not need a, b, c:"]),
    "several without a join": ([*TWO, ("c", ID, ("a", "b"))], ["node c (Identity) takes one input", "a, b"]),
    "a join of one": ([("a", la.Join("add"), "input")], ["node a (Join) takes several inputs"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_graph_is_refused(case):
    nodes, says = WRONG[case]
    with pytest.raises(xc.XpcnnError) as caught:
        la.Graph(nodes)
    for part in says:
        assert part in str(caught.value)
    assert str(caught.value).endswith(".")


def test_the_output_must_be_a_node_that_needs_all_others():
    assert la.Graph(TWO[:1], output="a") == la.Graph(TWO[:1])
    with pytest.raises(xc.XpcnnError, match="output must be the name of a node, not 'z'"):
        la.Graph(TWO[:1], output="z")
    with pytest.raises(xc.XpcnnError, match="the output a does not need b"):
        la.Graph([("a", ID, "input"), ("b", ID, "a")], output="a")
    with pytest.raises(xc.XpcnnError, match="input_shape"):
        la.Graph(TWO[:1], input_shape=(3, 0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: la.Join("divide"), ["add, concat, subtract, multiply", "'divide'"]),
        (lambda: la.Join("add").output_shape((3, 4, 4)), ["node of a Graph", "(3, 4, 4)"]),
        (lambda: la.Join("subtract").output_shape(((2,), (2,), (2,))), ["two values, not 3"]),
        (lambda: la.Join("multiply").output_shape(((2, 4), (4,))), ["(2, 4)", "(4,)"]),
        (lambda: la.Join("concat").output_shape(((2, 4), (2, 5))), ["(2, 4), (2, 5)", "joined"]),
        (lambda: la.Sequential(la.Join("add")).output_shape((3, 4, 4)), ["layer join1", "node of a Graph"]),
        (lambda: la.Scale((2, 1)).output_shape((3, 4)), ["(2, 1)", "(3, 4)"]),
        (lambda: la.Scale((3, 1, 1)).output_shape((3,)), ["(3, 1, 1)", "(3,)"]),
        (lambda: la.Scale(4).output_shape((4,)), ["(8, 1, 1)", "not 4"]),
        (lambda: la.Scale((0,)).output_shape((4,)), ["Scale's shape", "not 0"]),
        (lambda: la.Scale(scale=False).output_shape((4,)), ["scale=True", "shift=True"]),
        (lambda: la.Reshape((3, 5)).output_shape((4, 4)), ["(4, 4)", "16", "(3, 5)"]),
        (lambda: la.Reshape((-1, 5)).output_shape((4, 4)), ["(-1, 5)"]),
        (lambda: la.Reshape((-1, -1)).output_shape((4, 4)), ["at most once", "(-1, -1)"]),
        (lambda: la.Reshape(16).output_shape((4, 4)), ["not 16"]),
        (lambda: la.Reshape((-2, 8)).output_shape((4, 4)), ["Reshape's sizes", "-2"]),
        (lambda: la.Pad2D(-1).output_shape((1, 4, 4)), ["padding", "0 or more", "-1"]),
        (lambda: la.Pad2D("same").output_shape((1, 4, 4)), ["padding", "'same'"]),
        (lambda: la.Pad2D(1, float("nan")).output_shape((1, 4, 4)), ["value", "nan"]),
        (lambda: la.Pad2D(1).output_shape((4, 4)), ["(C, H, W)", "(4, 4)"]),
        (lambda: la.Upsample2D(0).output_shape((1, 4, 4)), ["factor", "0"]),
        (lambda: la.Upsample2D(1.5).output_shape((1, 4, 4)), ["factor", "1.5"]),
        (lambda: la.Upsample2D(2).output_shape((4, 4)), ["(C, H, W)", "(4, 4)"]),
        (lambda: la.Clip().output_shape((4,)), ["needs a bound"]),
        (lambda: la.Clip(2, 1).output_shape((4,)), ["low=2", "high=1"]),
        (lambda: la.HardSigmoid("steep").output_shape((4,)), ["alpha", "'steep'"]),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_named(make, says):
    with pytest.raises(xc.XpcnnError) as caught:
        make()
    for part in says:
        assert part in str(caught.value)


def test_padding_with_minus_infinity_loses_every_maximum():
    net = la.Sequential(la.Pad2D(1, float("-inf")), la.MaxPool2D(3, stride=2))
    x = -np.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    y, saved, _ = net.forward({}, {}, x)
    np.testing.assert_array_equal(y, la.MaxPool2D(3, stride=2, padding=1).forward({}, {}, x)[0])
    dx, _ = net.backward({}, np.ones_like(y), saved)
    np.testing.assert_array_equal(dx[0, 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_graph_survives_json_and_a_file(tmp_path, rng):
    net = NETS["resnet20"]
    graph = as_graph(net)
    again = la.from_config(json.loads(json.dumps(la.to_config(graph), allow_nan=False)))
    assert again == graph
    assert hash(again) == hash(graph)
    model = xc.Model(graph, "cpu", seed=3)
    model.save(tmp_path / "m.safetensors")
    loaded = xc.Model.load(tmp_path / "m.safetensors", "cpu")
    assert loaded.net == graph
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))


def test_a_graph_trains_as_its_containers_do(rng):
    x, t = rng.standard_normal((8, 3, 8, 8)).astype(np.float32), np.arange(8) % 4
    net = NETS["resnet20"]
    ours, theirs = xc.Model(as_graph(net), "cpu", dtype="float64"), xc.Model(net, "cpu", dtype="float64")
    ours.load_parameters(dotted(theirs.parameters()))
    losses = []
    for model in (ours, theirs):
        trainer = xc.Trainer(model, optim.sgd(0.05, 0.9))
        losses.append([float(trainer.step(x, t)) for _ in range(4)])
    np.testing.assert_allclose(*losses, rtol=1e-9)
    for path, value in dotted(theirs.parameters() | theirs.state()).items():
        near((ours.parameters() | ours.state())[path], value, 1e-9)


def test_its_summary_names_nodes_and_adds_up():
    net = NETS["densenet_bc"]
    graph = as_graph(net)
    ours, theirs = (xc.Model(part, "cpu").summary() for part in (graph, net))
    assert ours.splitlines()[-1].split()[1:] == theirs.splitlines()[-1].split()[1:]
    fields = {line.split()[0]: line.split()[-3:] for line in ours.splitlines() if "Conv2D" in line}
    nested = [line.split() for line in theirs.splitlines() if "Conv2D" in line]
    assert [row[-3:] for row in nested] == list(fields.values())


def test_what_waits_for_others_is_planned_for():
    """While c is made of b, a waits: 2000 numbers."""
    shape = (1, 20, 50)
    chain = [
        ("a", la.PadChannels(2), "input"),
        ("b", la.Sigmoid(), "a"),
        ("c", la.Sigmoid(), "b"),
        ("d", la.Sigmoid(), "c"),
    ]
    alone = xc.Model(la.Graph([*chain, ("j", ID, "d")]), "cpu", input_shape=shape).footprint()
    waiting = xc.Model(la.Graph([*chain, ("j", la.Join("add"), ("d", "a"))]), "cpu", input_shape=shape).footprint()
    one = 4 * prod(shape)
    assert waiting.temporaries - alone.temporaries == 2 * one


def test_profiles_name_nodes_that_run_together(rng):
    graph = as_graph(models.resnet20((3, 8, 8), 4, blocks=1))
    model = xc.Model(graph, "cpu")
    before = model.net
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    trainer = xc.Trainer(model, optim.sgd(0.1))
    with profiling(model) as profile:
        trainer.step(x, np.zeros(2, np.int64))
    assert model.net is before
    paths = [row.path for row in profile.rows]
    assert "stem.norm1+stem.relu1" in paths
    assert paths[-1] == "net"
    assert sorted(name for path in paths[:-1] for name in path.split("+")) == sorted(name for name, _, _ in graph.nodes)
    assert all(profile.layers.of(path, way).calls == 1 for path in paths for way in ("forward", "backward"))
    products = sum(profile.layers.of(path, "forward").products for path in paths)
    assert products == 2 * graph.cost((3, 8, 8)).multiply_adds


def test_watched_graphs_are_as_they_were(rng):
    graph, shape = as_graph(NETS["resnet20"]), (3, 8, 8)
    params, state = drawn(graph, shape)
    x = rng.standard_normal((2, *shape))
    seen = watched.outputs(graph, shape, params, state, x)
    assert list(seen) == [name for name, _, _ in graph.nodes]
    near(seen["affine1"], graph.predict(params, state, x))
    near(seen["stem.relu1"], np.maximum(seen["stem.norm1"], 0))


def test_graphs_record_on_cuda(arrays, rng):
    """Training with and without a recording gives the same numbers; other backends have nothing to record with."""
    if arrays.id not in ("numpy-as-cuda", "cupy"):
        pytest.skip("there is nothing to record with")
    graph = la.Graph([
        ("c", C(4, 3, padding=1), "input"), ("n", la.BatchNorm(), "c"), ("h", la.HardSwish(), "n"), ("m", la.GlobalAvgPool(), "h"),
        ("t", la.Reshape((4, 1, 1)), "m"), ("s", la.Scale((4, 1, 1), shift=True), "t"), ("g", la.HardSigmoid(), "s"),
        ("x", la.Join("multiply"), ("h", "g")), ("k", la.Clip(-1, 1), "x"), ("u", la.Upsample2D(2), "k"), ("p", la.Pad2D(1, 0.5), "u"),
        ("j", la.Join("subtract"), ("p", "s")), ("y", la.Affine(3), "j"),
    ], input_shape=(2, 6, 6))  # fmt: skip
    x, t = rng.integers(0, 256, (12, 2, 6, 6), np.uint8), rng.integers(0, 3, 12)
    made = []
    for capture in ("auto", "off"):
        trainer = xc.Trainer(xc.Model(graph, arrays.backend), optim.adagrad(0.01), capture=capture)
        trainer.fit((x, t), epochs=2, batch_size=5)
        assert trainer.capture_note == ""
        made.append(trainer.model.parameters())
    for path, value in made[0].items():
        np.testing.assert_array_equal(arrays.backend.to_numpy(value), arrays.backend.to_numpy(made[1][path]))


def test_each_layer_but_the_joins_is_checked_alone():
    graph = as_graph(NETS["resnet20"])
    reports = list(check_layers(graph, (3, 8, 8)))
    assert [path for path, _, _ in reports] == [n for n, layer, _ in graph.nodes if not isinstance(layer, la.Join)]
    assert all(report for _, _, report in reports)


@pytest.mark.parametrize("make", [optim.sgd, optim.adam])
def test_a_single_number_is_trained_on_every_backend(arrays, make, tmp_path):
    """y = a·x + b with one a and one b for all of an example, and another pair for each channel."""
    if arrays.id == "jax":
        pytest.skip("JAX compiles every operation anew")
    net = la.Sequential(la.Scale(shift=True), la.Scale((2, 1, 1), shift=True), la.Flatten(), input_shape=(2, 1, 2))
    model = xc.Model(net, arrays.backend)
    trainer = xc.Trainer(model, make(0.1), loss="half_squared_error")
    x = np.random.default_rng(0).standard_normal((16, 2, 1, 2)).astype(np.float32)
    t = (x * np.array([3.0, -1.0]).reshape(2, 1, 1) + 0.5).reshape(16, 4).astype(np.float32)
    losses = [float(trainer.step(x, t)) for _ in range(120)]
    assert losses[-1] < 0.02 * losses[0]
    shapes = {path: tuple(p.shape) for path, p in model.parameters().items()}
    assert list(shapes.values()) == [(), (), (2, 1, 1), (2, 1, 1)]
    model.save(tmp_path / "m.safetensors")
    again = xc.Model.load(tmp_path / "m.safetensors", "cpu")
    np.testing.assert_allclose(again.predict(x), model.predict(x), rtol=0, atol=1e-5)
