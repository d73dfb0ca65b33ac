"""A UCI chess engine as a judge of moves: how good is this one for the player who makes it?

The engine is a program of its own (Stockfish, say), started when it is first asked. If it fails while it works, who asked is
told: what it was to judge stays unjudged, and nothing is stored of it, so that the next run asks again.
"""

import asyncio
import dataclasses
import functools
import shutil
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from etils import epath

from w2s_jax import files

VERSION = "1"
NAME = "stockfish"
PLACES = ("/usr/games/stockfish", "/usr/local/bin/stockfish", "/opt/homebrew/bin/stockfish")
"""Where package managers put it, beside the search path."""
MATE = 100_000
"""Centipawns of a mate at once; one in n moves counts n less."""
PATIENCE_S = 60.0


class NoEngine(ValueError):
    """There is no program at the path of an engine."""


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
    _transport: Any = dataclasses.field(default=None, init=False, repr=False)

    @classmethod
    def found(cls, path: str, nodes: int) -> "Engine":
        """The engine at a path; "auto" = `stockfish` where it is usually installed.

        Raises:
            NoEngine: there is no program.
            ValueError: no nodes to look at.
        """
        if nodes < 1:
            raise ValueError(f"engine_nodes is {nodes}, allowed is 1 or more; change --config.tasks.engine_nodes")
        places = (NAME, *PLACES) if path == "auto" else (str(Path(path).expanduser()),)
        program = next(filter(None, map(shutil.which, places)), None)
        if program is None:
            raise NoEngine(
                f"--config.tasks.engine={path}: there is no program at {', '.join(places)}; install a UCI engine (apt install "
                "stockfish, brew install stockfish), give its path, or set engine to '' to do without a judge"
            )
        return cls(program, nodes)

    @functools.cache  # noqa: B019 (few engines, as long-lived as the task)
    def centipawns(self, fen: str, move: str) -> float:
        """The worth of a legal move for the player who makes it, larger = better.

        Args:
            fen: the position.
            move: in UCI notation.

        Raises:
            ValueError: the engine failed.
        """
        import chess
        import chess.engine

        board = chess.Board(fen)
        limit = chess.engine.Limit(nodes=self.nodes)
        try:
            if self._process is None:
                self._transport, self._process = self._wait(_started(self.path))
            looked = self._wait(
                self._process.analyse(board, limit, game=object(), root_moves=[chess.Move.from_uci(move)]),
            )
            return float(looked["score"].pov(board.turn).score(mate_score=MATE))
        except (chess.engine.EngineError, TimeoutError, OSError, KeyError) as error:
            self._end()
            raise ValueError(
                f"the chess engine {self.path} failed at {move} in {fen} ({error!r}); mend it, name another one in "
                "--config.tasks.engine, or set that to '' to do without a judge"
            ) from error

    def _end(self) -> None:
        """Ends the process, which may hang; who asks again gets another one."""
        if self._transport is not None:
            self._loop.call_soon_threadsafe(self._transport.close)
        self._process = self._transport = None

    @functools.cached_property
    def digest(self) -> str:
        """Which program it is, by its bytes.

        Raises:
            ValueError: it is not there any more, or nobody may read it.
        """
        try:
            return files.sha256_of(epath.Path(self.path))
        except OSError as error:
            raise ValueError(
                f"the chess engine {self.path} cannot be read ({error}); put it back, or name another one in "
                "--config.tasks.engine"
            ) from error

    @functools.cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Where the engine is talked to: a thread that ends with the program, which chess.engine.SimpleEngine's does not."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="chess engine", daemon=True).start()
        return loop

    def _wait(self, said: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(said, PATIENCE_S), self._loop).result()


async def _started(path: str):
    """The engine as a process of its own, which ends when its input does: its transport, and what speaks with it."""
    import chess.engine

    transport, process = await chess.engine.popen_uci(path)
    known = process.options
    try:
        await process.configure({name: value for name, value in (("Threads", 1), ("Hash", 16)) if name in known})
    except BaseException:  # whoever stops waiting leaves no process behind
        transport.close()
        raise
    return transport, process
