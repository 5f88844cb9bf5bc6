"""What people look at: the curve of delay against budget, and timelines of passes."""

from penstock.report.curve import Curve, Point
from penstock.report.curve_page import save_page
from penstock.report.curve_picture import save_picture
from penstock.report.sweeping import sweep

__all__ = ["Curve", "Point", "save_page", "save_picture", "sweep"]
