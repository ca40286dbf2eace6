"""Run the README's demo and put what it printed into the README, so that no figure there is typed by hand."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
MARK = "<!-- demo output: tools/update_readme.py -->"
PACKAGES = ("onnxruntime", "onnx", "numpy")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "bitswitch_deploy", "export", "--target", "jetson"]
        output = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    # what depends on the machine that ran it
    output = re.sub(r" in [\d.]+ s\n", "\n", output, count=1).replace(f"{folder}/", "")
    output = re.sub(r"(master +)\S*/calibration/", r"\1calibration/", output)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    block = "".join(f"    {line}".rstrip() + "\n" for line in output.splitlines())
    text = README.read_text(encoding="utf-8")
    start = text.index(MARK)
    end = text.index("<!-- end -->", start)
    README.write_text(f"{text[:start]}{MARK}\n\n{block}\n({versions})\n{text[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
