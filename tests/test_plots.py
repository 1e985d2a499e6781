import io

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from helpers import plots


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
    rows = [{"step": k, "equation_reward": k / 10, "truncated": 0.0} for k in range(1, 6)]
    figure = plots.training_curves({"a": rows, "b": rows[:2]}, steps=80)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == list(plots.PANELS.values()) and figure.get_figwidth() <= 9
    assert all(axis.get_xlim() == (0, 80) for axis in figure.axes)
    assert figure.axes[0].get_ylim() == (0, 1.05)
    assert not figure.axes[1].lines  # the rows have no format reward: an empty panel, no error
    plt.close(figure)
