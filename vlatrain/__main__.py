"""`python -m vlatrain`."""

from vlatrain.cli.main import entry

if __name__ == "__main__":
    entry()
