"""The classifier as scikit-learn uses it: its own checks, cross-validation, grid search, pipelines, pickles."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models, optim

pytest.importorskip("sklearn")
import joblib
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

NET = la.Sequential(la.Conv2D(4, 3), la.BatchNorm(), la.ReLU(), la.MaxPool2D(2), la.Dropout(0.1), la.Affine(3))


@pytest.fixture(scope="module")
def digits():
    """Return the first images and labels of the data set that ships with the package."""
    train, _ = xc.load_dataset("mnist")
    return train.images[:600], train.labels[:600]


@pytest.fixture
def small(rng):
    """Return images of three kinds: bright above, below or all over, with labels of text."""
    kinds = rng.integers(0, 3, 60)
    x = rng.standard_normal((60, 1, 8, 8)).astype(np.float32)
    x[kinds != 1, :, :4] += 1
    x[kinds != 0, :, 4:] += 1
    return x, np.array(["above", "below", "both"])[kinds]


def classifier(**options):
    return xc.Classifier(**{"device": "cpu", "epochs": 3, "batch_size": 20, "lr": 0.01, "random_state": 0} | options)


@parametrize_with_checks([classifier(epochs=30, batch_size=16, dtype="float64")])
def test_scikit_learns_own_checks(estimator, check):
    """All of them; none is expected to fail. Rows of features go through the fully connected network."""
    check(estimator)


def test_cross_validation_on_digits(digits):
    found = cross_val_score(classifier(batch_size=50, lr=0.003, epochs=4), *digits, cv=3)
    assert found.mean() > 0.8  # 400 images; chance is 0.1
    np.testing.assert_array_equal(found, cross_val_score(classifier(batch_size=50, lr=0.003, epochs=4), *digits, cv=3))


def test_grid_search_finds_the_setting_that_learns(digits):
    grid = {"lr": [1e-7, 0.003], "network": ["simple-convnet", partial(models.simple_convnet, filters=4, hidden=20)]}
    search = GridSearchCV(classifier(batch_size=50), grid, cv=2).fit(*digits)
    assert search.best_params_["lr"] == 0.003
    assert search.best_score_ > 0.7
    assert search.score(*digits) > 0.85


def test_flat_rows_go_through_a_pipeline_as_images(digits):
    images, labels = digits
    rows = images.reshape(len(images), -1)
    estimator = make_pipeline(StandardScaler(), classifier(network="simple_convnet", image_shape=(1, 28, 28), lr=0.003))
    assert cross_val_score(estimator, rows.astype(float), labels, cv=2).mean() > 0.7
    fitted = estimator.fit(rows, labels)[-1]
    assert fitted.model_.input_shape == (1, 28, 28)
    assert fitted.n_features_in_ == 784


def test_all_forms_of_images_are_the_same_images(digits):
    """Bytes are divided by 255; axes of length 1 may be left out; rows are C, H, W."""
    images, labels = digits[0][:100], digits[1][:100]
    first = classifier(epochs=1, network="simple_convnet").fit(images, labels)
    expected = first.predict_proba(images)
    for other in (images[:, 0], images.astype(np.float64) / 255, images.astype(np.float32)[:, 0] / 255):
        again = classifier(epochs=1, network="simple_convnet").fit(other, labels)
        np.testing.assert_allclose(again.predict_proba(other), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(first.predict_proba(other), expected, rtol=0, atol=1e-5)
    few = images[:5, 0].tolist()
    np.testing.assert_allclose(first.predict_proba(np.array(few) / 255), expected[:5], rtol=0, atol=1e-5)
    assert classifier(epochs=1, network="simple_convnet").fit(few, labels[:5]).model_.input_shape == (1, 28, 28)
    rows = images.reshape(100, -1)
    again = classifier(epochs=1, network="simple_convnet", image_shape=(1, 28, 28)).fit(rows, labels)
    np.testing.assert_array_equal(again.predict_proba(rows), expected)
    np.testing.assert_allclose(np.log(expected / expected[:, :1]), logits_over_the_first(first, images), atol=1e-4)


def logits_over_the_first(estimator, images):
    logits = estimator.model_.predict(images).astype(float)
    return logits - logits[:, :1]


def test_it_trains_as_the_trainer_does(small):
    x, y = small
    names = np.unique(y)
    model = xc.Model(NET, "cpu", 7, input_shape=(1, 8, 8))
    history = xc.Trainer(model, optim.adam(0.01)).fit((x, np.searchsorted(names, y)), epochs=3, batch_size=20)
    estimator = classifier(network=NET, random_state=7).fit(x, y)
    np.testing.assert_array_equal(estimator.decision_function(x), model.predict(x))
    np.testing.assert_array_equal(estimator.predict(x), names[model.predict(x).argmax(axis=1)])
    assert estimator.history_.losses == history.losses
    assert [epoch.epoch for epoch in estimator.history_.epochs] == [0, 1, 2, 3]
    assert estimator.model_.classes == ("above", "below", "both")
    assert list(estimator.classes_) == ["above", "below", "both"]


def test_partial_fit_goes_on_as_fit_would(small):
    x, y = small
    whole = classifier(network=NET).fit(x, y)
    pieces = classifier(network=NET)
    for _ in range(3):
        pieces.partial_fit(x, y, classes=["both", "below", "above"])
    np.testing.assert_array_equal(pieces.decision_function(x), whole.decision_function(x))
    assert pieces.history_.losses == whole.history_.losses
    longer = classifier(network=NET, epochs=4).fit(x, y)
    np.testing.assert_array_equal(whole.partial_fit(x, y).decision_function(x), longer.decision_function(x))
    again = whole.fit(x, y)  # begins anew
    assert len(again.history_.epochs) == 4


def test_partial_fit_takes_the_classes_as_they_come(small):
    x, y = small
    estimator = classifier(network=NET, epochs=1)
    for label in ("both", "above", "below") * 4:
        estimator.partial_fit(x[y == label], y[y == label], classes=np.unique(y))
    assert estimator.predict_proba(x).shape == (60, 3)
    assert len(estimator.history_.epochs) == 13  # and the one before any training


@pytest.mark.parametrize("way", ["pickle", "joblib", "deepcopy"])
def test_a_copy_predicts_the_same_and_trains_on(way, small, tmp_path):
    x, y = small
    estimator = classifier(network=NET).fit(x, y)
    if way == "joblib":
        joblib.dump(estimator, tmp_path / "e.joblib")
        copied = joblib.load(tmp_path / "e.joblib")
    else:
        copied = pickle.loads(pickle.dumps(estimator)) if way == "pickle" else copy.deepcopy(estimator)
    np.testing.assert_array_equal(copied.predict_proba(x), estimator.predict_proba(x))
    assert copied.get_params() == estimator.get_params()
    np.testing.assert_array_equal(
        copied.partial_fit(x, y).decision_function(x), estimator.partial_fit(x, y).decision_function(x)
    )
    assert copied.history_.losses == estimator.history_.losses


def test_a_pickle_keeps_what_it_was_fitted_with(small):
    x, y = small
    estimator = (
        classifier(network=NET, optimizer="sgd").fit(x, y).set_params(optimizer="adam", lr=9.0, network="lenet5")
    )
    copied = pickle.loads(pickle.dumps(estimator))
    for _ in range(2):
        np.testing.assert_array_equal(copied.predict_proba(x), estimator.predict_proba(x))
        copied.partial_fit(x, y)
        estimator.partial_fit(x, y)


def test_a_clone_is_not_fitted(small):
    estimator = clone(classifier(network=NET, augment=xc.Augment(flip=True), epochs=20).fit(*small))
    with pytest.raises(NotFittedError):
        estimator.predict(small[0])
    assert estimator.fit(*small).score(*small) > 0.7


def test_other_processes_fit_and_give_back(small):
    found = cross_val_score(classifier(network=NET), *small, cv=2, n_jobs=2)
    np.testing.assert_array_equal(found, cross_val_score(classifier(network=NET), *small, cv=2))


def test_the_random_state_decides(small):
    x, y = small

    def proba(state):
        return classifier(network=NET, random_state=state).fit(x, y).predict_proba(x)

    np.testing.assert_array_equal(proba(3), proba(np.int64(3)))
    np.testing.assert_array_equal(proba(np.random.RandomState(3)), proba(np.random.RandomState(3)))
    assert np.abs(proba(3) - proba(4)).max() > 1e-3
    assert np.abs(proba(None) - proba(None)).max() > 1e-6


def test_two_classes_have_one_decision(small):
    x, y = small
    estimator = classifier(network=lambda shape, classes: la.Affine(classes)).fit(x[y != "both"], y[y != "both"])
    decision = estimator.decision_function(x)
    assert decision.shape == (60,)
    np.testing.assert_array_equal(decision > 0, estimator.predict(x) == "below")
    np.testing.assert_allclose(estimator.predict_proba(x)[:, 1], 1 / (1 + np.exp(-decision.astype(float))), atol=1e-6)


def test_optimizers_by_name_and_by_function(small):
    x, y = small
    expected = classifier(network=NET, optimizer="sgd", lr=0.02).fit(x, y).decision_function(x)  # momentum 0.9 is usual
    found = classifier(network=NET, optimizer=partial(optim.sgd, momentum=0.9), lr=0.02).fit(x, y).decision_function(x)
    np.testing.assert_array_equal(found, expected)
    schedule = partial(optim.sgd, optim.constant(0.02), 0.9)
    found = classifier(network=NET, optimizer=schedule, lr=None).fit(x, y).decision_function(x)
    np.testing.assert_array_equal(found, expected)


def test_verbose_prints_a_line_per_epoch(small, capsys):
    classifier(network=NET, verbose=True).fit(*small)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2", "epoch 3"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"network": "resnet50"}, "network must be auto or one of densenet_bc, .* not 'resnet50'"),
        ({"network": 5}, "network must be a name, a Layer or a function that makes one, not 5"),
        ({"network": la.Affine(4)}, r"must give 3 outputs, one per class, not \(4,\)"),
        ({"optimizer": "adams"}, "optimizer must be one of adagrad, .* or a function of lr, not 'adams'"),
        ({"optimizer": optim.adam(0.1)}, "optimizer must be one of"),
        ({"epochs": 0}, "epochs must be a whole number of 1 or more"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more"),
        ({"random_state": -1}, "random_state must be a whole number of 0 or more"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64"),
    ],
)
def test_parameters_that_are_wrong_are_said_when_fitting(options, says, small):
    with pytest.raises(xc.XpcnnError, match=says):
        classifier(**{"network": NET} | options).fit(*small)


def test_data_that_are_wrong(small):
    x, y = small
    rows = x.reshape(60, -1)
    with pytest.raises(xc.XpcnnError, match=r"lenet5 takes images, but X has rows: say image_shape"):
        classifier(network="lenet5").fit(rows, y)
    with pytest.raises(xc.XpcnnError, match=r"image_shape=\(1, 7, 7\) is 49 numbers, but X has rows of 64 features"):
        classifier(image_shape=(1, 7, 7)).fit(rows, y)
    with pytest.raises(xc.XpcnnError, match="the first partial_fit needs classes="):
        classifier(network=NET).partial_fit(x, y)
    estimator = classifier(network=NET).fit(x, y)
    with pytest.raises(xc.XpcnnError, match=r"the model takes batches \(N, 1, 8, 8\), got \(60, 1, 8, 7\)"):
        estimator.predict(x[..., 1:])
    with pytest.raises(xc.XpcnnError, match="not the same as in the first call"):
        estimator.partial_fit(x, y, classes=["a", "b"])
    with pytest.raises(xc.XpcnnError, match=r"labels that are not among the classes: \['other'\]"):
        estimator.partial_fit(x, np.where(y == "both", "other", y))


def test_without_scikit_learn_it_says_what_to_install():
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['sklearn.base'] = None; from xpcnn import *; import xpcnn\n"
        "try: xpcnn.Classifier(epochs=2)\n"
        "except xpcnn.XpcnnError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "Classifier needs scikit-learn: pip install 'xpcnn[sklearn]'.", done.stderr
