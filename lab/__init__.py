"""What made and checks `data/`: for maintainers; no notebook of the lesson imports it.

Its modules are commands (``python -m lab.record --help``) and what these need. Which command makes
which file stands in data/README.md.
"""
