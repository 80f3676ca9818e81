"""Settings: every type, limit, choice and name, how they are given, and that they come back as they were."""

from __future__ import annotations

import math
import string
import tomllib
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn.data import Augment
from xpcnn.errors import XpcnnError
from xpcnn.training.settings import Settings, assignments, duration, from_tables, to_toml

HUGE = 10**400  # no float is as large


def test_the_defaults_are_the_books_experiment():
    """S. Saito, "Deep learning from scratch", chapter 7, with AdaGrad and lr 0.06: see the design's section 5."""
    found = Settings()
    assert (found.model, found.dataset, found.epochs, found.batch_size) == ("simple-convnet", "mnist", 10, 100)
    assert (found.optimizer, found.lr, found.schedule, found.seed) == ("adagrad", None, "constant", 0)
    assert not found.augment
    assert from_tables() == from_tables({}) == from_tables({"train": {}, "augment": {}}) == found


def brief(value):
    return str(value)[:12]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("epochs", 0, "epochs must be 1 or more, not 0."),
        ("epochs", 1.0, "epochs must be a whole number, not 1.0."),
        ("epochs", "3", "epochs must be a whole number, not '3'."),
        ("epochs", True, "epochs must be a whole number, not True."),
        ("epochs", HUGE, "epochs must be 1 or more, not 1000"),
        ("epochs", [3], "epochs must be a whole number, not [3]."),
        ("batch_size", -1, "batch_size must be 1 or more, not -1."),
        ("seed", -1, "seed must be 0 or more, not -1."),
        ("lr", 0, "lr must be above 0, not 0.0."),
        ("lr", math.nan, "lr must be above 0, not nan."),
        ("lr", math.inf, "lr must be above 0, not inf."),
        ("lr", HUGE, "lr must be above 0, not inf."),
        ("lr", -HUGE, "lr must be above 0, not -inf."),
        ("lr", "0.1", "lr must be a number, not '0.1'."),
        ("lr", True, "lr must be a number, not True."),
        ("momentum", 1, "momentum must be 0 or more and below 1, not 1.0."),
        ("momentum", -0.1, "momentum must be 0 or more and below 1, not -0.1."),
        ("nesterov", 1, "nesterov must be true or false, not 1."),
        ("nesterov", "yes", "nesterov must be true or false, not 'yes'."),
        ("drop_last", 0, "drop_last must be true or false, not 0."),
        ("ema", 1, "ema must be above 0 and below 1, not 1.0."),
        ("ema", 0, "ema must be above 0 and below 1, not 0.0."),
        ("validation", 1, "validation must be above 0 and below 1, not 1.0."),
        ("label_smoothing", 1, "label_smoothing must be 0 or more and below 1, not 1.0."),
        ("final_lr", 1.5, "final_lr must be 0 or more and at most 1, not 1.5."),
        ("step_factor", 0, "step_factor must be above 0 and at most 1, not 0.0."),
        ("patience", 0, "patience must be 1 or more, not 0."),
        ("channels", 0, "channels must be 1 or more, not 0."),
        ("channels", "3", "channels must be a whole number, not '3'."),
        ("model", "resnet", "not 'resnet'; did you mean resnet"),
        ("model", 3, "model must be a text, not 3."),
        ("optimizer", "adamv", "optimizer must be adagrad or"),
        ("optimizer", "", "not ''."),
        ("schedule", "cosin", "not 'cosin'; did you mean cosine?"),
        ("keep", "all", "keep must be best or last, not 'all'."),
        ("dtype", "float16", "dtype must be float32 or float64, not 'float16'"),
        ("dataset", "mnits", "not 'mnits'; did you mean mnist?"),
        ("dataset", "folder", "not 'folder'."),
        ("dataset", {}, "dataset must be a text, not {}."),
        ("data_dir", 5, "data_dir must be a text, not 5."),
        ("time_limit", "5 days", "time_limit must be a time such as 90s, 10m or 2h, not '5 days'."),
        ("time_limit", "-3s", "not '-3s'."),
        ("time_limit", True, "time_limit must be a text, not True."),
        ("checkpoint_every", math.nan, "not 'nan'."),
        ("checkpoint_every", "", "not ''."),
    ],
    ids=brief,
)  # fmt: skip
def test_what_is_wrong_is_named(name, value, says):
    """Whether it comes from a table or from Python."""
    for make in (lambda: from_tables({"train": {name: value}}), lambda: Settings(**{name: value})):
        with pytest.raises(XpcnnError) as caught:
            make()
        assert says in str(caught.value)
        assert str(caught.value).startswith(f"{name} must be")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("crop", -1, "crop"), ("crop", 1.5, "crop must be a whole number, not 1.5."), ("crop", True, "crop"),
        ("flip", 1, "flip must be true or false, not 1."), ("rotate", 200, "rotate"), ("rotate", "far", "'far'"),
        ("mixup", -0.5, "mixup"), ("scale", HUGE, "scale must be"), ("cutout", "none", "cutout"),
    ],
    ids=brief,
)  # fmt: skip
def test_what_is_wrong_in_augmentation_is_named(name, value, says):
    with pytest.raises(XpcnnError) as caught:
        from_tables({"augment": {name: value}})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"train": {"epoch": 3}}, "there is no setting epoch; did you mean epochs?"),
        ({"train": {"batchsize": 3}}, "there is no setting batchsize; did you mean batch_size?"),
        ({"train": {"learning_rate": 3}}, "there is no setting learning_rate"),
        ({"train": {"augment": {"crop": 2}}}, "there is no setting augment"),
        ({"train": {"": 1}}, "there is no setting ."),
        ({"augment": {"flipp": True}}, "there is no setting augment.flipp; did you mean augment.flip?"),
        ({"trian": {}}, "there is no table [trian]; did you mean train?"),
        ({"environment": {}, "enviroment": {}}, "there is no table [enviroment]; did you mean environment?"),
        ({"lr": 0.1}, "there is no table [lr]."),
        ({"train": 3}, "train must be a table, not 3."),
        ({"augment": [{}]}, "augment must be a table, not [{}]."),
        ({"train": {"model": "lenet-5"}}, "did you mean lenet5?"),
    ],
)
def test_unknown_names(tables, says):
    with pytest.raises(XpcnnError) as caught:
        from_tables({"train": {"seed": 1}}, tables)
    assert str(caught.value).startswith(says) or says in str(caught.value)


