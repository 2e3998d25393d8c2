from syncbn.cli import run

if __name__ == "__main__":
    run("command", package="science")
