"""What the notebooks share: one idea a module, nothing imported before it is needed."""

import os

# Waiting threads sleep instead of spinning. On two free cores a training step takes 4.5 s with
# it and 3.4 s without; with one other busy program, 5 s and 15 s. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No usage reports by trl and vLLM. Read when the Hub's library is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
