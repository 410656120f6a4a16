"""The peer: `python -m benchmarks.store.peers up|down|start FILE BUCKET KEY ENDPOINT`.

boto3 with its fastest settings here: 64 MiB parts on two threads, and no payload signing over plain HTTP. Checksums are
the defaults: CRC32 of every part on upload, none of the whole on download.
"""

import sys
from pathlib import Path


def main(way: str, file: str, bucket: str, key: str, endpoint: str) -> None:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        config=Config(s3={"addressing_style": "path", "payload_signing_enabled": False}),
    )
    best = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=2)
    if way == "start":
        client.head_bucket(Bucket=bucket)
    elif way == "up":
        client.upload_file(file, bucket, key, Config=best)
    else:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, key, file, Config=best)


if __name__ == "__main__":
    main(*sys.argv[1:])
