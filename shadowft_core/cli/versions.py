"""What `shadowft --version` prints. It imports none of the libraries that it names."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "lm_eval",
    "mlflow",
    "prefect",
    "dvc",
    "numpy",
    "ml_dtypes",
    "boto3",
)


def print_versions(verbose: bool) -> None:
    """Print the version; if `verbose`, also those of Python and the main libraries, the platform and the arithmetic."""
    print(f"shadowft {_installed('shadowft')}")
    if verbose:
        import platform

        from shadowft_core.kernels import bf16

        print(f"Python {platform.python_version()} on {platform.platform()}")
        for name in LIBRARIES:
            print(f"{name} {_installed(name)}")
        print(f"arithmetic: {'compiled' if bf16.library else f'numpy, the same bits but slower ({bf16.why_numpy})'}")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"
