"""The reference filter of the conformance kit: conformance/README.md says what it does."""

from wit_world.imports import host

import weir


class Reference(weir.Filter):
    def start(self, context, config):
        self.context = f"{context.entry} {context.topic} {context.host}".encode()
        self.prefix = b"> "
        if config:
            if len(config) < 2 or config[:1] != b'"' or config[-1:] != b'"' or b"\\" in config:
                raise weir.Refused("config: a string without escapes")
            self.prefix = config[1:-1]
        self.seen = 0

    def line(self, line, out, place):
        seen = self.seen
        self.seen += 1
        if line == b"aside":
            return out.set_aside()
        if line == b"trap":
            raise RuntimeError("trap was asked for")
        if line == b"context":
            return out.replace(self.context)
        if line == b"seen":
            return out.replace(str(seen).encode())
        if line == b"where":
            return out.replace(f"{place.path}@{place.offset}@{place.unix_ms}".encode())
        word, _, rest = line.partition(b" ")
        if word == b"DEBUG":
            return out.drop()
        if word == b"one":
            return out.replace(self.prefix + rest)
        if word == b"split":
            for part in rest.split(b";"):
                out.line(part)
            return
        if word == b"many":
            for _ in range(int(rest)):
                out.line(b"x")
            return
        if word == b"log":
            host.log(3, rest.decode())
        elif word == b"count":
            host.count(rest.decode(), 1)
        out.keep()


WitWorld = weir.export(Reference)
