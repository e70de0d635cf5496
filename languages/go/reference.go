// The reference filter of the conformance kit: conformance/README.md says what it does.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"reference/weir"
)

var (
	context []byte
	prefix  []byte
	seen    uint64
)

func init() {
	weir.Filter.Start, weir.Filter.Line = start, line
}

func start(ctx weir.Context, config []byte) error {
	context = fmt.Appendf(nil, "%s %s %s", ctx.Entry, ctx.Topic, ctx.Host)
	prefix = []byte("> ")
	if len(config) == 0 {
		return nil
	}
	last := len(config) - 1
	if last < 1 || config[0] != '"' || config[last] != '"' || bytes.IndexByte(config, '\\') >= 0 {
		return errors.New("config: a string without escapes")
	}
	prefix = config[1:last]
	return nil
}

func line(line []byte, place weir.Place, out *weir.Out) weir.Verdict {
	number := seen
	seen++
	switch string(line) {
	case "aside":
		return weir.SetAside
	case "trap":
		panic("trap was asked for")
	case "context":
		out.Line(context)
		return weir.Replaced
	case "seen":
		out.Line(strconv.AppendUint(nil, number, 10))
		return weir.Replaced
	case "where":
		out.Line(fmt.Appendf(nil, "%s@%d@%d", place.Path, place.Offset, place.UnixMs))
		return weir.Replaced
	}
	word, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(word) {
	case "DEBUG":
		return weir.Drop
	case "one":
		out.Line(prefix, rest)
		return weir.Replaced
	case "split":
		for part := range bytes.SplitSeq(rest, []byte(";")) {
			out.Line(part)
		}
		return weir.Replaced
	case "many":
		lines, _ := strconv.Atoi(string(rest))
		for range lines {
			out.Line([]byte("x"))
		}
		return weir.Replaced
	case "log":
		weir.Log(weir.Info, string(rest))
	case "count":
		weir.Count(string(rest), 1)
	}
	return weir.Keep
}

func main() {}
