"""A filter of weir in Python: lines in, a verdict for each out.

    class Mine(weir.Filter):
        def line(self, line, out, place):
            out.keep()

    WitWorld = weir.export(Mine)

`line` is bytes, and `out` says what becomes of it: keep(), drop(), set_aside(), replace(bytes) by one line,
or line(bytes) for each of several. What `start` raises as weir.Refused is the error of `init`; any other
exception is a trap, which costs the line.
"""

from componentize_py_types import Err
from wit_world.imports.types import Output

DROP, KEEP, SET_ASIDE = 0, 1, 255


class Refused(Exception):
    """The configuration is not one of this filter's."""


class Filter:
    def start(self, context, config):
        """Once, before any line; config is the JSON of the collect list, or empty."""

    def line(self, line, out, place):
        """Once a line."""
        raise NotImplementedError


class Place:
    """Where a line stands."""

    __slots__ = ("path", "offset", "unix_ms")


class Out:
    """What becomes of the lines of a batch."""

    def __init__(self, lines):
        self.verdicts = bytearray(lines)
        self.at = 0
        self.bytes = bytearray()
        self.ends = []

    def keep(self):
        self.verdicts[self.at] = KEEP

    def drop(self):
        self.verdicts[self.at] = DROP

    def set_aside(self):
        self.verdicts[self.at] = SET_ASIDE

    def replace(self, line):
        self.line(line)

    def line(self, line):
        self.bytes += line
        self.ends.append(len(self.bytes))
        self.verdicts[self.at] = max(self.verdicts[self.at], 1) + 1


def export(filter_class):
    """The class that componentize-py looks for; it makes an object of it for every call."""
    the = filter_class()

    class WitWorld:
        def init(self, ctx, config):
            try:
                the.start(ctx, bytes(config))
            except Refused as refused:
                raise Err(str(refused)) from refused

        def process(self, batch):
            out, place, data = Out(len(batch.starts)), Place(), bytes(batch.bytes)
            place.path, place.unix_ms = batch.path, batch.unix_ms
            line = the.line
            for at, (start, end) in enumerate(zip(batch.starts, batch.ends)):
                out.at = at
                place.offset = (batch.offset + start) & 0xFFFFFFFFFFFFFFFF
                line(data[start:end], out, place)
            return Output(bytes(out.verdicts), bytes(out.bytes), out.ends)

    return WitWorld
