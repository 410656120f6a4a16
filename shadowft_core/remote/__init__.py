"""Downloads files from a Hugging Face hub or an S3 bucket, by pinned references, and checks them."""
