"""Makes particle_net.npz: weights, inputs, answers and gradients of weaver-core's own ParticleNet
and ParticleNetTagger.

    PYTHON_WITH_WEAVER_CORE tests/weaver/peer/particle_net.py     (from the root of this project;
        writes beside this file)

No jet has between 1 and k padded places: which particles weaver-core's padded places then take for
neighbours is left to rounding.
"""

from pathlib import Path

import numpy as np
import torch

# weaver-core's: this project is not on the path of a script
from weaver.nn.model.ParticleNet import ParticleNet, ParticleNetTagger

NET = {"conv_params": [(3, (8, 8)), (3, (8, 12))], "fc_params": [(8, 0.0)]}


def kind(
    generator: torch.Generator, dim: int, length: int, counts: list[int]
) -> list[torch.Tensor]:
    """Points, features and mask of jets with these multiplicities."""
    mask = (torch.arange(length) < torch.tensor(counts)[:, None])[:, None].float()
    return [
        torch.randn(len(counts), width, length, generator=generator) * mask for width in (2, dim)
    ] + [mask]


def answers(
    name: str, model: torch.nn.Module, inputs: list[torch.Tensor], arrays: dict[str, np.ndarray]
) -> None:
    for bn in (
        module
        for module in model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ):
        torch.nn.init.uniform_(bn.weight, 0.5, 1.5)
        torch.nn.init.uniform_(bn.bias, -0.5, 0.5)
    arrays.update(
        {
            f"{name}/weight/{key}": value.clone().numpy()
            for key, value in model.state_dict().items()
            if "_counter" not in key
        }
    )
    arrays.update({f"{name}/input/{number}": value.numpy() for number, value in enumerate(inputs)})
    output = model.train()(*inputs)
    output.square().sum().backward()
    arrays[f"{name}/train"] = output.detach().numpy()
    arrays.update(
        {f"{name}/gradient/{key}": value.grad.numpy() for key, value in model.named_parameters()}
    )
    arrays[f"{name}/eval"] = model.eval()(*inputs).detach().numpy()


def main() -> None:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    result: dict[str, np.ndarray] = {}
    jets = kind(generator, 5, 10, [10, 6, 5, 4, 2, 1, 10])
    answers("fusion", ParticleNet(5, 3, trim=False, **NET), jets, result)
    answers(
        "plain",
        ParticleNet(5, 1, use_fusion=False, use_fts_bn=False, use_counts=False, trim=False, **NET),
        jets,
        result,
    )
    vertices = kind(generator, 3, 5, [5, 1, 0, 1, 1, 0, 5])
    answers(
        "tagger",
        ParticleNetTagger(5, 3, 4, trim=False, use_fusion=False, use_fts_bn=False, **NET),
        jets + vertices,
        result,
    )
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **result)


if __name__ == "__main__":
    main()
