"""A chess engine that says of moves what it is told to. For tests."""

import pathlib
import stat
import sys
import textwrap

PROGRAM = """\
    #!{python}
    import sys
    worth, asked = {worth}, 0
    for line in sys.stdin:
        word, *rest = line.split() or [""]
        if word == "uci":
            print("id name made up\\noption name Hash type spin default 1 min 1 max 64\\nuciok")
        elif word == "isready":
            print("readyok")
        elif word == "go":
            asked += 1
            if asked > {lasts}:
                sys.exit(3)
            move = rest[rest.index("searchmoves") + 1]
            score = worth.get(move) or f"cp {{30 * sum(map(ord, move)) % 400}}"
            print(f"info depth 1 nodes {{rest[rest.index('nodes') + 1]}} score {{score}} pv {{move}}\\nbestmove {{move}}")
        elif word == "quit":
            break
        sys.stdout.flush()
"""


def write(path: pathlib.Path, lasts: int = 10**6, **worth: str) -> str:
    """Writes the program: `worth` is the score of some moves, in UCI words; it leaves after so many questions."""
    path.write_text(textwrap.dedent(PROGRAM).format(python=sys.executable, worth=worth, lasts=lasts))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
