"""The five systems in plain PyTorch, as its users would write them.

`build(system, **options)` returns a network with its loss and its optimiser, and takes the
same options as `keras_reference.build`. Both inputs go through the encoder as one batch.
Images are float32 `[n, channels, height, width]`. Features are flattened in the order NHWC,
so that `set_weights` can copy the parameters of our system.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-7  # the tutorials raise smaller squared distances to this value


class Reference(NamedTuple):
    """A system in PyTorch.

    Attributes:
      encoder: Network from images to embeddings.
      head: Layer from two embeddings to log-odds, or None if the system has no such layer.
      loss_fn: `loss_fn(a, b, same)` of the embeddings of pairs, with all penalties.
      optimizer: Optimiser of the parameters of encoder and head.
    """

    encoder: nn.Sequential
    head: nn.Linear | None
    loss_fn: Callable[..., torch.Tensor]
    optimizer: torch.optim.Optimizer

    def loss(self, images: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a batch of pairs.

        Args:
          images: Images of both inputs, [2 n, ...], with the left ones first.
          same: 1.0 for pairs of one class and 0.0 for others, [n].
        """
        a, b = self.encoder(images).float().chunk(2)
        return self.loss_fn(a, b, same)


class Flatten(nn.Module):
    """Flattens images [n, channels, height, width] in the order NHWC, as Flax does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the features as [n, height * width * channels]."""
        return x.permute(0, 2, 3, 1).flatten(1)


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().sum(1).clamp(min=EPSILON).sqrt()


def contrastive_loss(a: torch.Tensor, b: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Returns the contrastive loss with margin 1 and without the factor 1/2."""
    distance = _distance(a, b)
    pull, push = distance.square(), functional.relu(1 - distance).square()
    return (same * pull + (1 - same) * push).mean()


def distance_cross_entropy(
    a: torch.Tensor, b: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Returns the cross-entropy of the tutorial, with the distance as the probability."""
    probability = _distance(a, b).clamp(1e-7, 1 - 1e-7)
    return functional.binary_cross_entropy(probability, same)


class RMSprop(torch.optim.Optimizer):
    """RMSprop as in Keras, with the update g / sqrt(v + 1e-7).

    It takes as many operations as the RMSprop of PyTorch.
    """

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3, "decay": 0.9, "eps": 1e-7})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["v"] = torch.zeros_like(parameter)
                v = state["v"].mul_(group["decay"])
                v.addcmul_(gradient, gradient, value=1 - group["decay"])
                root = v.add(group["eps"]).sqrt_()
                parameter.addcdiv_(gradient, root, value=-group["lr"])


def _rmsprop(parameters: Any) -> torch.optim.Optimizer:
    return RMSprop(parameters)


def _adam(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, eps=1e-7, fused=True)


def _size(encoder: nn.Module, image_shape: Sequence[int]) -> int:
    height, width, channels = image_shape
    with torch.no_grad():
        return encoder(torch.zeros(1, channels, height, width)).shape[1]


# The five systems -----------------------------------------------------------------------


def mnist_mlp(
    *, dropout: float = 0.5, image_shape: Sequence[int] = (28, 28, 1)
) -> Reference:
    """Builds `mnist_mlp`: three dense layers with dropout between them."""
    layers: list[nn.Module] = [Flatten(), nn.Linear(int(np.prod(image_shape)), 128)]
    for _ in range(2):
        layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 128)]
    encoder = nn.Sequential(*layers, nn.ReLU())
    return Reference(encoder, None, contrastive_loss, _rmsprop(encoder.parameters()))


def mnist_conv(
    *, form: str = "literal", image_shape: Sequence[int] = (28, 28, 1)
) -> Reference:
    """Builds `mnist_conv` in its literal form: one convolution and one dense layer."""
    if form != "literal":
        raise ValueError(f"form must be 'literal'; got {form!r}")
    front = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), Flatten())
    dense = nn.Linear(_size(front, image_shape), 128)
    encoder = nn.Sequential(*front, dense, nn.ReLU())
    optimizer = _adam(encoder.parameters(), 1e-3)
    return Reference(encoder, None, distance_cross_entropy, optimizer)


def orl_tutorial(
    *,
    stride: int = 1,
    dropout: Sequence[float] = (0.25, 0.25, 0.1),
    image_shape: Sequence[int] = (56, 46, 1),
) -> Reference:
    """Builds `orl_tutorial`: two convolutions with pooling, and two dense layers."""
    front = nn.Sequential()
    for channels, features, rate in ((1, 6, dropout[0]), (6, 12, dropout[1])):
        front.extend([nn.Conv2d(channels, features, 3, stride), nn.ReLU()])
        front.extend([nn.MaxPool2d(2), nn.Dropout(rate)])
    front.append(Flatten())
    dense = nn.Linear(_size(front, image_shape), 128), nn.Linear(128, 50)
    encoder = nn.Sequential(
        *front, dense[0], nn.ReLU(), nn.Dropout(dropout[2]), dense[1], nn.ReLU()
    )
    return Reference(encoder, None, contrastive_loss, _rmsprop(encoder.parameters()))


