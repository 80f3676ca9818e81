"""A classifier with scikit-learn's interface, for cross-validation, grid search and pipelines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from xpcnn import models, optim
from xpcnn.backend import Backend
from xpcnn.data import Augment
from xpcnn.errors import XpcnnError, whole
from xpcnn.layers import Affine, Layer, ReLU, Sequential
from xpcnn.layers.base import Shape, checked_shape
from xpcnn.model import Model
from xpcnn.training import History, Trainer
from xpcnn.training.build import USUAL
from xpcnn.training.checkpoint import give, go_to, named, position
from xpcnn.training.fitting import Epoch

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError:  # the class is there all the same, and says what is missing when one is made

    def _missing(cls: type, *_: Any, **__: Any) -> None:
        raise XpcnnError("Classifier needs scikit-learn: pip install 'xpcnn[sklearn]'.")

    ClassifierMixin = type("ClassifierMixin", (), {})
    BaseEstimator = type("BaseEstimator", (), {"__new__": _missing})

Host = np.ndarray[Any, Any]
HIDDEN = 100  # units of the network for rows of features


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A network that is trained by ``fit`` and asked by ``predict``, as scikit-learn's estimators are.

    X is images (N, C, H, W) or grey ones (N, H, W), or rows (N, features), which ``image_shape`` makes images of.
    Images whose channels come last are not recognised: use ``X.transpose(0, 3, 1, 2)``. Bytes (uint8) are divided by
    255; other numbers are taken as they are, so let a scaler come before. Labels may be of any kind.

    Parameters
    ----------
    network : str, Layer or callable
        A name in `xpcnn.models`, a description, or a function ``(input_shape, classes) -> Layer``. "auto" is
        "simple_convnet" for images, and for rows a fully connected layer of 100 units before that of the classes.
    epochs : int
        How often `fit` goes through the data; `partial_fit` does once.
    batch_size : int
        Images per update.
    optimizer : str or callable
        "adam", "adamw", "sgd", "adagrad", "rmsprop", "muon", or a function of lr that makes one, such as
        ``functools.partial(xpcnn.optim.sgd, momentum=0.5)``.
    lr : float or schedule, optional
        By default what is usual for the named optimizer: 0.001 for adam.
    augment : Augment, optional
        Random changes of training images.
    image_shape : (C, H, W), optional
        Of the images that rows of features are, in this order.
    device : str or Backend
        As in `xpcnn.Model`.
    dtype : {"float32", "float64"}
        Of parameters and computation.
    random_state : int, RandomState or None
        An int is the model's seed: the same gives the same result.
    verbose : bool
        Print a line per epoch.

    Attributes
    ----------
    model_ : Model
        The trained network; ``model_.save(path)`` is the way to keep it without pickling.
    classes_ : array
        The labels, sorted.
    history_ : History
        Every update's loss and every epoch's record.
    n_features_in_ : int
        Features of a row, or channels of an image.

    Raises
    ------
    XpcnnError
        A ValueError, when a parameter is wrong, X has another shape than in ``fit``, or scikit-learn is not installed.
    """

    def __init__(
        self,
        network: str | Layer | Callable[[Shape, int], Layer] = "auto",
        *,
        epochs: int = 10,
        batch_size: int = 100,
        optimizer: str | Callable[..., optim.Optimizer] = "adam",
        lr: float | Callable[[int], float] | None = None,
        augment: Augment | None = None,
        image_shape: Sequence[int] | None = None,
        device: str | Backend = "auto",
        dtype: str = "float32",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.network = network
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.augment = augment
        self.image_shape = image_shape
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> Classifier:
        """Train a new network on images or rows X and labels y (N,); return the estimator."""
        images, y = self._checked(X, y)
        self._begin(images.shape[1:], np.unique(y))
        return self._go_on(images, y, self.epochs)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Classifier:
        """Go through X and y once, from where the last call of this or of `fit` ended; return the estimator.

        Parameters
        ----------
        X, y : array
            As in `fit`.
        classes : array, optional
            All labels that will ever come; needed in the first call.
        """
        is_first = not hasattr(self, "_trainer")
        if is_first and classes is None:
            raise XpcnnError("the first partial_fit needs classes=, all labels that will ever come.")
        images, y = self._checked(X, y, reset=is_first)
        if is_first:
            self._begin(images.shape[1:], np.unique(classes))
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise XpcnnError(f"classes={classes!r} is not the same as in the first call of partial_fit.")
        if len(unknown := np.setdiff1d(y, self.classes_)):
            raise XpcnnError(f"y has labels that are not among the classes: {unknown[:5]}.")
        return self._go_on(images, y, max(1, self._trainer.progress.epoch))

    def predict(self, X: Any) -> Host:
        """Return the most likely label of each image (N,)."""
        likeliest = np.argmax(self._logits(X), axis=1)
        return self.classes_[likeliest]

    def predict_proba(self, X: Any) -> Host:
        """Return each class's probability (N, classes), in the order of ``classes_``."""
        logits = self._logits(X).astype(np.float64)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)

    def decision_function(self, X: Any) -> Host:
        """Return the logits (N, classes); of two classes, by how much the second's is larger (N,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's description of the estimator: images may have three axes."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: arrays on the host instead of a device's."""
        state = dict(super().__getstate__())
        trainer = state.pop("_trainer", None)
        model = state.pop("model_", None)
        if trainer is not None and model is not None:
            arrays = {name: model.backend.to_numpy(array) for name, array in named(trainer).items()}
            state["_stored"] = model.net, model.input_shape, model.seed, model.dtype, arrays, position(trainer)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the model on its device again."""
        state = dict(state)
        stored = state.pop("_stored", None)
        super().__setstate__(state)
        if stored is not None:
            net, shape, seed, dtype, arrays, where = stored
            self._take_up(net, shape, seed, dtype)
            asarray = self.model_.backend.asarray
            give(self._trainer, {name: asarray(array) for name, array in arrays.items()})
            go_to(self._trainer, where)

    def _checked(self, X: Any, y: Any, *, reset: bool = True) -> tuple[Host, Host]:
        """Return images and labels of what is to be learnt."""
        X, y = validate_data(self, _with_channels(X), y, reset=reset, allow_nd=True, dtype="numeric")
        check_classification_targets(y)
        return self._images(_with_channels(X)), column_or_1d(y, warn=True)

    def _images(self, X: Host) -> Host:
        """Return images (N, C, H, W), or rows where nobody says that they are images."""
        if X.ndim == 2 and self.image_shape is not None:
            shape = checked_shape(self.image_shape)
            if prod(shape) != X.shape[1]:
                raise XpcnnError(
                    f"image_shape={shape} is {prod(shape)} numbers, but X has rows of {X.shape[1]} features."
                )
            X = X.reshape(-1, *shape)
        return X if X.dtype == np.uint8 else X.astype(self.dtype, copy=False)

    def _logits(self, X: Any) -> Host:
        """Return the network's outputs for images."""
        check_is_fitted(self, "model_")
        X = validate_data(self, _with_channels(X), reset=False, allow_nd=True, dtype="numeric")
        return np.asarray(self.model_.predict(self._images(_with_channels(X))))

    def _begin(self, shape: Shape, classes: Host) -> None:
        """Make a new network and its trainer."""
        seed = self.random_state
        if seed is None or not hasattr(seed, "__index__"):
            seed = int(check_random_state(seed).randint(np.iinfo(np.int32).max))
        self.classes_ = classes
        self.history_ = History()
        self._making = self.device, self.optimizer, self.lr
        self._take_up(self._network(shape, len(classes)), shape, whole("random_state", seed, 0), self.dtype)

    def _take_up(self, net: Layer, shape: Shape, seed: int, dtype: str) -> None:
        """Make the model and its trainer."""
        device, optimizer, lr = self._making
        labels = [str(label) for label in self.classes_]
        self.model_ = Model(net, device, seed, dtype=dtype, input_shape=shape, classes=labels)
        if self.model_.output_shape != (len(labels),):
            raise XpcnnError(
                f"the network must give {len(labels)} outputs, one per class, not {self.model_.output_shape}."
            )
        self._trainer = Trainer(self.model_, _optimizer(optimizer, lr))

    def _network(self, shape: Shape, classes: int) -> Layer:
        """Return the network's description."""
        network = self.network
        if network == "auto" and len(shape) == 1:
            return Sequential(Affine(HIDDEN), ReLU(), Affine(classes), input_shape=shape)
        if isinstance(network, str):
            name = "simple_convnet" if network == "auto" else network.replace("-", "_")
            if name not in models.__all__:
                raise XpcnnError(f"network must be auto or one of {', '.join(models.__all__)}, not {network!r}.")
            if len(shape) == 1:
                raise XpcnnError(f"{name} takes images, but X has rows: say image_shape=(C, H, W).")
            network = getattr(models, name)
        made = network if isinstance(network, Layer) or not callable(network) else network(shape, classes)
        if not isinstance(made, Layer):
            raise XpcnnError(f"network must be a name, a Layer or a function that makes one, not {made!r}.")
        return made

    def _go_on(self, images: Host, y: Host, epochs: int) -> Classifier:
        """Train up to an epoch, from where the trainer is."""
        trainer = self._trainer
        trainer.restored = trainer.progress.epoch > 0
        labels = np.searchsorted(self.classes_, y)
        history = trainer.fit(
            (images, labels), epochs=epochs, batch_size=self.batch_size, augment=self.augment, evaluate_train=False,
            on_epoch=self._told if self.verbose else None,
        )  # fmt: skip
        before = self.history_
        self.history_ = replace(history, losses=before.losses + history.losses, epochs=before.epochs + history.epochs)
        return self

    def _told(self, epoch: Epoch, _: list[float]) -> None:
        """Print an epoch's loss."""
        if epoch.loss is not None:
            sys.stdout.write(f"epoch {epoch.epoch}: loss {epoch.loss:.5f}, {epoch.seconds:.1f} s\n")


def _with_channels(X: Any) -> Any:
    """Return grey images (N, H, W) as (N, 1, H, W), others as they are."""
    return X[:, None] if getattr(X, "ndim", 0) == 3 else X


def _optimizer(optimizer: str | Callable[..., optim.Optimizer], lr: Any) -> optim.Optimizer:
    """Return an optimizer by its name with what is usual, or what a function makes."""
    if isinstance(optimizer, str) and optimizer in optim.OPTIMIZERS:
        options = USUAL[optimizer] | ({} if lr is None else {"lr": lr})
        return optim.OPTIMIZERS[optimizer](**options)
    if isinstance(optimizer, str) or not callable(optimizer):
        raise XpcnnError(
            f"optimizer must be one of {', '.join(optim.OPTIMIZERS)} or a function of lr, not {optimizer!r}."
        )
    return optimizer() if lr is None else optimizer(lr)
