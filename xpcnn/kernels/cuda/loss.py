"""Cross-entropy of softmax on CUDA: one launch, or two where there are many rows."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.kernels.cuda import layout, runtime

LABELS = {
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned",
    "uint64": "unsigned long long",  # from 2**63 on they count as negative: out of range all the same
}
FEW = 8192  # logits that one block takes
LARGE_BLOCK = 1024  # threads
MOST_BLOCKS = 1024
EACH = 4  # logits of a row to a thread


def cross_entropy(logits: Array, targets: Array, reduction: str, smoothing: float = 0.0) -> tuple[Array, Array]:
    """Return the loss, () or (N,) without a reduction, and its gradient (N, K); NaN for labels out of range.

    Targets are labels (N,) or probabilities (N, K) of the logits' dtype.
    """
    rows, classes = logits.shape
    logits, targets = runtime.contiguous(logits), runtime.contiguous(targets)
    labels, targets = (targets, None) if targets.ndim == 1 else (None, targets)
    slopes = runtime.empty(logits.shape, logits.dtype)
    share = 1.0 / rows if reduction == "mean" else 1.0
    dtype = "float64" if str(logits.dtype) == "float64" else "float32"
    loss = runtime.empty((rows if reduction == "none" else 1,), dtype)
    label = LABELS["int64" if labels is None else str(labels.dtype)]
    text = runtime.text("loss.cu", **runtime.types(logits), LABEL=label)
    threads = LARGE_BLOCK if rows * classes <= FEW else runtime.THREADS
    apart = threads // layout.power_of_two(-(-classes // EACH), threads)
    blocks = 1 if threads == LARGE_BLOCK else min(MOST_BLOCKS, -(-rows // apart))
    given = logits, labels, targets, slopes
    sizes = rows, classes, apart, share, smoothing
    if reduction == "none":
        runtime.launch(text, "cross_entropy", blocks, *given, loss, None, None, *sizes, threads=threads)
    elif blocks == 1:
        runtime.launch(text, "cross_entropy", blocks, *given, None, None, loss, *sizes, threads=threads)
    else:
        totals = runtime.empty((blocks,), "float64")
        runtime.launch(text, "cross_entropy", blocks, *given, None, totals, None, *sizes, threads=threads)
        runtime.launch(text, "cross_entropy_total", 1, totals, loss, blocks, share)
    return loss if reduction == "none" else loss.reshape(()), slopes
