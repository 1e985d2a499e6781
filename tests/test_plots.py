import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from PIL import Image

from helpers import plots
from helpers.paths import ROOT

STYLES = ({}, "dark_background", {"figure.facecolor": "none"}, "ggplot",
          ["dark_background", {"figure.facecolor": "none", "axes.facecolor": "none"}])
ROWS = [{"step": k, "equation_reward": k / 10, "truncated": 0.0} for k in range(1, 6)]


@pytest.fixture
def shown(monkeypatch):
    images = []
    monkeypatch.setattr("IPython.display.display", images.append)
    return images


def test_a_figure_is_shown_at_twice_the_resolution_with_words(shown):
    figure, axis = plt.subplots(figsize=(5, 2), dpi=100)
    axis.plot([1, 2])
    plots.show(figure, "a line that rises")
    (image,) = shown
    data, metadata = image._repr_png_()
    assert metadata == {"width": 500, "alt": "a line that rises"}
    assert Image.open(io.BytesIO(image.data)).size == (1000, 400)
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize("stage", [*plots.STAGES, "all"])
def test_the_loop_marks_one_stage(monkeypatch, stage):
    marked = []

    def picture(figure, alt):
        texts = figure.axes[0].texts
        marked.extend(text.get_text() for text in texts if text.get_color() == "white")
        assert stage in alt
        plt.close(figure)

    monkeypatch.setattr(plots, "show", picture)
    plots.loop(stage)
    assert marked == (list(plots.STAGES) if stage == "all" else [stage])


def test_a_stage_that_is_none_is_named():
    with pytest.raises(ValueError, match="no stage is called 'reward'; there are puzzle"):
        plots.loop("reward")


def test_curves_have_one_panel_a_metric_and_stand_on_a_common_axis():
    figure = plots.training_curves({"a": ROWS, "b": ROWS[:2]}, steps=80)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == list(plots.PANELS.values()) and figure.get_figwidth() <= 9
    assert all(axis.get_xlim() == (0, 80) for axis in figure.axes)
    assert figure.axes[0].get_ylim() == (0, 1.05)
    assert not figure.axes[1].lines  # the rows have no format reward: an empty panel, no error
    plt.close(figure)


@pytest.mark.parametrize("count, lines, columns", [
    (1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 3)])
def test_panels_stand_in_few_lines_and_what_is_left_over_is_blank(count, lines, columns):
    figure = plots.training_curves({"a": ROWS}, {f"m{k}": "" for k in range(count)})
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (lines, columns)
    assert sum(axis.axison for axis in figure.axes) == count
    assert figure.axes[0].get_legend() is None  # one run needs no name
    plt.close(figure)


@pytest.mark.parametrize("runs", [2, 5])
def test_each_run_is_named_and_has_its_own_line(runs):
    figure = plots.training_curves({f"run {k}": ROWS for k in range(runs)}, window=2)
    axis = figure.axes[0]
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == [f"run {k}" for k in range(runs)]
    faint, strong = axis.lines[::2], axis.lines[1::2]
    assert len({line.get_color() for line in strong}) == runs
    assert len({line.get_linestyle() for line in strong}) == min(runs, 4)  # told apart in grey
    assert [line.get_color() for line in faint] == [line.get_color() for line in strong]
    assert all(line.get_alpha() == 0.25 for line in faint)
    assert faint[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert strong[0].get_ydata().tolist() == pytest.approx([0.1, 0.15, 0.25, 0.35, 0.45])
    plt.close(figure)


def contrast(one, other):
    """The contrast of two colours, as WCAG 2 has it."""
    parts = np.array([to_rgb(one), to_rgb(other)])
    parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    low, high = sorted(parts @ (0.2126, 0.7152, 0.0722))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("draw", [
    lambda: plots.loop("group"), lambda: plots.training_curves({"a": ROWS, "b": ROWS[:2]}),
], ids=["loop", "curves"])
def test_every_word_of_a_figure_can_be_read_in_the_users_style(monkeypatch, shown, style, draw):
    """The ground is what most of the pixels around a word have in the picture itself."""
    kept, usual = [], plots.show
    with plt.style.context(style):
        monkeypatch.setattr(plots, "show", lambda figure, alt: kept.append(figure))
        figure = draw() or kept[0]
        monkeypatch.setattr(plots, "show", usual)
        plots.show(figure, "what it shows")
        image = np.asarray(Image.open(io.BytesIO(shown[-1].data)).convert("RGB")) / 255
        renderer, seen = FigureCanvasAgg(figure).get_renderer(), 0
        scale = len(image) / renderer.height  # matplotlib 3.11 puts a closed figure's dpi back
        for axis in figure.axes:
            words = [axis.title, axis.xaxis.label, *axis.get_xticklabels()] if axis.axison else []
            for text in (text for text in (*words, *axis.texts) if text.get_text()):
                (left, low), (right, high) = (
                    scale * text.get_window_extent(renderer).get_points())
                rows = slice(round(len(image) - high), round(len(image) - low))
                around = image[rows, round(left) : round(right)].reshape(-1, 3)
                if text in words[2:] and not len(around):  # the number of a tick outside the axis
                    continue
                colours, times = np.unique(around.round(1), axis=0, return_counts=True)
                ground = colours[times.argmax()]
                assert contrast(text.get_color(), ground) > 4, (text.get_text(), ground)
                assert text.get_size() >= 9  # points
                seen += 1
        assert seen >= 12


@pytest.mark.parametrize("backend", ["Agg", "svg", "module://matplotlib_inline.backend_inline"])
def test_a_kernel_shows_each_figure_once_whatever_the_backend(monkeypatch, backend):
    monkeypatch.setenv("MPLBACKEND", backend)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (
        "from helpers import plots\nplots.loop('all')",
        "plots.show(plots.training_curves({'a': [{'step': 1, 'truncated': 0}]}), 'curves')",
        "plots.picture(plots.training_curves({'a': [{'step': 1, 'truncated': 0}]}), 'curves')")])
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    for cell in book.cells:
        images = [out for out in cell.outputs if "image/png" in out.get("data", {})]
        assert len(images) == len(cell.outputs) == 1, cell.outputs
        assert images[0].metadata["image/png"]["alt"]
