"""A fingerprint of a machine's numerics: numpy's log, exp and the like differ in the last bit
between kinds of CPU.
"""

import numpy as np


def math_bits() -> list[float]:
    """One number a function, equal on machines where it gives the same bits."""
    values = np.linspace(0.01, 9, 4001).astype("f4")
    doubles = values.astype("f8")
    result = [
        np.log(values),
        np.exp(values),
        np.hypot(values, values[::-1]),
        np.tanh(values),
        np.sin(values),
        np.cos(values),
    ]
    result += [
        np.sinh(values),
        np.log(doubles),
        np.exp(doubles),
        np.tanh(doubles),
        np.hypot(doubles, doubles[::-1]),
    ]
    bits = [array.view("u4").astype("u8") for array in result]
    return [float((b * np.arange(1, len(b) + 1, dtype="u8") % 65521).sum()) for b in bits]
