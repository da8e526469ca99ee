"""Reports of an evaluation: text for the console, Markdown, one HTML page with plots."""
