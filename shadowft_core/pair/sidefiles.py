"""Which files are downloaded along with the weights of a model."""

SIDE_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
"""patterns of configs, tokenizers and templates; code and weights in other formats are not downloaded"""
