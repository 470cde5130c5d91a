"""The tasks of ours.py in PyTorch, written in the usual way."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import (  # pyright: ignore[reportMissingImports]
    functional as F,  # noqa: N812
)

from bench import sizes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cuda":  # as XLA multiplies float32 there by default
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)

Masks = list[torch.Tensor]


def _vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for stage, (features, depth) in enumerate(
        ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    ):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, features, 3, padding=1),
                nn.ReLU(inplace=True),
            ]
            channels = features
    layers += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels, 10)]
    return _initialized(nn.Sequential(*layers))


def _conv2() -> nn.Module:
    """Build Conv-2 with BatchNorm at a quarter of its width, for images of 8x8."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 16)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    layers += [nn.MaxPool2d(2), nn.Flatten()]
    for before, after in ((256, 64), (64, 64)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return _initialized(nn.Sequential(*layers, nn.Linear(64, 10)))


def _initialized(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network.to(DEVICE)


def _random_images(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (number, 32, 32, 3), np.uint8).transpose(
        0, 3, 1, 2
    )
    labels = generator.integers(0, 10, number, np.int64)
    return _on_device(np.ascontiguousarray(images)), _on_device(labels)


def _on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE)


def _normalize(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    means = torch.tensor(mean, device=DEVICE).view(1, -1, 1, 1)
    stds = torch.tensor(std, device=DEVICE).view(1, -1, 1, 1)
    # One layout for all tasks: the one with the fastest convolutions on the CPU measured.
    inputs = (images.float() / 255 - means) / stds
    return inputs.contiguous(memory_format=torch.channels_last)


def _augment(images: torch.Tensor, pad: int = 4) -> torch.Tensor:
    """Crop and flip at random: one gather for the whole batch."""
    number, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4)
    corners = torch.randint(0, 2 * pad + 1, (2, number, 1), device=DEVICE)
    rows = corners[0] + torch.arange(height, device=DEVICE)
    columns = corners[1] + torch.arange(width, device=DEVICE)
    heads = torch.rand(number, 1, device=DEVICE) < 0.5
    columns = torch.where(heads, columns.flip(1), columns)
    index = torch.arange(number, device=DEVICE)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def _weights(network: nn.Module) -> list[torch.Tensor]:
    return [weight for weight in network.parameters() if weight.ndim > 1]


def _masks(scores: list[torch.Tensor], density: float) -> Masks:
    flat = torch.cat([score.flatten() for score in scores])
    pruned = int((1 - density) * flat.numel())
    threshold = torch.kthvalue(flat, pruned).values
    return [score > threshold for score in scores]


def _snip() -> Callable[[], Masks]:
    network = _vgg16()
    images, labels = _random_images(sizes.IMAGES)
    inputs, weights = _normalize(images, MEAN, STD), _weights(network)

    def snip() -> Masks:
        loss = F.cross_entropy(network(inputs), labels)
        gradients = torch.autograd.grad(loss, weights)
        return _masks(
            [(w * g).abs().detach() for w, g in zip(weights, gradients, strict=True)],
            0.1,
        )

    return snip


def _grasp() -> Callable[[], Masks]:
    network = _vgg16()
    images, labels = _random_images(sizes.IMAGES)
    inputs, weights = _normalize(images, MEAN, STD), _weights(network)

    def grasp() -> Masks:
        loss = F.cross_entropy(network(inputs) / 200, labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        flow = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
        products = torch.autograd.grad(flow, weights)
        return _masks(
            [(w * h).detach() for w, h in zip(weights, products, strict=True)], 0.1
        )

    return grasp


def _synflow(rounds: int) -> Callable[[], Masks]:
    network = _vgg16()
    weights = _weights(network)
    originals = [weight.detach().clone() for weight in weights]
    ones = torch.ones(1, 3, 32, 32, device=DEVICE)

    def synflow() -> Masks:
        masks = [torch.ones_like(weight) for weight in weights]
        for k in range(1, rounds + 1):
            with torch.no_grad():
                for weight, original, mask in zip(
                    weights, originals, masks, strict=True
                ):
                    weight.copy_(original.abs() * mask)
            gradients = torch.autograd.grad(network(ones).sum(), weights)
            scores = [
                (w * g).abs().detach() for w, g in zip(weights, gradients, strict=True)
            ]
            masks = _masks(scores, 0.1 ** (k / rounds))
        return masks

    return synflow


def _select() -> Callable[[], Masks]:
    scores = [weight.detach().abs() for weight in _weights(_vgg16())]
    return lambda: _masks(scores, 0.1)


def _train_on_batch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: list[torch.Tensor],
    masks: Masks,
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Take one step; pruned weights stay zero."""
    optimizer.zero_grad()
    F.cross_entropy(network(inputs), labels).backward()
    optimizer.step()
    with torch.no_grad():
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)


def _train_step() -> Callable[[], None]:
    network = _vgg16()
    images, labels = _random_images(sizes.STEPS * sizes.BATCH)
    weights = _weights(network)
    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    optimizer = torch.optim.SGD(
        network.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4
    )

    def epoch() -> None:
        for chosen in torch.randperm(sizes.STEPS * sizes.BATCH, device=DEVICE).split(
            sizes.BATCH
        ):
            inputs = _normalize(_augment(images[chosen]), MEAN, STD)
            _train_on_batch(network, optimizer, weights, masks, inputs, labels[chosen])

    return epoch


def _accuracy(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(inputs).argmax(1) == labels).float().mean())


def _evaluate() -> Callable[[], float]:
    network = _vgg16().eval()
    images, labels = _random_images(sizes.EVALUATED)

    def evaluate() -> float:
        accuracies = [
            _accuracy(network, _normalize(batch, MEAN, STD), batch_labels)
            for batch, batch_labels in zip(
                images.split(sizes.EVALUATED_BATCH),
                labels.split(sizes.EVALUATED_BATCH),
                strict=True,
            )
        ]
        return sum(accuracies) / len(accuracies)

    return evaluate


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = _on_device((digits.images * 255 / 16).astype(np.uint8)[:, None])
    return _normalize(images, (0.287,), (0.353,)), _on_device(digits.target)


def _fit(
    network: nn.Module, masks: Masks, inputs: torch.Tensor, labels: torch.Tensor
) -> Any:
    """Train for 8 epochs, and return the weights at the rewind iteration."""
    weights = _weights(network)
    with torch.no_grad():
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)
    optimizer = torch.optim.SGD(
        network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    per_epoch = -(-len(inputs) // sizes.LEVEL_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, sizes.LEVEL_EPOCHS * per_epoch
    )
    rewind_point, iteration = None, 0
    for _ in range(sizes.LEVEL_EPOCHS):
        for chosen in torch.randperm(len(inputs), device=DEVICE).split(
            sizes.LEVEL_BATCH
        ):
            _train_on_batch(
                network, optimizer, weights, masks, inputs[chosen], labels[chosen]
            )
            schedule.step()
            iteration += 1
            if iteration == sizes.REWIND_ITERATION:
                rewind_point = [weight.detach().clone() for weight in weights]
    return rewind_point


def _imp_level() -> Callable[[], Any]:
    inputs, labels = (array[:1437] for array in _digits())

    def level() -> Any:
        network = _conv2()
        weights = _weights(network)
        ones = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
        rewind_point = _fit(network, ones, inputs, labels)
        masks = _masks([weight.detach().abs() for weight in weights], 0.8)
        rewound = [w * mask for w, mask in zip(rewind_point, masks, strict=True)]
        return rewound, masks

    return level


def _cold_start() -> Callable[[], float]:
    def first_result() -> float:
        inputs, labels = _digits()
        network = _conv2().eval()
        weights = _weights(network)
        loss = F.cross_entropy(network(inputs[: sizes.IMAGES]), labels[: sizes.IMAGES])
        gradients = torch.autograd.grad(loss, weights)
        masks = _masks(
            [(w * g).abs().detach() for w, g in zip(weights, gradients, strict=True)],
            0.1,
        )
        _fit(network.train(), masks, inputs[:1437], labels[:1437])
        return _accuracy(network.eval(), inputs[1437:], labels[1437:])

    return first_result


TASKS: dict[str, Callable[[], Callable[[], Any]]] = {
    "snip": _snip,
    "grasp": _grasp,
    "synflow_1": functools.partial(_synflow, 1),
    "synflow_100": functools.partial(_synflow, 100),
    "select": _select,
    "train_step": _train_step,
    "evaluate": _evaluate,
    "imp_level": _imp_level,
    "cold_start": _cold_start,
}


def wait(result: Any) -> None:
    """Wait until the device is done."""
    del result
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
