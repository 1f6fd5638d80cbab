"""`python -m trainer`: the same trainer without ComfyUI's page."""

import argparse
import sys

from .cli import commands, demo, sweep
from .errors import ContinualLoraError

COMMANDS = {
    "train": (commands.add_train, commands.run_train, "teach one concept"),
    "generate": (commands.add_generate, commands.run_generate, "make images with a sequence"),
    "score": (commands.add_score, commands.run_score, "classify images by the model's own denoising error"),
    "evaluate": (commands.add_evaluate, commands.run_evaluate, "draw, measure and report what a sequence remembers"),
    "sweep": (sweep.add_sweep, sweep.run_sweep, "teach sequences with many settings, measure and compare them"),
    "merge": (commands.add_merge, commands.run_merge, "merge sequences, or tasks of one, into a LoRA file"),
    "convert": (commands.add_convert, commands.run_convert, "write a LoRA in the key layout of another tool"),
    "demo": (demo.add_demo, demo.run_demo, "teach three bundled concepts and write a report"),
}


def main() -> None:
    """Parse, run, and say errors in one paragraph."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Teach concept after concept.")
    subparsers = parser.add_subparsers(required=True, metavar="command")
    for name, (add, run, text) in COMMANDS.items():
        command = subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add(command)
        command.set_defaults(run=run)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except ContinualLoraError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. What was trained so far is kept; run the same command again to go on.")


if __name__ == "__main__":
    main()
