"""A UCI chess engine as a judge of moves: how good is this one for the player who makes it?

The engine is a program of its own (Stockfish, say), started when it is first asked. If it fails while it works, that is said
once, and from then on it can say nothing: the run goes on without it.
"""

import atexit
import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

from absl import logging

VERSION = "1"
NAME = "stockfish"
PLACES = ("/usr/games/stockfish", "/usr/local/bin/stockfish", "/opt/homebrew/bin/stockfish")
"""Where package managers put it, beside the search path."""
MATE = 100_000
"""Centipawns of a mate at once; one in n moves counts n less."""
PATIENCE_S = 60.0


@dataclasses.dataclass(eq=False)
class Engine:
    """A judge; equal questions get equal answers: one thread, a fixed number of nodes, an emptied memory.

    Attributes:
        path: of the program.
        nodes: positions that it looks at for each move.
    """

    path: str
    nodes: int
    _process: Any = dataclasses.field(default=None, init=False, repr=False)
    _gone: bool = dataclasses.field(default=False, init=False, repr=False)

    @classmethod
    def found(cls, path: str, nodes: int) -> "Engine":
        """The engine at a path; "auto" = `stockfish` where it is usually installed.

        Raises:
            ValueError: there is no program, or no nodes to look at.
        """
        if nodes < 1:
            raise ValueError(f"engine_nodes is {nodes}, allowed is 1 or more; change --config.tasks.engine_nodes")
        places = (NAME, *PLACES) if path == "auto" else (str(Path(path).expanduser()),)
        program = next(filter(None, map(shutil.which, places)), None)
        if program is None:
            raise ValueError(
                f"--config.tasks.engine={path}: there is no program at {', '.join(places)}; install a UCI engine (apt install "
                "stockfish, brew install stockfish), give its path, or set engine to '' to do without a judge"
            )
        return cls(program, nodes)

    @functools.cache  # noqa: B019 (few engines, as long-lived as the task)
    def centipawns(self, fen: str, move: str) -> float | None:
        """The worth of a legal move for the player who makes it, larger = better; None where the engine is gone.

        Args:
            fen: the position.
            move: in UCI notation.
        """
        if self._gone:
            return None
        import chess
        import chess.engine

        board = chess.Board(fen)
        try:
            looked = self._started().analyse(
                board, chess.engine.Limit(nodes=self.nodes), game=object(), root_moves=[chess.Move.from_uci(move)]
            )
            return float(looked["score"].pov(board.turn).score(mate_score=MATE))
        except (chess.engine.EngineError, TimeoutError, OSError, KeyError) as error:
            self._gone = True
            logging.warning(
                "the chess engine %s failed at %s in %s (%r): the run goes on without a judge; the moves that it was to judge "
                "from here on count as not judged", self.path, move, fen, error,
            )  # fmt: skip
            return None

    def _started(self):
        import chess.engine

        if self._process is None:
            self._process = chess.engine.SimpleEngine.popen_uci(self.path, timeout=PATIENCE_S)
            atexit.register(self._process.close)
            known = self._process.options
            self._process.configure({name: value for name, value in (("Threads", 1), ("Hash", 16)) if name in known})
        return self._process
