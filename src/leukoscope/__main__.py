"""`python -m leukoscope`, for launchers that start modules, as torchrun does."""

from leukoscope.cli.main import run

if __name__ == "__main__":
    run()
