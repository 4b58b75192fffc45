"""The paper's tables and figures, and the questions it left open, as runs that one command makes
and reports."""