def omniglot_koch(
    *,
    image_size: int = 105,
    kernel_sizes: Sequence[int] = (10, 7, 4, 4),
    dim: int = 4096,
) -> Reference:
    """Builds `omniglot_koch`: four convolutions, a sigmoid layer, weighted L1 distance."""
    front, widths = nn.Sequential(), (1, 64, 128, 128, 256)
    for number, size in enumerate(kernel_sizes):
        front.extend([nn.Conv2d(widths[number], widths[number + 1], size), nn.ReLU()])
        if number < 3:
            front.append(nn.MaxPool2d(2))
    front.append(Flatten())
    dense = nn.Linear(_size(front, (image_size, image_size, 1)), dim)
    encoder, head = nn.Sequential(*front, dense, nn.Sigmoid()), nn.Linear(dim, 1)

    def loss(a: torch.Tensor, b: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        odds = head((a - b).abs())[:, 0]
        entropy = functional.binary_cross_entropy_with_logits(odds, same)
        of_convolutions = sum(
            layer.weight.square().sum() for layer in front if isinstance(layer, nn.Conv2d)
        )
        return entropy + 2e-4 * of_convolutions + 1e-3 * dense.weight.square().sum()

    optimizer = _adam([*encoder.parameters(), *head.parameters()], 6e-5)
    return Reference(encoder, head, loss, optimizer)


def mnist_towers(
    *, variant: str = "c", image_shape: Sequence[int] = (28, 28, 1)
) -> Reference:
    """Builds variant c of `mnist_towers`: a dense layer, and one for the distance."""
    if variant != "c":
        raise ValueError(f"variant must be 'c'; got {variant!r}")
    dense, head = nn.Linear(int(np.prod(image_shape)), 128), nn.Linear(1, 1)
    encoder = nn.Sequential(Flatten(), dense, nn.ReLU())

    def loss(a: torch.Tensor, b: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        odds = head(_distance(a, b)[:, None])[:, 0]
        return functional.binary_cross_entropy_with_logits(odds, same)

    optimizer = _adam([*encoder.parameters(), *head.parameters()], 1e-3)
    return Reference(encoder, head, loss, optimizer)


SYSTEMS: dict[str, Callable[..., Reference]] = {
    fn.__name__: fn
    for fn in (mnist_mlp, mnist_conv, orl_tutorial, omniglot_koch, mnist_towers)
}


def build(system: str, **options: Any) -> Reference:
    """Builds the network of one of `SYSTEMS`, freshly initialised.

    Raises:
      ValueError: If there is no system with this name.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}; got {system!r}")
    reference = SYSTEMS[system](**options)
    # convolutions are faster on a CPU with this memory format
    reference.encoder.to(memory_format=torch.channels_last)
    return reference


# Weights --------------------------------------------------------------------------------


def set_weights(reference: Reference, params: Mapping[str, Any]) -> None:
    """Copies the parameters of our system into the PyTorch network.

    Raises:
      RuntimeError: If a shape differs from that of the network.
    """
    encoder = params["encoder"]
    with torch.no_grad():
        for layer, name in _named(reference.encoder):
            kernel = np.asarray(encoder[name]["kernel"])
            axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            layer.weight.copy_(torch.tensor(kernel.transpose(axes)))
            layer.bias.copy_(torch.tensor(np.asarray(encoder[name]["bias"])))
        if reference.head is not None:
            weights, bias = _leaves(params["head"])
            reference.head.weight.copy_(torch.tensor(weights.reshape(1, -1)))
            reference.head.bias.copy_(torch.tensor(bias.reshape(1)))


def _named(encoder: nn.Sequential) -> Iterator[tuple[Any, str]]:
    """Yields the layers that have weights, with the names that Flax gives them."""
    for kind, name in ((nn.Conv2d, "Conv"), (nn.Linear, "Dense")):
        layers = [layer for layer in encoder if isinstance(layer, kind)]
        yield from ((layer, f"{name}_{number}") for number, layer in enumerate(layers))


def _leaves(head: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights and the bias of a head, under either of the names in use."""
    head = head.get("Dense_0", head)
    weights = head["kernel"] if "kernel" in head else head["weights"]
    return np.asarray(weights), np.asarray(head["bias"])
