"""Every setting of a training run: name, type, default and limits; read strictly from tables, written as TOML."""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from xpcnn import models, optim
from xpcnn.data import Augment
from xpcnn.data.dataset import CLASSES
from xpcnn.errors import XpcnnError
from xpcnn.layers.precision import CONV_ENGINES, PRECISIONS
from xpcnn.model import DTYPES
from xpcnn.training.trainer import CAPTURE

MODELS = tuple(name.replace("_", "-") for name in models.__all__)
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
OPEN_NAMES = ("folder:", "npz:")  # data sets that are named by a path


def setting(default: Any, text: str, **limits: Any) -> Any:
    """Describe a setting: default, a text for people, ``choices``, ``least``, ``most``, ``above`` and ``below``."""
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class Settings:
    """A training run's settings; those of augmentation are a table of their own.

    Raises
    ------
    XpcnnError
        Naming the setting, what was given and what is allowed.
    """

    model: str = setting("simple-convnet", "Network.", choices=MODELS)
    dataset: str = setting("mnist", f"Data set: {', '.join(CLASSES)}, folder:PATH (a folder per class) or npz:PATH.")
    data_dir: str | None = setting(None, "Directory with the data set's files; MNIST ships with xpcnn.")
    image_size: int | None = setting(None, "Side in pixels that a folder's images are brought to.", least=1)
    channels: int | None = setting(
        None, "1 reads a folder's images as grey, 3 in colour; how many npz images have.", least=1
    )
    validation: float = setting(
        0.2, "Share of each class held out where a data set has no test part.", above=0, below=1
    )
    skip_bad: bool = setting(False, "Leave out images of a folder that cannot be read, and say which.")
    normalise: str = setting(
        "unit", "Pixels become 0 to 1, or get the training set's mean 0 and deviation 1.", choices=("unit", "standard")
    )
    epochs: int = setting(10, "Passes over the data.", least=1)
    batch_size: int = setting(100, "Images per update.", least=1)
    drop_last: bool = setting(False, "Leave a short last batch out of each epoch.")
    optimizer: str = setting("adagrad", "Update rule; sgd has momentum 0.9.", choices=tuple(optim.OPTIMIZERS))
    lr: float | None = setting(None, "Learning rate, a schedule's highest.  [default: the optimizer's usual]", above=0)
    momentum: float | None = setting(None, "Of sgd, rmsprop and muon.", least=0, below=1)
    nesterov: bool | None = setting(None, "Nesterov's momentum, of sgd and muon.")
    weight_decay: float | None = setting(None, "Pull of weights towards 0; biases and norms are spared.", least=0)
    beta1: float | None = setting(None, "Of adam and adamw.", least=0, below=1)
    beta2: float | None = setting(None, "Of adam and adamw.", least=0, below=1)
    eps: float | None = setting(None, "Of adagrad, rmsprop, adam and adamw.", least=0)
    schedule: str = setting("constant", "Course of the learning rate.", choices=tuple(optim.SCHEDULES))
    warmup: float | None = setting(
        None, "Epochs in which the learning rate rises.  [default: 0; one-cycle: 30 % of all]", least=0
    )
    final_lr: float = setting(0.0, "Where cosine and one-cycle end, as a share of the learning rate.", least=0, most=1)
    step_epochs: float = setting(10.0, "Epochs between two drops of the step schedule.", above=0)
    step_factor: float = setting(0.1, "What the step schedule multiplies by.", above=0, most=1)
    clip_norm: float | None = setting(None, "Scale gradients down to this norm, all together.", above=0)
    label_smoothing: float = setting(0.0, "Share of a label's probability given to all classes.", least=0, below=1)
    class_weights: str = setting("none", "balanced: rare classes count for more.", choices=("none", "balanced"))
    ema: float | None = setting(
        None, "Evaluate and keep a moving average of the weights, with this decay.", above=0, below=1
    )
    evaluate_train: bool = setting(True, "Measure the accuracy on the whole training set, too.")
    evaluate_every: int = setting(1, "Epochs between two evaluations; the last epoch always has one.", least=1)
    keep: str = setting("best", "The model kept: of the best test accuracy, or the last.", choices=("best", "last"))
    patience: int | None = setting(None, "Stop after so many evaluations without a better accuracy.", least=1)
    seed: int = setting(0, "Of initial weights, order, dropout and augmentation.", least=0)
    device: str = setting("auto", "Where to compute; auto takes CUDA if it works, else the CPU.")
    threads: int | None = setting(None, "CPU threads to use.", least=1)
    dtype: str = setting("float32", "Of weights and computation.", choices=DTYPES)
    precision: str = setting(
        "float32", "What to compute in; tf32 needs CUDA; bf16 CUDA or --device torch.", choices=PRECISIONS
    )
    conv_engine: str = setting(
        "auto",
        "What convolves on CUDA; auto takes cuDNN for tf32 and bf16, where it is installed.",
        choices=CONV_ENGINES,
    )
    capture: str = setting(
        "auto", "Whether CUDA records a step as a graph and replays it, with the same result.", choices=CAPTURE
    )
    max_memory: str | None = setting(
        None,
        "Most memory for a step, such as 300MB or 2GiB: larger batches are computed in tiles, with the same result.",
    )
    time_limit: str | None = setting(None, "Stop, resumably, after so long: seconds, or 90s, 10m, 2h.")
    checkpoint_every: str = setting("30s", "Time between two checkpoints.")
    sync_batchnorm: bool = setting(
        False, "With several processes, take batch norm's statistics over the whole batch, as one does."
    )
    tensorboard: bool = setting(False, "Write TensorBoard event files, too (needs xpcnn[tensorboard]).")
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        """Check every setting."""
        kinds = get_type_hints(Settings)
        for one in fields(self):
            if one.name != "augment":
                object.__setattr__(self, one.name, checked(one, kinds[one.name], getattr(self, one.name)))
        if self.dataset not in CLASSES and not self.dataset.startswith(OPEN_NAMES):
            known = ", ".join((*CLASSES, *(f"{name}PATH" for name in OPEN_NAMES)))
            raise XpcnnError(f"dataset must be one of {known}, not {self.dataset!r}{nearest(self.dataset, CLASSES)}")
        for name in ("dataset", "data_dir"):
            if not _is_text(getattr(self, name) or ""):
                raise XpcnnError(f"{name} must be a path that is text (UTF-8), not {getattr(self, name)!r}.")
        for name in ("time_limit", "checkpoint_every"):
            if getattr(self, name) is not None:
                duration(name, getattr(self, name))

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the settings as the tables of a configuration file; what is None is left out."""
        train = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "augment"}
        augment = {one.name: getattr(self.augment, one.name) for one in fields(Augment)}
        return {"train": {name: value for name, value in train.items() if value is not None}, "augment": augment}


def from_tables(*sources: Mapping[str, Any]) -> Settings:
    """Return the settings of tables ``{"train": {...}, "augment": {...}}``, of which later ones win.

    A table ``environment`` and a text ``description`` may be there, too, and mean nothing.

    Raises
    ------
    XpcnnError
        When a name is unknown, with the nearest known one, or a value is wrong.
    """
    train: dict[str, Any] = {}
    augment: dict[str, Any] = {}
    for tables in sources:
        for name, table in tables.items():
            if name not in ("train", "augment", "environment", "description"):
                raise XpcnnError(f"there is no table [{name}]{nearest(name, ('train', 'augment', 'environment'))}")
            if name != "description" and not isinstance(table, Mapping):
                raise XpcnnError(f"{name} must be a table, not {table!r}.")
        train |= known(tables.get("train", {}), [one.name for one in fields(Settings) if one.name != "augment"])
        augment |= known(tables.get("augment", {}), [one.name for one in fields(Augment)], "augment.")
    kinds = get_type_hints(Augment)
    augmentation = Augment(
        **{one.name: checked(one, kinds[one.name], augment[one.name]) for one in fields(Augment) if one.name in augment}
    )
    return Settings(**train, augment=augmentation)


def known(table: Mapping[str, Any], names: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Return a table with its names as they are in Python; a name that is unknown is an error."""
    names, found = list(names), {}
    for given, value in table.items():
        name = given.replace("-", "_")
        if name not in names:
            raise XpcnnError(f"there is no setting {prefix}{given}{nearest(name, names, prefix)}")
        found[name] = value
    return found


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the end of a sentence about a wrong name: the known one that is like it, if there is any."""
    alike = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {prefix}{alike[0]}?" if alike else "."


def assignments(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return tables from texts ``key=value`` and ``augment.key=value``; a value is TOML's, a bare word a string."""
    import tomllib

    tables: dict[str, dict[str, Any]] = {"train": {}, "augment": {}}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        table, dot, key = name.rpartition(".")
        if not sign or not key or table not in ("", *tables) or (dot and not table):
            raise XpcnnError(f"--set takes key=value, or augment.key=value, not {text!r}.")
        try:
            parsed = tomllib.loads(f"value = {value}")
            tables[table or "train"][key] = parsed["value"] if len(parsed) == 1 else value
        except (ValueError, RecursionError):
            tables[table or "train"][key] = None if value == "none" else value
    return tables


