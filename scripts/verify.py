from syncbn.cli import run

if __name__ == "__main__":  # the ranks of trainer=ddp_sim import this file
    run("verify")
