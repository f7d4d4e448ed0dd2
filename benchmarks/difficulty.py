"""Prints the spread of question difficulty for real models: `python -m benchmarks.difficulty`.

The shares of MATH500-L5 questions with 8, 12 or all of 16 samples right are published as G-Pass@16 (Liu et al., arXiv
2412.13147; tables of github.com/open-compass/GPassK). A Beta distribution of the questions' rates is fitted to these
three shares: Beta(k a, k (1 - a)) for accuracy a; a smaller k is a larger spread. adaptive.py simulates with it.
"""

from collections.abc import Mapping
from math import fsum, sqrt
from types import MappingProxyType
from typing import NamedTuple

from malt.trees.adaptive import Belief, at_least

SAMPLES, RIGHT = 16, (8, 12, 16)
MATH500_L5: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "Llama-3.1-8B-Instruct": (0.178, 0.107, 0.035),
        "Llama-3.1-70B-Instruct": (0.418, 0.321, 0.161),
        "InternLM3-8B-Instruct": (0.499, 0.403, 0.269),
        "Qwen2.5-7B-Instruct": (0.549, 0.433, 0.280),
        "Llama-3.3-70B-Instruct": (0.554, 0.495, 0.350),
        "Qwen2.5-72B-Instruct": (0.625, 0.544, 0.449),
        "Qwen2.5-Math-72B-Instruct": (0.649, 0.594, 0.460),
        "Qwen2.5-Math-7B-Instruct": (0.650, 0.622, 0.576),
        "Qwen2.5-Max": (0.658, 0.573, 0.389),
        "Qwen2.5-32B-Instruct": (0.666, 0.594, 0.410),
        "DeepSeek-R1-Distill-Llama-8B": (0.795, 0.700, 0.395),
        "QwQ-32B-Preview": (0.872, 0.788, 0.574),
        "DeepSeek-R1-Distill-Qwen-7B": (0.879, 0.805, 0.626),
        "DeepSeek-R1-Distill-Llama-70B": (0.896, 0.855, 0.668),
        "DeepSeek-R1-Distill-Qwen-32B": (0.899, 0.838, 0.704),
    }
)
"""Published shares of questions with at least 8, 12 and 16 right samples, by model."""


class Fit(NamedTuple):
    """Distribution of a model's rates over questions."""

    error: float
    """Root mean square error of the three shares."""
    accuracy: float
    k: float


def fitted(model: str) -> Fit:
    """Return the best fit to a model's published shares."""
    shares = MATH500_L5[model]
    accuracies = (round(shares[0] + step / 100, 3) for step in range(-10, 11))
    return min(fit(shares, accuracy, step / 50) for accuracy in accuracies for step in range(5, 101) if accuracy < 1)


def fit(shares: tuple[float, ...], accuracy: float, k: float) -> Fit:
    """Return one distribution with its error."""
    rates = Belief(k * accuracy, k * (1 - accuracy))
    errors = (at_least(right, SAMPLES, rates) - share for right, share in zip(RIGHT, shares, strict=True))
    return Fit(sqrt(fsum(error**2 for error in errors) / len(RIGHT)), accuracy, k)


def main() -> None:
    """Print the table."""
    print("| | accuracy | k | error of the shares |\n|---|---:|---:|---:|")
    for model in MATH500_L5:
        error, accuracy, k = fitted(model)
        print(f"| {model} | {accuracy:.2f} | {k:.2f} | {error:.3f} |")


if __name__ == "__main__":
    main()
