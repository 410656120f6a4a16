"""What ours is held against: `python -m benchmarks.store.peers up|down|start FILE BUCKET KEY ENDPOINT`.

boto3 at its best: 64 MiB parts on two threads, and no payload signing over plain HTTP, were its fastest settings here.
Checksums stay as they come by default: CRC32 of every part on the way up, none of the whole on the way down.
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
