"""The system `omniglot_supcon` in plain PyTorch: the same network, loss and update.

Three details differ. The learning rate is constant, and the average of the weights has the
same decay from the first step on, neither of which changes the speed. The field of an
elastic distortion is interpolated from a coarse grid, which is cheaper than the Gaussian
filter of our system.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class ResNet(nn.Module):
    """The network `siamese_jax.encoders.ResNet`, for images [n, 1, height, width]."""

    def __init__(self, size: int, stem: int, widths: Any, num_blocks: int, dim: int):
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(1, stem, 5, 2, bias=False)])
        self.norms = nn.ModuleList()
        # whether each block of each stage has a convolution in its shortcut
        self.plan: list[list[bool]] = []
        before, left = stem, size // 4
        for width in widths:
            self.plan.append([])
            for _ in range(num_blocks):
                self.norms.extend([nn.BatchNorm2d(before), nn.BatchNorm2d(width)])
                pair = [(before, width), (width, width)]
                self.convolutions.extend(
                    nn.Conv2d(*channels, 3, padding=1, bias=False) for channels in pair
                )
                self.plan[-1].append(before != width)
                if before != width:
                    self.convolutions.append(nn.Conv2d(before, width, 1, bias=False))
                before = width
            left //= 2
        self.norms.append(nn.BatchNorm2d(before))
        self.dense = nn.Linear(before * left * left, dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds images."""
        convolutions, norms = iter(self.convolutions), iter(self.norms)
        x = next(convolutions)(F.pad(images, (1, 2, 1, 2)))  # "SAME" for 5x5, stride 2
        for stage in self.plan:
            x = F.max_pool2d(x, 2)
            for has_shortcut in stage:
                y = next(convolutions)(F.relu(next(norms)(x)))
                y = next(convolutions)(F.relu(next(norms)(y)))
                x = y + (next(convolutions)(x) if has_shortcut else x)
        x = F.relu(next(norms)(F.max_pool2d(x, 2)))
        flat = x.permute(0, 2, 3, 1).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            return self.dense(flat.float())


def load(net: ResNet, params: Any) -> None:
    """Copies the parameters of the JAX network into the PyTorch network."""

    def put(parameter: nn.Parameter, array: Any) -> None:
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(array)))

    for i, convolution in enumerate(net.convolutions):
        put(convolution.weight, np.transpose(params[f"Conv_{i}"]["kernel"], (3, 2, 0, 1)))
    for i, norm in enumerate(net.norms):
        put(norm.weight, params[f"BatchNorm_{i}"]["scale"])
        put(norm.bias, params[f"BatchNorm_{i}"]["bias"])
    put(net.dense.weight, params["Dense_0"]["kernel"].T)
    put(net.dense.bias, params["Dense_0"]["bias"])


def loss_of(embeddings: torch.Tensor, labels: torch.Tensor, log_temperature: Any) -> Any:
    """Returns the supervised contrastive loss of the cosine similarities of a batch."""
    embeddings = F.normalize(embeddings)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (embeddings @ embeddings.T / log_temperature.exp()).masked_fill(
        itself, -math.inf
    )
    same = (labels[:, None] == labels[None, :]) & ~itself
    mean = logits.masked_fill(~same, 0).sum(1) / same.sum(1)
    return (torch.logsumexp(logits, 1) - mean).mean()


def ink_offsets(ink: torch.Tensor, threshold: float) -> torch.Tensor:
    """Returns how far the centre of the ink is from the centre of the image, in pixels.

    The result is [n, 2], column and row.
    """
    bright, last = ink[:, 0] > threshold, ink.shape[2] - 1
    offsets = []
    for axis in (1, 2):
        on = bright.any(axis).int()
        ends = on.argmax(1) + last - on.flip(1).argmax(1)
        offsets.append(torch.where(on.any(1), (ends - last) / 2, 0.0))
    return torch.stack(offsets, 1)


