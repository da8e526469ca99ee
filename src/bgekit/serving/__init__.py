"""The server: any model of bgekit behind HTTP, in the shapes that clients speak."""