def test_what_is_there_and_means_nothing():
    assert from_tables({"environment": {"x": [1]}, "description": "for people"}) == Settings()


def test_names_and_values_are_taken_with_either_sign_between_words():
    found = from_tables({"train": {"batch-size": 7, "model": "simple_convnet", "schedule": "one_cycle"}})
    assert (found.batch_size, found.model, found.schedule) == (7, "simple-convnet", "one-cycle")


def test_numbers_are_of_their_type():
    found = Settings(lr=1, step_epochs=3, time_limit=90, max_memory=5_000_000, checkpoint_every=0.5)
    assert [type(value) for value in (found.lr, found.step_epochs)] == [float, float]
    assert (found.time_limit, found.max_memory, found.checkpoint_every) == ("90", "5000000", "0.5")


def test_later_tables_win():
    first = {"train": {"epochs": 3, "lr": 0.1, "seed": 1}, "augment": {"crop": 1, "flip": True}}
    second = {"train": {"lr": 0.2}, "augment": {"crop": 2}}
    third = assignments(["lr=0.3", "augment.flip=false"])
    assert from_tables(first) == Settings(epochs=3, lr=0.1, seed=1, augment=Augment(crop=1, flip=True))
    assert from_tables(first, second) == Settings(epochs=3, lr=0.2, seed=1, augment=Augment(crop=2, flip=True))
    found = from_tables(first, second, third, {"train": {"seed": 9}})
    assert found == Settings(epochs=3, lr=0.3, seed=9, augment=Augment(crop=2, flip=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.1", {"lr": 0.1}),
        (" lr = 1e-3 ", {"lr": 0.001}),
        ("epochs=1_000", {"epochs": 1000}),
        ("seed=0x10", {"seed": 16}),
        ("nesterov=true", {"nesterov": True}),
        ("model=lenet5", {"model": "lenet5"}),
        ('model="lenet5"', {"model": "lenet5"}),
        ("dataset=folder:/a b/c=d", {"dataset": "folder:/a b/c=d"}),
        ("dataset=npz:C:\\x", {"dataset": "npz:C:\\x"}),
        ("data_dir=", {"data_dir": ""}),
        ("data_dir=none", {"data_dir": None}),
        ('data_dir="none"', {"data_dir": "none"}),
        ("data_dir=a # b", {"data_dir": "a # b"}),
        ("data_dir=x\ny = 3", {"data_dir": "x\ny = 3"}),
        ("data_dir=1\ny = 3", {"data_dir": "1\ny = 3"}),
        ("data_dir=" + "[" * 5000, {"data_dir": "[" * 5000}),
        ("data_dir=" + "9" * 5000, {"data_dir": "9" * 5000}),
        ("train.lr=2", {"lr": 2}),
        ("train.train=2", {"train": 2}),
    ],
)
def test_assignments(text, expected):
    assert assignments([text]) == {"train": expected, "augment": {}}


def test_assignments_of_augmentation():
    texts = ["augment.crop=2", "augment.mixup=0.2", "augment.crop=3", "seed=1", "augment.rotate=none"]
    assert assignments(texts) == {"train": {"seed": 1}, "augment": {"crop": 3, "mixup": 0.2, "rotate": None}}


