from syncbn.cli import run

if __name__ == "__main__":  # the ranks that it starts import this file
    run("command", package="benchmarks.scaling")