def checked(one: Field[Any], kind: Any, value: Any) -> Any:
    """Return a setting's value in its type, or raise a sentence."""
    allowed = [part for part in get_args(kind) if part is not types.NoneType] if get_args(kind) else [kind]
    limits = one.metadata
    if value is None:
        return one.default
    if float in allowed and isinstance(value, int | float) and not isinstance(value, bool):
        value = _float(value)
    if str in allowed and one.name in ("time_limit", "checkpoint_every", "max_memory") and not isinstance(value, str):
        value = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(value, str) and "choices" in limits and value not in limits["choices"]:
        value = value.replace("_", "-") if value.replace("_", "-") in limits["choices"] else value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if isinstance(value, bool) is not (bool in allowed) or not isinstance(value, tuple(allowed)):
        raise XpcnnError(f"{one.name} must be {words[allowed[0]]}, not {value!r}.")
    if "choices" in limits and value not in limits["choices"]:
        end = nearest(value, limits["choices"]) if isinstance(value, str) else "."
        raise XpcnnError(f"{one.name} must be {' or '.join(map(str, limits['choices']))}, not {value!r}{end}")
    if isinstance(value, float | int):
        _within(one.name, value, limits)
    return value


def _within(name: str, value: float, limits: Mapping[str, Any]) -> None:
    """Raise unless a number is finite and within its limits."""
    tests = {
        "least": ("{} or more", value.__ge__),
        "above": ("above {}", value.__gt__),
        "most": ("at most {}", value.__le__),
        "below": ("below {}", value.__lt__),
    }
    asked = {word: limits[word] for word in tests if word in limits}
    right = all(tests[word][1](type(value)(limit)) for word, limit in asked.items())
    if not right or not math.isfinite(_float(value)):
        text = " and ".join(tests[word][0].format(limit) for word, limit in asked.items())
        raise XpcnnError(f"{name} must be {text or 'a finite number'}, not {value}.")


def _float(value: float) -> float:
    """Return a number as a float; a whole number that is too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _is_text(path: str) -> bool:
    """Whether a path can be written to a file of text, and read back."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def duration(name: str, text: str) -> float:
    """Return seconds from a text such as ``90``, ``90s``, ``1.5m`` or ``2h``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)\s*", text)
    if not match:
        raise XpcnnError(f"{name} must be a time such as 90s, 10m or 2h, not {text!r}.")
    return float(match[1]) * UNITS[match[2] or "s"]


def reading(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a run's settings that say how its data set is read, as `load_dataset` takes them."""
    names = ("image_size", "channels", "validation", "seed", "skip_bad")
    settings = from_tables({"train": {name: train[name] for name in names if name in train}})
    return {name: getattr(settings, name) for name in names}


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write tables of strings, numbers and booleans as TOML; None is left out."""
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """Write one value; JSON's strings, numbers and booleans are TOML's, but for two exceptions.

    A float stays one with repr, and TOML wants DEL escaped (JSON's ASCII form has surrogates, which TOML has not).
    """
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
