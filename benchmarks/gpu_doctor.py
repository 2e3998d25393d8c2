"""Print the doctor's report for the GPU page: python -m benchmarks.gpu_doctor."""

import sys

import syncbn


def main() -> None:
    """Print the report; exit with 1 if something is wrong."""
    report = syncbn.doctor(model="resnet50", seconds=50)
    print(report.to_markdown())
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
