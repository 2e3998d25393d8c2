from syncbn.cli import run

if __name__ == "__main__":  # spawned ranks (trainer=ddp_sim) import this file
    run("inspect")
