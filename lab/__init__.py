"""What made and checks `data/`: for maintainers. Nothing in `helpers` imports it.

Notebooks 01, 02, 03, 05 and 06 still take parts of it; tests/test_layout.py lists them.

Its modules are commands (``python -m lab.record --help``) and what these need. Which command makes
which file stands in data/README.md.
"""
