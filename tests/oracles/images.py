"""Warped images and convolutions, pixel by pixel."""

import math
from itertools import product

import numpy as np


def affine_transform(images, matrices, *, fill=0.0):
    coordinates = affine_coordinates(matrices, np.shape(images)[1:3])
    return warp(images, coordinates, fill=fill)


def affine_coordinates(matrices, image_size):
    out = np.zeros((len(matrices), *image_size, 2))
    for n, row, column in np.ndindex(out.shape[:3]):
        out[n, row, column] = np.asarray(matrices[n], np.float64) @ [row, column, 1.0]
    return out


def warp(images, coordinates, *, fill=0.0):
    """Bilinear interpolation, pixel by pixel; outside the image is `fill`."""
    images, coordinates = (np.asarray(a, np.float64) for a in (images, coordinates))
    out = np.zeros((*coordinates.shape[:3], images.shape[3]))

    def look(image, row, column, channel):
        inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
        return image[row, column, channel] if inside else fill

    for n, row, column, channel in np.ndindex(out.shape):
        y, x = coordinates[n, row, column]
        top, left = math.floor(y), math.floor(x)
        for i, j in product((0, 1), (0, 1)):
            share = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
            out[n, row, column, channel] += share * look(
                images[n], top + i, left + j, channel
            )
    return out


def ink_offsets(images, *, threshold):
    """Middle of the box around what is bright, from the middle of the image."""
    out = np.zeros((len(images), 2))
    for n, image in enumerate(np.asarray(images)):
        places = np.argwhere((image > threshold).any(-1))
        if len(places):
            middle = (places.min(0) + places.max(0)) / 2
            out[n] = middle - (np.array(image.shape[:2]) - 1) / 2
    return out


def center(images, *, threshold, fill=0.0):
    """Looks as far from each pixel as the ink is from the middle."""
    offsets = ink_offsets(images, threshold=threshold)
    grid = np.moveaxis(np.mgrid[: images.shape[1], : images.shape[2]], 0, -1)
    return warp(images, grid[None] + offsets[:, None, None], fill=fill)


def convolution_chwn(x, kernel, *, stride=1):
    """As `convolution`, with the padding that leaves ceil(size / stride) outputs."""
    x, kernel = np.transpose(x, (3, 1, 2, 0)), np.transpose(kernel, (1, 2, 3, 0))
    pads = []
    for size, seen in zip(x.shape[1:3], kernel.shape[:2], strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + seen - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.transpose(convolution(x, kernel, (stride, stride), pads), (3, 1, 2, 0))


def convolution(images, kernel, strides, padding):
    images, kernel = np.asarray(images, np.float64), np.asarray(kernel, np.float64)
    (top, bottom), (left, right) = padding
    images = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (images.shape[1] - kernel.shape[0]) // strides[0] + 1
    width = (images.shape[2] - kernel.shape[1]) // strides[1] + 1
    out = np.zeros((len(images), height, width, kernel.shape[3]))
    for n, y, x, f in np.ndindex(out.shape):
        for i, j, c in np.ndindex(kernel.shape[:3]):
            out[n, y, x, f] += (
                images[n, y * strides[0] + i, x * strides[1] + j, c] * kernel[i, j, c, f]
            )
    return out


def max_pool(x, window):
    x = np.asarray(x)
    n, height, width, channels = x.shape
    out = np.zeros((n, height // window, width // window, channels))
    for place in np.ndindex(out.shape):
        m, i, j, c = place
        out[place] = max(
            x[m, i * window + di, j * window + dj, c]
            for di in range(window)
            for dj in range(window)
        )
    return out
