"""Runs commands of weaver-core, each in its folder: PYTHON_WITH_WEAVER_CORE run_commands.py.

On stdin: [{"folder": ..., "commands": [[word, ...], ...]}, ...].
"""

import json
import os
import sys

# weaver-core's: this project is not on the path of a script
import weaver.train


def main() -> None:
    for job in json.load(sys.stdin):
        os.chdir(job["folder"])
        for words in job["commands"]:
            sys.argv = ["weaver", *words]
            print(job["folder"], file=sys.stderr)
            weaver.train.main()


if __name__ == "__main__":
    main()
