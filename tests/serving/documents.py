"""Documents of the indexes that tests serve."""

#: Documents with metadata, of which some would act if they were taken for markup.
DOCUMENTS = [
    {"id": "d0", "text": "the cat sat on the mat", "lang": "en", "year": 2019, "tags": ["a"], "secret": "s"},
    {"id": "d1", "text": "a dog <script>alert(1)</script> runs", "lang": "en", "year": 2021,
     "tags": ["a", "<b>x</b>"], "secret": "s"},
    {"id": "d2", "text": "a rock is a stone", "lang": "en", "year": 2022, "tags": [], "secret": "s"},
    {"id": "d3", "text": "the river runs to the sea " * 20, "lang": "fr", "year": 2023, "tags": ["b"], "secret": "t"},
]  # fmt: skip
