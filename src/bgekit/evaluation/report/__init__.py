"""What an evaluation found, for people: on the console, as markdown, as one HTML page with plots."""
