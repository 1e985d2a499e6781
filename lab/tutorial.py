"""Run the notebooks from the first to the last: ``python -m lab.tutorial [NOTEBOOK...]``."""

import argparse
import base64
import os
import sys
import time
from pathlib import Path

from helpers.paths import ROOT, RUNS, show
from helpers.preflight import runs_folder

CELL_TIMEOUT = 6 * 3600  # seconds; a training cell on a slow machine takes long, a hang for ever
INLINE = "module://matplotlib_inline.backend_inline"  # figures land in the notebook, always
FREE_NEEDED = 1  # GiB; checkpoints of the short runs and the executed notebooks


def _save_figures(notebook, number, folder):
    """Write a notebook's PNG outputs as NN-cellKK.png; return how many there were."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{number}-cell*.png"):
        old.unlink()
    count = 0
    for index, cell in enumerate(notebook.cells):
        images = [out.data["image/png"] for out in cell.get("outputs", ())
                  if "image/png" in out.get("data", {})]
        for k, image in enumerate(images, start=1):
            name = f"{number}-cell{index:02d}" + (f"-{k}" if k > 1 else "") + ".png"
            (folder / name).write_bytes(base64.b64decode(image))
            count += 1
    return count


def _run(path, out):
    """Execute one notebook in its own folder; return the seconds and how many figures it has."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from tqdm import tqdm

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of an earlier run
    total = sum(c.cell_type == "code" and bool(c.source.strip()) for c in notebook.cells)
    done, start = [], time.perf_counter()
    tty = sys.stdout.isatty()
    if not tty:
        print(f"{path.stem}: {total} cells ...", flush=True)
    bar = tqdm(total=total, desc=path.stem, unit="cell", leave=False, disable=not tty,
               file=sys.stdout, bar_format="{desc}: {n}/{total} cells |{bar}| {elapsed}")
    running = [None]
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3",
        record_timing=False,  # times would change a committed notebook at every execution
        store_widget_state=False,  # a viewer without a kernel then shows the still picture
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning about its own sockets
        on_cell_execute=lambda cell, cell_index: running.__setitem__(0, cell_index),
        on_cell_executed=lambda cell, cell_index, execute_reply: (done.append(1), bar.update()),
    )
    saved = out / path.name
    try:
        client.execute(env=os.environ | {"MPLBACKEND": INLINE})
        for index, cell in enumerate(notebook.cells):
            for output in cell.get("outputs", ()):  # a figure that could not be drawn, say
                if output.output_type == "error":
                    raise RuntimeError(f"{show(path)}, cell {index}: {output.ename}: "
                                       f"{output.evalue}")
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reason = (f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError)
                  else str(error).strip().splitlines()[0])
        raise RuntimeError(f"{show(path)} stopped in its cell {running[0]} (the first is 0): "
                           f"{reason}\nThe whole traceback stands in {show(saved)}.") from error
    finally:
        bar.close()
        nbformat.write(notebook, saved)
        name = path.stem.split("_")[0] if path.stem[0].isdigit() else path.stem
        figures = _save_figures(notebook, name, out / "figures")
    seconds = time.perf_counter() - start
    print(f"{path.stem}: {len(done)}/{total} cells, {seconds:.0f} s", flush=True)
    return seconds, figures


def main(argv=None):
    """Run the named notebooks, or notebooks/01 to 06, and print what came of them.

    Parameters
    ----------
    argv : list of str, optional
        The command line's arguments; those of the process where left out.

    Returns
    -------
    int
        The exit status, 0 if every cell ran.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.tutorial", description=__doc__)
    parser.add_argument("notebook", nargs="*", type=Path, help="default: notebooks/01 to 06")
    names = parser.parse_args(argv).notebook
    paths = [p.resolve() for p in names] or sorted((ROOT / "notebooks").glob("0[1-6]*.ipynb"))
    out, rows = RUNS / "tutorial", []
    try:
        if not paths or not all(p.is_file() for p in paths):
            missing = [show(p) for p in paths if not p.is_file()] or ["notebooks/0[1-6]*.ipynb"]
            raise RuntimeError(f"no such notebook: {', '.join(missing)}")
        for status, line, remedy in runs_folder(FREE_NEEDED):
            if status == "FAIL":
                raise RuntimeError(f"{line}: {remedy}")
        out.mkdir(exist_ok=True)
        chosen = os.environ.get("COUNTDOWN_PROFILE") or "cpu"
        os.environ["COUNTDOWN_PROFILE"] = chosen
        os.environ["COUNTDOWN_RUNS"] = str(RUNS)  # the kernels work in another folder
        print(f"Profile {chosen} (COUNTDOWN_PROFILE); {len(paths)} notebooks", flush=True)
        for path in paths:
            rows.append((path.stem, *_run(path, out)))
    except (RuntimeError, OSError) as error:
        print(f"tutorial: {error}", file=sys.stderr)
        return 1
    width = max(len(stem) for stem, _, _ in rows)
    print(f"\n{'notebook':{width}}  seconds  figures")
    for stem, seconds, figures in rows:
        print(f"{stem:{width}}  {seconds:7.0f}  {figures:7d}")
    print(f"{'total':{width}}  {sum(r[1] for r in rows):7.0f}  {sum(r[2] for r in rows):7d}\n"
          f"Executed notebooks and figures: {show(out)}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
