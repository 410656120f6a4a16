"""Files on a Hugging Face hub or in an S3 bucket: pinned references, ranges, and checked downloads."""
