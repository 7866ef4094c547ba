"""The scripts here are run by tests; they are no tests, and find their neighbours only as scripts."""

collect_ignore = ["scripts"]
