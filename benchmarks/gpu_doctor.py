"""The doctor's report as the page of the GPU shows it: python -m benchmarks.gpu_doctor."""

import sys

import syncbn


def main() -> None:
    """Print the report; exit code 1 where something is wrong."""
    report = syncbn.doctor(model="resnet50", seconds=50)
    print(report.to_markdown())
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
