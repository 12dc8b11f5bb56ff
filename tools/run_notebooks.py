"""Runs every notebook of colab/ from top to bottom and keeps its outputs: `make notebooks`.

A cell that raises stops the run with its traceback and a non-zero exit code; the file is then
untouched.
"""

from __future__ import annotations

import os
import pathlib
import time

import nbclient
import nbformat

from lunar_distill_jax import atomic

COLAB = pathlib.Path(__file__).parents[1] / "colab"


def main() -> None:
    paths = sorted(COLAB.glob("*.ipynb"))
    if not paths:
        raise SystemExit(f"There is no notebook in {COLAB}.")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA's remarks on a busy machine are no output
    for path in paths:
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,  # equal runs give equal files
            extra_arguments=["--log-level=ERROR"],
        )
        client.execute(cwd=COLAB)
        atomic.write_text(path, nbformat.writes(notebook) + "\n")
        print(f"{path.name}: {len(notebook.cells)} cells, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
