"""`python -m siamese_jax` is the command `siamese-jax`."""

from siamese_jax.cli import main

if __name__ == "__main__":
    main()
