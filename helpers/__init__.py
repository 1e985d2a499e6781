"""What the notebooks share: one idea a module, nothing imported before it is needed."""

import os

# Waiting threads sleep instead of spinning. Spinning makes a training step several times slower
# when anything else runs on the same few cores. It is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
