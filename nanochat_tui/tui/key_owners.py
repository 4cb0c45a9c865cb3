"""Every class whose keys can be changed. Importing this imports all modes, so only the preferences do."""

from __future__ import annotations

from textual.dom import DOMNode

from nanochat_tui.tui.chat.lens_view import TokenRibbon
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.screen import ChatScreen
from nanochat_tui.tui.chat.session_list import Sessions
from nanochat_tui.tui.chat.side_panel import LiveScroll
from nanochat_tui.tui.chat.transcript import Transcript
from nanochat_tui.tui.evaluate.kept_list import KeptList
from nanochat_tui.tui.evaluate.samples import SamplesView, SampleText
from nanochat_tui.tui.evaluate.screen import EvaluateScreen
from nanochat_tui.tui.inspect.layer_grid import LayerGrid
from nanochat_tui.tui.inspect.screen import PANES, InspectScreen
from nanochat_tui.tui.inspect.trit_view import TritView
from nanochat_tui.tui.train.checkpoints_view import CheckpointsView
from nanochat_tui.tui.train.compare_view import CompareView
from nanochat_tui.tui.train.dashboard import Dashboard
from nanochat_tui.tui.train.form_fields import Fields, Report
from nanochat_tui.tui.train.run_list import RunList
from nanochat_tui.tui.train.screen import TrainScreen
from nanochat_tui.tui.widgets.chart import Chart


def key_owners() -> list[type[DOMNode]]:
    """Return the classes, mode by mode; those that only inherit the keys of another bring them once."""
    chat: list[type[DOMNode]] = [ChatScreen, Prompt, Transcript, Sessions, LiveScroll, TokenRibbon]
    panes: list[type[DOMNode]] = [pane for _, pane in PANES]
    train: list[type[DOMNode]] = [TrainScreen, RunList, Dashboard, Chart, CheckpointsView, CompareView]
    form: list[type[DOMNode]] = [Fields, Report]
    evaluate: list[type[DOMNode]] = [EvaluateScreen, KeptList, SamplesView, SampleText]
    return [*chat, InspectScreen, *panes, LayerGrid, TritView, *train, *form, *evaluate]
