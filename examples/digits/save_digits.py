"""Write a few of the held-out digits as pictures, to be explained from the command line.

python save_digits.py FOLDER [COUNT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from data import digits
from PIL import Image


def main() -> None:
    """Write one PNG for each digit, named after its label."""
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    folder.mkdir(parents=True, exist_ok=True)
    x, y = digits("test")
    for number in range(count):
        pixels = x[number, 0] / x[number, 0].max() * 255
        file = folder / f"{number}_is_{int(y[number])}.png"
        Image.frombytes("L", (pixels.shape[1], pixels.shape[0]), bytes(pixels.byte().flatten().tolist())).save(file)


if __name__ == "__main__":
    main()
