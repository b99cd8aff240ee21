"""HTML pages, Markdown and figures made from the records of a run."""
