from syncbn.cli import run

if __name__ == "__main__":  # spawned ranks import this file
    run("command", package="benchmarks.scaling")
