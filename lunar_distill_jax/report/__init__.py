"""One self-contained HTML page that shows what a model makes of the Moon."""

from lunar_distill_jax.report.page import Shown, write_report

__all__ = ["Shown", "write_report"]
