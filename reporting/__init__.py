"""Pages and figures: templates and drawing."""
