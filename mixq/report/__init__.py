"""Tables, plots and the page that tell what a study found: values in, files out."""

from mixq.report.page import write_report
from mixq.report.plots import plot_pareto, plot_sensitivity
from mixq.report.tables import layer_table, pareto, trials_frame, write_pareto

__all__ = [
    "layer_table",
    "pareto",
    "plot_pareto",
    "plot_sensitivity",
    "trials_frame",
    "write_pareto",
    "write_report",
]
