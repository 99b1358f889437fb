"""Convolution and max-pooling for CPUs, behind `siamese_jax.convolution`.

XLA's own convolution is slow on a CPU, and inside `lax.scan` its gradients fall to a naive
loop that is ten times slower still. Here a convolution is made of matrix products.

maps         linear and bilinear maps for which `vmap` over images costs nothing
patches      the shifted images side by side, times the kernel as a matrix
fourier      products in Fourier space, tile by tile
blocks       convolution and max-pooling in one product, for few channels
pooling      max-pooling
images_last  convolution of images [channels, height, width, n], for half precision
"""