class Trainer:
    """Trains the network: draws and distorts batches, updates and averages the weights."""

    def __init__(self, config: Any, images: np.ndarray, labels: np.ndarray, alphabets: Any):
        self.config, self.device = config, "cuda" if torch.cuda.is_available() else "cpu"
        to = {"device": self.device}
        self.net = ResNet(
            config.size, config.stem, config.widths, config.num_blocks, config.dim
        ).to(memory_format=torch.channels_last, **to)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(config.temperature), **to)
        )
        self.images = torch.from_numpy(images[..., 0]).to(**to)
        per_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.per_class = torch.from_numpy(np.stack(per_class)).to(**to)
        firsts = alphabets[self.per_class[:, 0].cpu().numpy()]
        self.alphabets = [
            torch.from_numpy(np.flatnonzero(firsts == name)).to(**to)
            for name in np.unique(firsts)
        ]
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        parameters = [*self.net.parameters(), self.log_temperature]
        self.optimizer = torch.optim.AdamW(
            parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.average = [parameter.detach().clone() for parameter in parameters]

    def uniform(self, *shape: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
        """Returns uniform random numbers between `low` and `high`."""
        drawn = torch.rand(shape, generator=self.generator, device=self.device)
        return low + (high - low) * drawn

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws characters of few alphabets and some drawings of each, all rotated alike.

        Returns:
          The drawings and the number of the character of each.
        """
        config = self.config
        order = torch.randperm(len(self.alphabets), generator=torch.Generator())
        characters = torch.cat([self.alphabets[i] for i in order.tolist()])[
            : config.num_classes
        ]
        drawn = self.uniform(config.num_classes, self.per_class.shape[1])
        rows = self.per_class[characters].gather(
            1, drawn.argsort(1)[:, : config.num_images]
        )
        ink = self.images[rows.flatten()][:, None].float() / 255
        if config.turn:
            turn = int(torch.randint(8, ()))
            ink = torch.rot90(ink.flip(3) if turn >= 4 else ink, turn % 4, (2, 3))
        return ink, characters.repeat_interleave(config.num_images)

    def distort(self, ink: torch.Tensor) -> torch.Tensor:
        """Distorts drawings: an affine map and bending together, then the stroke width."""
        config, (num, _, size, _) = self.config, ink.shape
        angle = self.uniform(num) * math.radians(config.max_rotation)
        rotation = torch.stack(
            [torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], 1
        ).view(num, 2, 2)
        shear = torch.eye(2, device=self.device).repeat(num, 1, 1)
        shear[:, 0, 1], shear[:, 1, 0] = (self.uniform(2, num) * config.max_shear).unbind()
        scale = 1 + self.uniform(num, 1, 2) * config.max_scale
        maps = torch.linalg.inv(rotation @ shear * scale)
        unit = 2 / (size - 1)  # one pixel in the coordinates of the grid
        shift = -unit * config.max_shift * size * (maps @ self.uniform(num, 2, 1))
        grid = F.affine_grid(
            torch.cat([maps, shift], 2), [num, 1, size, size], align_corners=True
        )
        grid = grid + unit * ink_offsets(ink, config.ink)[:, None, None]
        if config.elastic:
            coarse = torch.randn(
                num, 2, 10, 10, generator=self.generator, device=self.device
            )
            field = F.interpolate(
                coarse, (size, size), mode="bicubic", align_corners=True
            )  # cheaper than the Gaussian filter of our system
            grid = grid + unit * config.elastic * size * field.permute(0, 2, 3, 1)
        ink = F.grid_sample(ink, grid, align_corners=True)
        change = self.uniform(num, 1, 1, 1) * config.thickness
        sign = torch.sign(change)
        largest = F.max_pool2d(F.pad(sign * ink, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return ink + change * (largest - sign * ink)

    def embed(self, ink: torch.Tensor) -> torch.Tensor:
        """Embeds images in the precision that the settings ask for."""
        half = self.config.compute_dtype == "bfloat16"
        with torch.autocast(self.device, torch.bfloat16, enabled=half):
            return self.net(ink.contiguous(memory_format=torch.channels_last))

    def step(self) -> torch.Tensor:
        """Makes one training step and returns the loss."""
        ink, labels = self.sample()
        loss = loss_of(self.embed(self.distort(ink)), labels, self.log_temperature)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        parameters = [*self.net.parameters(), self.log_temperature]
        torch._foreach_lerp_(
            self.average,
            [parameter.detach() for parameter in parameters],
            1 - self.config.average_decay,
        )
        return loss.detach()
