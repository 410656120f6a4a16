"""The files of a new workspace, as they are in the package: template/NAME.txt, without the names that tools look for.

Under its own name, a dvc.yaml or .gitignore in this package would act on the repository.
"""

from pathlib import Path

from shadowft_core.files import bytes_digest

FOLDER = Path(__file__).with_name("template")
FILES = {  # path in a workspace: file in template/
    "dvc.yaml": "dvc.yaml.txt",
    "prefect.yaml": "prefect.yaml.txt",
    "flows/__init__.py": "flows-init.py.txt",
    "flows/retrain.py": "flows-retrain.py.txt",
    ".gitignore": "gitignore.txt",
    ".dvcignore": "dvcignore.txt",
    ".dvc/config": "dvc-config.txt",
    ".dvc/.gitignore": "dvc-gitignore.txt",
    "README.md": "README.md.txt",
}
OWN = {"params.yaml": "params.yaml.txt", "tasks/README.md": "tasks-README.md.txt"}  # written once, never upgraded
DEMO = {"params.yaml": "demo-params.yaml.txt"}


def content(name: str) -> bytes:
    """The bytes of a file in template/."""
    return (FOLDER / name).read_bytes()


def digests() -> dict[str, str]:
    """Digest of each of FILES by its path in a workspace."""
    return {path: bytes_digest(content(name)) for path, name in FILES.items()}
