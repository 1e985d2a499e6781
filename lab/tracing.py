"""How long torch.compile needs for a loop of n chunks: ``python -m lab.tracing``.

A reduced copy of the loop in which Unsloth scores log-probabilities: each chunk of rows is a slice
with symbolic bounds, and tracing unrolls the loop. Needs no GPU and no Unsloth. Unsloth 2026.10.7
takes four chunks for each completion of a batch, so 256 completions make 1,024.
"""

import argparse
import time

import torch

from helpers.paths import DATA, show
from helpers.runs import environment, write_json

CHUNKS = (1, 4, 16, 64)
TARGET = DATA / "benchmarks" / "tracing.json"


def log_probs(hidden, head, index, chunks):
    """Score the tokens `index` from hidden states (rows, width) and an output head, in chunks."""
    rows = hidden.shape[0]
    bounds = [(i * rows) // chunks for i in range(chunks + 1)]
    found = []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        logits = (hidden[start:end] @ head.t()).float()
        chosen = logits.gather(-1, index[start:end].unsqueeze(-1)).squeeze(-1)
        found.append(chosen - logits.logsumexp(-1))
    return torch.cat(found)


def first_call_seconds(chunks, rows=2048, width=16, vocabulary=64):
    """Return the processor seconds of the first call of the compiled loop.

    The backend only traces (``aot_eager``): generating kernels would come on top.
    """
    torch._dynamo.reset()
    compiled = torch.compile(log_probs, dynamic=True, fullgraph=True, backend="aot_eager")
    hidden, head = torch.randn(rows, width), torch.randn(vocabulary, width)
    index = torch.randint(vocabulary, (rows,))
    start = time.process_time()
    result = compiled(hidden, head, index, chunks)
    seconds = time.process_time() - start
    assert torch.allclose(result, log_probs(hidden, head, index, chunks), atol=1e-4)
    return seconds


def main():
    """Measure, print and write the table data/benchmarks/tracing.json."""
    argparse.ArgumentParser(prog="python -m lab.tracing", description=main.__doc__).parse_args()
    torch.set_num_threads(1)
    first_call_seconds(2)  # what the first compilation of a process loads is not counted
    table = []
    for chunks in CHUNKS:
        table.append({"chunks": chunks, "cpu_seconds": round(first_call_seconds(chunks), 1)})
        print(table[-1], flush=True)
    write_json(TARGET, {"command": "python -m lab.tracing", "table": table,
                        **environment(on_gpu=False)})
    print("written to", show(TARGET))


if __name__ == "__main__":
    main()
