"""What made and checks `data/`: for maintainers. Nothing in `helpers` imports it, and no lesson.

Notebooks under notebooks/more/ may.

Its modules are commands (``python -m lab.record --help``) and what these need. Which command makes
which file stands in data/README.md.
"""