@pytest.mark.parametrize(
    "text", ["", "lr", "=", "=3", ".lr=3", "augment.=3", "augment=3=.", "environment.x=1", "a.b.c=1", "augment.a.b=1"]
)
def test_wrong_assignments(text):
    if text == "augment=3=.":  # a name like any other, which is unknown
        with pytest.raises(XpcnnError, match="there is no setting augment"):
            from_tables(assignments([text]))
        return
    with pytest.raises(XpcnnError, match=r"--set takes key=value, or augment\.key=value, not"):
        assignments([text])


@pytest.mark.parametrize("one", [one for one in fields(Settings) if one.name != "augment"], ids=lambda one: one.name)
def test_none_takes_any_setting_back(one):
    given = {
        "train": {"epochs": 3, "lr": 0.3, "class_weights": "balanced", "ema": 0.5, "threads": 2, "model": "lenet5"}
    }
    found = from_tables(given, assignments([f"{one.name}=none"]))
    assert getattr(found, one.name) == getattr(Settings(), one.name)


def test_none_takes_augmentation_back():
    given = {"augment": {"crop": 3, "flip": True, "rotate": 5.0}}
    found = from_tables(given, assignments(["augment.crop=none", "augment.flip=none"]))
    assert found.augment == Augment(rotate=5.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), (" 2 h ", 7200), ("0", 0), (".5s", 0.5), ("3.m", 180)],
)
def test_durations(text, seconds):
    assert duration("x", text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1e3", "1d", "inf", "1.2.3", ".", "10 m s", "5\n6"])
def test_wrong_durations(text):
    with pytest.raises(XpcnnError, match="x must be a time such as 90s, 10m or 2h"):
        duration("x", text)


def number(one, whole):
    """Return numbers within a setting's limits."""
    low, high = (
        one.metadata.get("least", one.metadata.get("above")),
        one.metadata.get("most", one.metadata.get("below")),
    )
    if "choices" in one.metadata:
        return st.sampled_from(one.metadata["choices"])
    if whole:
        return st.integers(low or 0, 10**18)
    outside = {"exclude_min": "above" in one.metadata, "exclude_max": "below" in one.metadata and high is not None}
    return st.floats(0.0 if low is None else float(low), None if high is None else float(high), allow_nan=False,
                     allow_infinity=False, **outside)  # fmt: skip


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KINDS = {
    "int": lambda one: number(one, True),
    "float": lambda one: number(one, False),
    "bool": lambda one: st.booleans(),
}


def values(one):
    """Return what a setting may be."""
    kind = str(one.type).removesuffix(" | None")
    if one.name in ("time_limit", "checkpoint_every"):
        found = st.sampled_from(["90", "1.5m", " 2 h"])
    elif one.name == "dataset":
        found = texts.map("folder:{}".format) | texts.map("npz:{}".format) | st.just("cifar10")
    elif kind == "str":
        found = st.sampled_from(one.metadata["choices"]) if "choices" in one.metadata else texts
    else:
        found = KINDS[kind](one)
    return found | st.none() if one.default is None else found


SETTINGS = st.builds(Settings, **{one.name: values(one) for one in fields(Settings) if one.name != "augment"})
AUGMENT = st.builds(
    Augment, crop=st.integers(0, 9), flip=st.booleans(), rotate=st.floats(0, 180), mixup=st.floats(0, 9)
)


@settings(max_examples=40, deadline=None)
@given(SETTINGS, AUGMENT, texts)
def test_a_file_has_all_of_them(found, augment, text):
    """What is written as TOML, with any texts beside, comes back equal and of the same types."""
    found = replace(found, augment=augment)
    tables = found.tables() | {"environment": {"text": text}}
    written = to_toml(tables)
    read = tomllib.loads(written)
    assert read == tables
    assert from_tables(read) == found
    assert repr(from_tables(read)) == repr(found)
    assert set(found.tables()["train"]) == {
        one.name for one in fields(Settings) if one.name != "augment" and getattr(found, one.name) is not None
    }


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([one.name for one in fields(Settings)]) | st.text(string.ascii_letters, max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(st.integers()) | st.just({}),
        max_size=3,
    ),
    st.lists(texts | texts.map("lr={}".format) | texts.map("augment.crop={}".format), max_size=2),
)
def test_nonsense_is_a_sentence_or_settings(table, assigned):
    says = ""
    try:
        found = from_tables({"train": table}, assignments(assigned))
    except XpcnnError as error:
        says = str(error)
    if says:
        assert says.endswith((".", "?"))
        assert not says.endswith("?.")
    else:
        assert from_tables(tomllib.loads(to_toml(found.tables()))) == found
