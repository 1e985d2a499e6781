"""Read a stranger's Parquet file in a process of its own.

pyarrow aborts on some damaged files, and a file of a few KiB may unpack to more than there is
memory. Here that ends a child, which has limits of memory and time, and not the program that asks.
"""

import io
import json
import subprocess
import sys
from contextlib import suppress

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.paths import ROOT

MEMORY, SECONDS = 2 * 2**30, 60  # bytes that a child may take (not on Windows), and its seconds
COLUMNS = {"stage": pa.string(), "temperature": pa.float64(), "sample": pa.int64(),
           "nums": pa.list_(pa.int64()), "target": pa.int64(), "completion": pa.string(),
           "tokens": pa.int64(), "correct": pa.bool_()}  # of graded completions


def json_lines(data, most):
    """Return the rows of a Parquet file of graded completions as lines of JSON.

    Parameters
    ----------
    data : bytes
        The file.
    most : int
        Bytes that the lines may take.

    Raises
    ------
    ValueError
        If it is no whole Parquet file of `COLUMNS` and no more, or too large.
    """
    try:
        done = subprocess.run([sys.executable, "-m", "lab.untrusted", str(most)], input=data,
                              capture_output=True, timeout=SECONDS, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"it takes longer than {SECONDS} s to read") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it ends the reader"]
        raise ValueError(f"it is damaged, or not a run's: {ascii(said[-1][:200])}")
    return done.stdout


def main():
    """Write the lines of the file on standard input to standard output; another status if not."""
    with suppress(ImportError, ValueError, OSError):  # Windows has none, macOS may refuse it
        import resource

        # above what the imports have reserved: on 64 cores that alone was more than 2 GiB
        limit = psutil.Process().memory_info().vms + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pa.set_memory_pool(pa.system_memory_pool())  # others reserve more than they need
    most = int(sys.argv[1])
    table = pq.read_table(io.BytesIO(sys.stdin.buffer.read()), use_threads=False)
    kinds = {part.name: pa.string() if part.type == pa.large_string() else part.type
             for part in table.schema}
    if kinds != COLUMNS or table.num_columns != len(COLUMNS) or table.schema.metadata:
        sys.exit("it has other columns, or of other types, or more than columns")
    if table.nbytes > most:
        sys.exit("it is larger than a run's")
    table.validate(full=True)
    sys.stdout.write("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


if __name__ == "__main__":
    main()
