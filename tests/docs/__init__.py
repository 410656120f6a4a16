"""The pages under docs/reference/ that are written from the code, and the rules that all pages follow."""
