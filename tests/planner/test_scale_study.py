import re
from time import perf_counter

import pytest

from planner import scale_study
from planner.config.run_config import ParallelKnobs
from planner.scale_study import PAGE, cell, models, page
from profiles.build_architecture import architecture
from profiles.parameter_counts import parameter_counts

NUMBER = re.compile(r"[0-9][0-9,]*[.]?[0-9]*")


def test_the_page_is_what_the_planner_says_now_within_5_percent():
    """Made anew by `python -m planner.scale_study`."""
    written, now = PAGE.read_text("utf-8").replace("**", ""), page().replace("**", "")
    figures = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (written, now)]
    assert figures[0] == pytest.approx(figures[1], rel=0.05)


def test_the_mixture_of_a_trillion_has_the_parameters_of_the_paper():
    """1.04 trillion in all (arXiv:2507.20534, table 2)."""
    assert parameter_counts(architecture(models()[-1])).total == pytest.approx(1.04e12, rel=0.02)


def test_the_time_to_plan_grows_with_the_layouts_and_not_with_the_cards():
    def seconds(num_nodes: int) -> float:
        begin = perf_counter()
        for knobs in scale_study.STRATEGIES:
            cell(models()[2], knobs, num_nodes)
        return perf_counter() - begin

    seconds(1)
    assert seconds(128) < 2
    assert seconds(127) < 3 * seconds(2) + 0.5


def test_more_cards_are_never_slower_and_never_take_more_on_each():
    for knobs in (ParallelKnobs(strategy="fsdp"), ParallelKnobs(strategy="zero3")):
        cells = [cell(models()[1], knobs, num_nodes) for num_nodes in (4, 16, 64)]
        speeds = [one.tokens_per_second for one in cells if one]
        assert speeds == sorted(speeds)
