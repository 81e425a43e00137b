"""`python -m vlatrain`."""

from vlatrain.cli import entry

if __name__ == "__main__":
    entry()
