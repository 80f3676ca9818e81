"""Networks written in Keras, run in a process of its own: their weights, an input and the outputs go to a directory.

KERAS_BACKEND=torch python keras_networks.py DIRECTORY
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers as kl

OUT = Path(sys.argv[1])


def sequential():
    """Return every kind of convolution, and a normalisation of features that were an image's."""
    return keras.Sequential([
        keras.Input((9, 8, 3)),
        kl.Conv2D(6, 3, strides=2, padding="same", activation="relu"),
        kl.BatchNormalization(),
        kl.SeparableConv2D(5, 3, depth_multiplier=2, padding="same"),
        kl.DepthwiseConv2D((2, 3), depth_multiplier=2),
        kl.Conv2D(10, 1, groups=5, use_bias=False),
        kl.BatchNormalization(),
        kl.Conv2DTranspose(4, (3, 2), strides=(1, 2)),
        kl.Conv2DTranspose(4, 2, strides=2, padding="same", use_bias=False),
        kl.MaxPooling2D(2),
        kl.Flatten(),
        kl.BatchNormalization(),
        kl.Dropout(0.5),
        kl.Dense(7, activation="tanh"),
        kl.Dense(4),
    ])  # fmt: skip


def functional():
    """Return branches that are added and joined, with layers named as they are in xpcnn."""
    x = keras.Input((6, 7, 3))
    a = kl.Conv2D(4, 3, padding="same", name="left")(x)
    b = kl.Conv2D(4, 3, padding="same", name="right")(x)
    y = kl.Add()([kl.ReLU()(a), b])
    y = kl.GroupNormalization(2, name="groups", epsilon=1e-5)(y)
    y = kl.LayerNormalization(axis=[1, 2, 3], name="images", epsilon=1e-5)(y)
    wide = kl.Flatten()(kl.AveragePooling2D(2)(y))
    narrow = kl.Dense(3, name="narrow")(kl.GlobalAveragePooling2D()(y))
    z = kl.Concatenate()([narrow, wide, kl.Flatten()(b)])
    z = kl.BatchNormalization(name="norm")(z)
    return keras.Model(x, kl.Dense(5, name="out")(z))


def deep():
    """Return more than ten layers of one shape, whose numbers have one digit and two."""
    return keras.Sequential([keras.Input((5, 5, 2)), *(kl.Conv2D(2, 3, padding="same") for _ in range(12))])


def nested():
    """Return a model in a model, both with dense layers."""
    inner = keras.Sequential([kl.Dense(6, use_bias=False, name="first"), kl.Dense(2, name="second")], name="head")
    return keras.Sequential([keras.Input((4,)), kl.Dense(3, name="body"), inner])


def simple_convnet():
    return keras.Sequential([
        keras.Input((12, 11, 1)), kl.Conv2D(4, 5, activation="relu"), kl.MaxPooling2D(2), kl.Flatten(),
        kl.Dense(6, activation="relu"), kl.Dense(5),
    ])  # fmt: skip


def resnet(named=True):
    """Return the residual network that xpcnn.models has as resnet8, its layers named after their paths, or not."""

    def name(path):
        return path.replace("/", "_") if named else None

    def norm(y, path):
        return kl.BatchNormalization(epsilon=1e-5, name=name(path))(y)

    x = keras.Input((16, 14, 3))
    y = kl.Conv2D(4, 5, padding="same", activation="relu", name=name("stem/conv1"))(x)
    y = norm(kl.MaxPooling2D(2)(y), "stem/norm1")
    for number, width in enumerate((4, 8, 16), start=1):
        block, stride = f"stage{number}/residual1", min(number, 2)
        options = {"padding": "same", "use_bias": False}
        pad = kl.ZeroPadding2D(1)(y)  # as PyTorch and xpcnn pad; with strides, Keras' "same" begins elsewhere
        z = kl.Conv2D(width, 3, stride, use_bias=False, name=name(f"{block}/body/conv1"))(pad)
        z = kl.ReLU()(norm(z, f"{block}/body/norm1"))
        z = norm(kl.Conv2D(width, 3, **options, name=name(f"{block}/body/conv2"))(z), f"{block}/body/norm2")
        if stride > 1:
            y = kl.Conv2D(width, 1, stride, use_bias=False, name=name(f"{block}/shortcut/conv1"))(y)
            y = norm(y, f"{block}/shortcut/norm1")
        y = kl.ReLU()(kl.Add()([z, y]))
    return keras.Model(x, kl.Dense(5, name=name("affine1"))(kl.GlobalAveragePooling2D()(y)))


class Own(keras.Model):
    """A subclass, whose layers are called by their attributes."""

    def __init__(self):
        super().__init__()
        self.conv = kl.Conv2D(3, 3)
        self.norm = kl.BatchNormalization()
        self.flatten = kl.Flatten()
        self.dense = kl.Dense(4)

    def call(self, x, training=False):
        return self.dense(self.flatten(self.norm(self.conv(x), training=training)))


def own():
    model = Own()
    model(np.zeros((1, 5, 6, 2), np.float32))
    return model


def half(dtype):
    return keras.Sequential([keras.Input((4,)), kl.Dense(3, dtype=dtype), kl.Dense(2, dtype=dtype)])


NETWORKS = {
    "sequential": sequential,
    "functional": functional,
    "deep": deep,
    "nested": nested,
    "simple_convnet": simple_convnet,
    "resnet": resnet,
    "resnet_unnamed": lambda: resnet(named=False),
    "own": own,
    "float16": lambda: half("float16"),
    "bfloat16": lambda: half("bfloat16"),
    "unscaled": lambda: keras.Sequential([keras.Input((4,)), kl.BatchNormalization(scale=False)]),
}

rng = np.random.default_rng(3)
arrays = {}
for name, make in NETWORKS.items():
    model = make()
    for weight in model.weights:
        if "seed" not in weight.path:
            values = 0.4 * rng.standard_normal(weight.shape)
            weight.assign(0.5 + rng.random(weight.shape) if "variance" in weight.path else values)
    shape = model.inputs[0].shape[1:] if name != "own" else (5, 6, 2)
    x = rng.standard_normal((3, *shape)).astype(np.float32)
    arrays[f"{name}/x"] = x
    arrays[f"{name}/y"] = np.asarray(keras.ops.convert_to_numpy(model(x)), np.float32)
    model.save_weights(OUT / f"{name}.weights.h5")
    if name == "simple_convnet":
        arrays |= {f"by_path/{weight.path}": keras.ops.convert_to_numpy(weight) for weight in model.weights}
    if name == "sequential":
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)  # whose moments are in the archive, too
        model.save(OUT / "sequential.keras")
np.savez(OUT / "arrays.npz", **arrays)
