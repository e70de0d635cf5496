// Package weir makes a filter of weir out of two functions, with nothing but Go itself:
// it is the canonical ABI of guest-sdk/wit/filter.wit, by hand.
//
// The host puts what it hands over into memory from cabi_realloc, and reads the result from where the
// pointer that comes back says. What either holds is kept from the garbage collector until the call is over.
package weir

import "unsafe"

// Context is what an instance works for.
type Context struct{ Entry, Topic, Host string }

// Place is where a line stands.
type Place struct {
	Path           string
	Offset, UnixMs uint64
}

// Verdict is what becomes of a line.
type Verdict uint8

// Verdicts. Replaced goes with one to 253 calls of Out.Line or Out.End.
const (
	Drop     Verdict = 0
	Keep     Verdict = 1
	Replaced Verdict = 2
	SetAside Verdict = 255
)

// Level of a message in the agent's log.
type Level uint32

// Levels.
const (
	Error   Level = 1
	Warning Level = 2
	Info    Level = 3
	Debug   Level = 4
)

// Filter is what the program sets in its init functions, which run before the host's init.
var Filter struct {
	// Start comes once, before any line. The config is the JSON of the collect list, or empty.
	Start func(context Context, config []byte) error
	// Line comes once a line. The bytes are valid during the call.
	Line func(line []byte, place Place, out *Out) Verdict
}

// Out takes the lines that replace one.
type Out struct {
	bytes []byte
	ends  []uint32
}

// Line adds a line, the parts one behind the other.
func (out *Out) Line(parts ...[]byte) {
	for _, part := range parts {
		out.bytes = append(out.bytes, part...)
	}
	out.ends = append(out.ends, uint32(len(out.bytes)))
}

// Log writes to the agent's log.
func Log(level Level, message string) { hostLog(uint32(level), message) }

// Count adds to a counter of the entry: a-z, 0-9 and _.
func Count(name string, by uint64) { hostCount(name, by) }

//go:wasmimport weir:filter/host@0.1.0 log
func hostLog(level uint32, message string)

//go:wasmimport weir:filter/host@0.1.0 count
func hostCount(name string, by uint64)

// What the host was given room for, until the call is over.
var given [][]uint64

//go:wasmexport cabi_realloc
func realloc(old unsafe.Pointer, oldSize, align, size uint32) unsafe.Pointer {
	// In units of eight bytes, so that it is aligned for all there is.
	room := make([]uint64, (size+7)/8+1)
	given = append(given, room)
	at := unsafe.Pointer(&room[0])
	if oldSize > 0 {
		copy(unsafe.Slice((*byte)(at), size), unsafe.Slice((*byte)(old), oldSize))
	}
	return at
}

// Go's own pointers have eight bytes in memory; those of the interface have four.
type pointer uint32

func address[T any](at *T) pointer { return pointer(uintptr(unsafe.Pointer(at))) }

// result<_, string>
var started struct {
	isError uint32
	at      pointer
	length  uint32
	message []byte
}

//go:wasmexport init
func start(entry unsafe.Pointer, entryLen uint32, topic unsafe.Pointer, topicLen uint32,
	host unsafe.Pointer, hostLen uint32, config unsafe.Pointer, configLen uint32) unsafe.Pointer {
	context := Context{text(entry, entryLen), text(topic, topicLen), text(host, hostLen)}
	started.isError = 0
	if Filter.Start != nil {
		if err := Filter.Start(context, append([]byte(nil), slice(config, configLen)...)); err != nil {
			started.message = []byte(err.Error())
			started.isError = 1
			started.at, started.length = address(unsafe.SliceData(started.message)), uint32(len(started.message))
		}
	}
	given = given[:0]
	return unsafe.Pointer(&started)
}

// result<output, string>, of which only the first half is used: a filter that fails traps.
var processed struct {
	isError     uint32
	verdicts    pointer
	verdictsLen uint32
	bytes       pointer
	bytesLen    uint32
	ends        pointer
	endsLen     uint32
}

var (
	out      Out
	verdicts []Verdict
)

//go:wasmexport process
func process(path unsafe.Pointer, pathLen uint32, offset, unixMs uint64, bytes unsafe.Pointer, bytesLen uint32,
	starts unsafe.Pointer, startsLen uint32, ends unsafe.Pointer, endsLen uint32) unsafe.Pointer {
	data, n := slice(bytes, bytesLen), startsLen
	from, to := unsafe.Slice((*uint32)(starts), n), unsafe.Slice((*uint32)(ends), n)
	place := Place{Path: text(path, pathLen), UnixMs: unixMs}
	out.bytes, out.ends, verdicts = append(out.bytes[:0], 0)[:0], append(out.ends[:0], 0)[:0], append(verdicts[:0], 0)[:0]
	for i := range from {
		place.Offset = offset + uint64(from[i])
		before := len(out.ends)
		verdict := Filter.Line(data[from[i]:to[i]:to[i]], place, &out)
		if verdict == Replaced {
			verdict = Verdict(len(out.ends) - before + 1)
		}
		verdicts = append(verdicts, verdict)
	}
	processed.verdicts, processed.verdictsLen = address(unsafe.SliceData(verdicts)), uint32(len(verdicts))
	processed.bytes, processed.bytesLen = address(unsafe.SliceData(out.bytes)), uint32(len(out.bytes))
	processed.ends, processed.endsLen = address(unsafe.SliceData(out.ends)), uint32(len(out.ends))
	given = given[:0]
	return unsafe.Pointer(&processed)
}

func slice(at unsafe.Pointer, length uint32) []byte { return unsafe.Slice((*byte)(at), length) }

func text(at unsafe.Pointer, length uint32) string { return string(slice(at, length)) }
